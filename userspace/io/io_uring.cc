// SPDX-License-Identifier: Apache-2.0
// io/io_uring.cc: Io by io_uring: an operation is a submission, the kernel keeps the rest.
#include <fmt/format.h>
#include <liburing.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <deque>
#include <vector>

#include "base/assert.h"
#include "base/fd.h"
#include "io/twins.h"

namespace penstock::io {
namespace {

constexpr uint64_t kTrialNs = 1'000'000'000;  // for what completes at once

// What a host may refuse, and what its operator can look for.
std::string refused(const char* what, int error) {
  const char* hint = error == EPERM    ? ": kernel.io_uring_disabled, or a seccomp profile"
                     : error == ENOSYS ? ": a kernel without it, or a seccomp profile"
                                       : "";
  return fmt::format("{}: {}{}", what, strerror(error), hint);
}

class IoUring : public Io {
 public:
  ~IoUring() override {
    if (ring_.ring_fd >= 0) io_uring_queue_exit(&ring_);
  }

  Status set_up(unsigned entries) {
    const unsigned wanted[] = {IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
                               IORING_SETUP_COOP_TASKRUN, 0};
    const char* names[] = {"single issuer, deferred task work", "cooperative task work", "plain"};
    int r = -EINVAL;
    for (int i = 0; i < 3 && r == -EINVAL; i++) {
      io_uring_params p{};
      p.flags = wanted[i] | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP;
      p.cq_entries = 16 * entries;
      r = io_uring_queue_init_params(entries, &ring_, &p);
      description_ = fmt::format("io_uring ({})", names[i]);
    }
    if (r == 0) return Nothing{};
    ring_.ring_fd = -1;
    return Error{refused("io_uring_setup", -r)};
  }

