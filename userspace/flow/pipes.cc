// SPDX-License-Identifier: Apache-2.0
#include "flow/pipes.h"

#include <fcntl.h>
#include <unistd.h>

namespace penstock::flow {

namespace {

bool make(Pipe* out) {
  int fds[2];
  if (pipe2(fds, O_NONBLOCK | O_CLOEXEC)) return false;
  int capacity = fcntl(fds[1], F_GETPIPE_SZ);  // 8 KiB when the user's soft limit is used up
  *out = Pipe{fds[1], fds[0], static_cast<uint32_t>(capacity)};
  return true;
}

void shrink(std::vector<Pipe>& pipes, size_t left) {
  for (; pipes.size() > left; pipes.pop_back()) {
    close(pipes.back().in);
    close(pipes.back().out);
  }
}

}  // namespace

Pipes::Pipes(Statistics* statistics) : statistics_(statistics) {
  let_go();
}

Pipes::~Pipes() {
  shrink(grown_, 0);
  shrink(kept_, 0);
}

void Pipes::let_go() {
  shrink(grown_, 0);
  shrink(kept_, kReserved);
  for (Pipe p; kept_.size() < kReserved && make(&p);) kept_.push_back(p);
}

bool Pipes::take(uint32_t bytes, Pipe* out) {
  bool grown = bytes > kCapacityBytes && !grown_.empty();
  if (std::vector<Pipe>& from = grown ? grown_ : kept_; !from.empty()) {
    *out = from.back();
    from.pop_back();
  } else if (!make(out)) {
    if (grown_.empty()) return false;
    *out = grown_.back();
    grown_.pop_back();
  }
  count(statistics_->totals->pipes);
  count(statistics_->totals->pipe_bytes, out->capacity_bytes);
  if (out->capacity_bytes < bytes) grow(out, bytes);
  return true;
}

uint32_t Pipes::grow(Pipe* pipe, uint32_t bytes) {
  int capacity = fcntl(pipe->in, F_SETPIPE_SZ, static_cast<int>(bytes));
  if (capacity > 0) {
    count(statistics_->totals->pipe_bytes, static_cast<uint64_t>(capacity) - pipe->capacity_bytes);
    pipe->capacity_bytes = static_cast<uint32_t>(capacity);
  }
  return pipe->capacity_bytes;
}

void Pipes::give_back(const Pipe& pipe, bool empty) {
  uncount(statistics_->totals->pipes);
  uncount(statistics_->totals->pipe_bytes, pipe.capacity_bytes);
  if (empty && pipe.capacity_bytes == kCapacityBytes && kept_.size() < kKeptMax) return kept_.push_back(pipe);
  if (empty && pipe.capacity_bytes > kCapacityBytes && grown_.size() < kGrownMax)
    return grown_.push_back(pipe);
  close(pipe.in);
  close(pipe.out);
  Pipe p;
  if (kept_.empty() && make(&p)) kept_.push_back(p);  // or an accept might take the descriptors
}

}  // namespace penstock::flow
