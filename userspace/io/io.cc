// SPDX-License-Identifier: Apache-2.0
#include "io/io.h"

#include <fmt/format.h>
#include <liburing.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <deque>
#include <vector>

#include "base/assert.h"

namespace penstock::io {

uint64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(t.tv_nsec);
}

struct Io::Impl {
  io_uring ring{};
  bool deferred = false;
  std::string description;
  std::deque<sockaddr_storage> addresses;  // read by the kernel at submission
  std::vector<Completion> reaped;

  ~Impl() {
    if (ring.ring_fd > 0) io_uring_queue_exit(&ring);
  }

  io_uring_sqe* entry() {
    io_uring_sqe* s = io_uring_get_sqe(&ring);
    while (!s) {
      int r = io_uring_submit(&ring);
      PENSTOCK_ASSERT(r >= 0 || r == -EAGAIN || r == -EBUSY || r == -EINTR);
      s = io_uring_get_sqe(&ring);
    }
    return s;
  }
};

Io::Io(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Io::~Io() = default;

Result<std::unique_ptr<Io>> Io::open(unsigned entries) {
  auto impl = std::make_unique<Impl>();
  const unsigned wanted[] = {IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
                             IORING_SETUP_COOP_TASKRUN, 0};
  const char* names[] = {"single issuer, deferred task work", "cooperative task work", "plain"};
  int r = -EINVAL;
  for (int i = 0; i < 3 && r == -EINVAL; i++) {
    io_uring_params p{};
    p.flags = wanted[i] | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP;
    p.cq_entries = 16 * entries;
    r = io_uring_queue_init_params(entries, &impl->ring, &p);
    impl->deferred = i == 0;
    impl->description = fmt::format("io_uring ({})", names[i]);
  }
  if (r < 0) {
    impl->ring.ring_fd = -1;
    const char* hint = r == -EPERM ? " (kernel.io_uring_disabled, or a seccomp profile)" : "";
    return Error{fmt::format("io_uring_setup: {}{}", strerror(-r), hint)};
  }
  return std::unique_ptr<Io>(new Io(std::move(impl)));
}

void Io::accept(int listener, Token token) {
  io_uring_sqe* s = impl_->entry();
  io_uring_prep_multishot_accept(s, listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
  io_uring_sqe_set_data64(s, token);
}

void Io::poll(int fd, uint32_t events, Token token) {
  io_uring_sqe* s = impl_->entry();
  io_uring_prep_poll_add(s, fd, events);
  io_uring_sqe_set_data64(s, token);
}

void Io::poll_each(int fd, uint32_t events, Token token) {
  io_uring_sqe* s = impl_->entry();
  io_uring_prep_poll_multishot(s, fd, events);
  io_uring_sqe_set_data64(s, token);
}

void Io::connect(int fd, const Endpoint& to, Token token) {
  sockaddr_storage& a = impl_->addresses.emplace_back();
  socklen_t size = to.to_sockaddr(&a);
  io_uring_sqe* s = impl_->entry();
  io_uring_prep_connect(s, fd, reinterpret_cast<sockaddr*>(&a), size);
  io_uring_sqe_set_data64(s, token);
}

void Io::cancel(Token token) {
  io_uring_sqe* s = impl_->entry();
  io_uring_prep_cancel64(s, token, 0);
  io_uring_sqe_set_data64(s, 0);
}

void Io::run(uint64_t until_ns, const std::function<void(const Completion&)>& on_completion) {
  uint64_t now = now_ns();
  uint64_t left = until_ns > now ? until_ns - now : 0;
  __kernel_timespec timeout{static_cast<long long>(left / 1'000'000'000),
                            static_cast<long long>(left % 1'000'000'000)};
  io_uring_cqe* cqe = nullptr;
  int r = io_uring_submit_and_wait_timeout(&impl_->ring, &cqe, left ? 1 : 0, &timeout, nullptr);
  if (left == 0) io_uring_get_events(&impl_->ring);
  PENSTOCK_ASSERT(r >= 0 || r == -ETIME || r == -EINTR || r == -EAGAIN || r == -EBUSY);
  if (io_uring_sq_ready(&impl_->ring) == 0) impl_->addresses.clear();

  // Reap all, then call back: a callback may need the queue's room for what it starts.
  impl_->reaped.clear();
  unsigned head, count = 0;
  io_uring_for_each_cqe(&impl_->ring, head, cqe) {
    count++;
    if (cqe->user_data)
      impl_->reaped.push_back({cqe->user_data, cqe->res, (cqe->flags & IORING_CQE_F_MORE) != 0});
  }
  io_uring_cq_advance(&impl_->ring, count);
  for (const Completion& c : impl_->reaped) on_completion(c);
}

const std::string& Io::description() const {
  return impl_->description;
}

}  // namespace penstock::io