  void accept(int listener, Token token) override {
    io_uring_sqe* s = entry();
    io_uring_prep_multishot_accept(s, listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    io_uring_sqe_set_data64(s, token);
  }

  void poll(int fd, uint32_t events, Token token) override {
    io_uring_sqe* s = entry();
    io_uring_prep_poll_add(s, fd, events);
    io_uring_sqe_set_data64(s, token);
  }

  void poll_each(int fd, uint32_t events, Token token) override {
    io_uring_sqe* s = entry();
    io_uring_prep_poll_multishot(s, fd, events);
    io_uring_sqe_set_data64(s, token);
  }

  void connect(int fd, const Endpoint& to, Token token) override {
    sockaddr_storage& a = addresses_.emplace_back();
    socklen_t size = to.to_sockaddr(&a);
    submit_connect(fd, a, size, token);
  }

  void cancel(Token token) override {
    io_uring_sqe* s = entry();
    io_uring_prep_cancel64(s, token, 0);
    io_uring_sqe_set_data64(s, 0);
  }

  void run(uint64_t until_ns, const std::function<void(const Completion&)>& on_completion) override {
    int r = reap(until_ns);
    PENSTOCK_ASSERT(r >= 0 || r == -ETIME || r == -EINTR || r == -EAGAIN || r == -EBUSY);
    for (const Completion& c : reaped_) on_completion(c);
  }

  Status try_out();

 private:
  io_uring_sqe* entry() {
    io_uring_sqe* s = io_uring_get_sqe(&ring_);
    while (!s) {
      int r = io_uring_submit(&ring_);
      PENSTOCK_ASSERT(r >= 0 || r == -EAGAIN || r == -EBUSY || r == -EINTR);
      s = io_uring_get_sqe(&ring_);
    }
    return s;
  }

  void submit_connect(int fd, const sockaddr_storage& to, socklen_t size, Token token) {
    io_uring_sqe* s = entry();
    io_uring_prep_connect(s, fd, reinterpret_cast<const sockaddr*>(&to), size);
    io_uring_sqe_set_data64(s, token);
  }

  // Fills reaped_ with all there is: a callback may need the queue's room for what it starts.
  int reap(uint64_t until_ns) {
    uint64_t now = now_ns();
    uint64_t left = until_ns > now ? until_ns - now : 0;
    __kernel_timespec timeout{static_cast<long long>(left / 1'000'000'000),
                              static_cast<long long>(left % 1'000'000'000)};
    io_uring_cqe* cqe = nullptr;
    int r = io_uring_submit_and_wait_timeout(&ring_, &cqe, left ? 1 : 0, &timeout, nullptr);
    if (left == 0) io_uring_get_events(&ring_);
    if (io_uring_sq_ready(&ring_) == 0) addresses_.clear();

    reaped_.clear();
    unsigned head, count = 0;
    io_uring_for_each_cqe(&ring_, head, cqe) {
      count++;
      if (cqe->user_data)
        reaped_.push_back({cqe->user_data, cqe->res, (cqe->flags & IORING_CQE_F_MORE) != 0});
    }
    io_uring_cq_advance(&ring_, count);
    return r;
  }

  io_uring ring_{.ring_fd = -1};
  std::deque<sockaddr_storage> addresses_;  // read by the kernel at submission
  std::vector<Completion> reaped_;
};

// Every kind of operation, on sockets that need no network: a profile may let io_uring_setup pass and refuse
// io_uring_enter, a kernel may know the ring but not the kinds that complete many times.
Status IoUring::try_out() {
  constexpr Token kAccept = 1, kEach = 2, kConnect = 3, kPoll = 4;
  Fd listener(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  Fd event(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  sockaddr_storage address{};
  address.ss_family = AF_UNIX;
  socklen_t size = sizeof address.ss_family;  // no more: the kernel chooses a name
  if (!event.valid() || bind(listener.get(), reinterpret_cast<sockaddr*>(&address), size) ||
      listen(listener.get(), 8))
    return Error{fmt::format("nothing to try io_uring with: {}", strerror(errno))};
  size = sizeof address;
  getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &size);

  std::string refusal;
  std::vector<Completion> arrived;
  // The next completion of an operation is as it should be. Of accept any descriptor is.
  auto completes = [&](const char* what, Token token, int result, bool more) {
    for (const uint64_t until_ns = now_ns() + kTrialNs; refusal.empty();) {
      for (auto c = arrived.begin(); c != arrived.end(); ++c) {
        if (c->token != token) continue;
        Fd accepted(token == kAccept ? c->result : -1);
        bool as_wanted = c->more == more && (accepted.valid() ? result == 0 : c->result == result);
        if (!as_wanted) refusal = refused(what, c->result < 0 ? -c->result : ENOTSUP);
        arrived.erase(c);
        return as_wanted;
      }
      int r = reap(until_ns);
      if (r < 0 && r != -ETIME && r != -EINTR) refusal = refused("io_uring_enter", -r);
      arrived.insert(arrived.end(), reaped_.begin(), reaped_.end());
      if (reaped_.empty() && now_ns() >= until_ns && refusal.empty()) refusal = refused(what, ETIME);
    }
    return false;
  };
  accept(listener.get(), kAccept);
  poll_each(event.get(), POLLIN, kEach);
  for (int i = 0; i < 2; i++) {
    Fd client(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    submit_connect(client.get(), address, size, kConnect);
    if (!completes("IORING_OP_CONNECT", kConnect, 0, false) ||
        !completes("multishot IORING_OP_ACCEPT", kAccept, 0, true))
      return Error{refusal};
    eventfd_write(event.get(), 1);
    if (!completes("multishot IORING_OP_POLL_ADD", kEach, POLLIN, true)) return Error{refusal};
  }
  poll(event.get(), POLLIN, kPoll);
  if (!completes("IORING_OP_POLL_ADD", kPoll, POLLIN, false)) return Error{refusal};
  cancel(kAccept);
  cancel(kEach);
  if (!completes("IORING_OP_ASYNC_CANCEL", kAccept, -ECANCELED, false) ||
      !completes("IORING_OP_ASYNC_CANCEL", kEach, -ECANCELED, false))
    return Error{refusal};
  return Nothing{};
}

}  // namespace

Result<std::unique_ptr<Io>> open_io_uring(unsigned entries) {
  auto ring = std::make_unique<IoUring>();
  if (auto s = ring->set_up(entries); !s) return s.error();
  if (auto s = ring->try_out(); !s) return s.error();
  return std::unique_ptr<Io>(std::move(ring));
}

}  // namespace penstock::io
