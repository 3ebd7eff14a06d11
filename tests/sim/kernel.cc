// SPDX-License-Identifier: Apache-2.0
// Time, descriptors, faults.
#include "sim/kernel.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <utility>

#include "sim/sockmap.h"

namespace penstock::sim {

Kernel* g_kernel = nullptr;

Kernel::Kernel(uint64_t seed) : random(seed) {
  g_kernel = this;
}
Kernel::~Kernel() {
  g_kernel = nullptr;
}

bool Kernel::step(uint64_t until_ns) {
  if (events_.empty() || events_.top().when_ns > until_ns) {
    if (until_ns != UINT64_MAX) now = std::max(now, until_ns);
    return false;
  }
  now = std::max(now, events_.top().when_ns);
  auto what = std::move(const_cast<TimedEvent&>(events_.top()).what);
  events_.pop();
  const bool before = std::exchange(foreign, true);
  what();
  foreign = before;
  return true;
}

void Kernel::between(const char* call) {
  if (tracing) trace(call);
  now += random.below(2'000);
  if (!random.chance(1, weather.between_in)) return;
  now += random.log_between(1, 50'000);
  while (next_event_ns() <= now) step(now);
}

bool Kernel::is_time_to_die() {
  if (foreign) return false;
  const bool chosen = moments++ == die_nth;
  if (!chosen && !(deaths_left && die_in && random.chance(1, die_in))) return false;
  if (deaths_left) deaths_left--;
  return true;
}

std::vector<int> Kernel::descriptors() const {
  std::vector<int> all;
  for (size_t i = 0; i < files_.size(); i++)
    if (files_[i].kind != Kind::none) all.push_back(kFirstFd + static_cast<int>(i));
  return all;
}

int Kernel::fault(const char* call, std::initializer_list<int> errors) {
  const bool chosen = fallible++ == fail_nth;
  if (!chosen && !(weather.fault_in && random.chance(1, weather.fault_in))) return 0;
  const uint64_t which = chosen ? fail_variant : random.next();
  failed_errors = static_cast<uint32_t>(errors.size());
  const int error = errors.begin()[which % errors.size()];
  faults++;
  fault_text = fmt::format("{} fails with {}", call, error);
  trace(fault_text);
  return error;
}

int Kernel::open(Kind kind) {
  if (open_count_ >= weather.descriptors_max) return -1;
  size_t at = files_.size();
  if (weather.reuse_numbers)
    for (at = 0; at < files_.size() && files_[at].kind != Kind::none;) at++;
  if (at == files_.size()) files_.emplace_back();
  const uint32_t wakes = files_[at].wakes;
  files_[at] = {};
  files_[at].kind = kind;
  files_[at].wakes = wakes;
  open_count_++;
  return kFirstFd + static_cast<int>(at);
}

File* Kernel::maybe_file(int fd) {
  const int at = fd - kFirstFd;
  if (at < 0 || static_cast<size_t>(at) >= files_.size()) return nullptr;
  File& f = files_[static_cast<size_t>(at)];
  return f.kind == Kind::none ? nullptr : &f;
}

File* Kernel::file(int fd) {
  File* f = maybe_file(fd);
  if (!f) violated(fmt::format("descriptor {} is used and not open", fd - kFirstFd));
  return f;
}

void Kernel::close(int fd) {
  File* f = file(fd);
  if (f->operations)
    violated(fmt::format("descriptor {} is closed with an operation in flight", fd - kFirstFd));
  *f = File{.wakes = f->wakes};
  open_count_--;
}

void Kernel::wake(int fd) {
  if (fd >= kRingFd && fd < kRingFd + static_cast<int>(kThreads)) return;  // io.cc looks at the ring itself
  if (File* f = maybe_file(fd)) f->wakes++;
}

// tcp_poll(), pipe_poll()
uint32_t Kernel::poll(int fd) {
  if (fd >= kRingFd && fd < kRingFd + static_cast<int>(kThreads))
    return ring_readable(static_cast<uint32_t>(fd - kRingFd)) ? POLLIN : 0;
  const File* f = file(fd);
  if (f->kind == Kind::event) return f->counter ? POLLIN : 0;
  if (f->kind != Kind::tcp) return 0;
  Socket* s = f->socket;
  uint32_t events = 0;
  if (s->state == TCP_LISTEN)
    return (s->accepted.empty() ? 0 : POLLIN) | (s->shut & kReceiveShut ? POLLHUP : 0);
  if (s->shut == (kReceiveShut | kSendShut) || s->state == TCP_CLOSE) events |= POLLHUP;
  if (s->shut & kReceiveShut) events |= POLLIN | POLLRDHUP;
  if (s->state != TCP_SYN_SENT) {
    uint32_t target = s->low_water;
    if (s->urgent && s->urgent_seq == s->copied_seq) target++;
    if (s->readable() > 0 && s->readable() >= target) events |= POLLIN;
    if ((s->shut & kSendShut) || s->writeable()) events |= POLLOUT;
  }
  if (s->error) events |= POLLERR;
  return events;
}

void Kernel::listen(Socket* s) {
  s->state = TCP_LISTEN;
}

void Kernel::trace(const std::string& what) {
  if (tracing)
    fprintf(stderr, "%12.6f %s\n", static_cast<double>(now - 1'000'000'000'000) / 1e9, what.c_str());
}

void Kernel::violated(const std::string& what) {
  fprintf(stderr, "%s: at %.6f s: %s\n%s%s", title.c_str(),
          static_cast<double>(now - 1'000'000'000'000) / 1e9, what.c_str(),
          faults ? ("last fault: " + fault_text + "\n").c_str() : "", describe ? describe().c_str() : "");
  fflush(stderr);
  _exit(1);
}

}  // namespace penstock::sim
