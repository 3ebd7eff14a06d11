// SPDX-License-Identifier: Apache-2.0
// io/epoll.cc: Io by epoll, for hosts that refuse io_uring.
//
// epoll knows a descriptor once, operations may be several on it. So each descriptor has a list of them, and
// is registered, edge-triggered, for the union of what they wait for:
//   - before each wait, sync() brings the registration in line. An operation that is new since then has it
//     modified even if the union stays the same: the kernel then looks again and reports what already holds,
//     whoever has consumed the edge.
//   - all events of a wait are matched with the operations before anything is called back. What no operation
//     waits for any more is dropped, and sync() takes it out of the registration.
//   - POLLRDHUP and POLLHUP never cease, and every look reports them: each operation hears them once.
//   - the registration ends with the last operation, before that one's completion is delivered: the owner may
//     then close the descriptor, and its number come back.
#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/assert.h"
#include "base/fd.h"
#include "io/twins.h"

namespace penstock::io {
namespace {

constexpr size_t kEventsPerTurn = 512;
constexpr int kAcceptsPerTurn = 64;  // of one listener
constexpr uint32_t kAlways = EPOLLERR | EPOLLHUP, kForEver = EPOLLRDHUP | EPOLLHUP;

// Older C libraries have no name for it (glibc before 2.35).
int epoll_pwait2(int epoll, epoll_event* events, int events_max, const timespec& timeout) {
  return static_cast<int>(syscall(SYS_epoll_pwait2, epoll, events, events_max, &timeout, nullptr, 0));
}

class Epoll : public Io {
 public:
  Status set_up(const std::string& why) {
    epoll_.reset(epoll_create1(EPOLL_CLOEXEC));
    if (!epoll_.valid()) return Error{fmt::format("epoll_create1: {}", strerror(errno))};
    refusal_ = why;
    description_ = fmt::format("epoll ({})", why);
    const timespec at_once{};
    epoll_event none;
    if (epoll_pwait2(epoll_.get(), &none, 1, at_once) < 0 && errno != EINTR) {
      description_ += fmt::format(", deadlines in ms (epoll_pwait2: {})", strerror(errno));
      in_ms_ = true;
    }
    return Nothing{};
  }

  void accept(int listener, Token token) override { begin(listener, {token, Kind::accept, EPOLLIN}); }
  void poll(int fd, uint32_t events, Token token) override { begin(fd, {token, Kind::once, events}); }
  void poll_each(int fd, uint32_t events, Token token) override { begin(fd, {token, Kind::each, events}); }

  void connect(int fd, const Endpoint& to, Token token) override {
    sockaddr_storage a;
    socklen_t size = to.to_sockaddr(&a);
    int error = ::connect(fd, reinterpret_cast<sockaddr*>(&a), size) ? errno : 0;
    if (error == EINPROGRESS || error == EINTR) return begin(fd, {token, Kind::connect, EPOLLOUT});
    ended_.push_back({token, -error, false});
  }

  void cancel(Token token) override {
    auto found = fd_of_.find(token);
    if (found == fd_of_.end()) return;  // it was faster
    int fd = found->second;
    Descriptor& d = descriptors_[static_cast<size_t>(fd)];
    auto op = std::find_if(d.operations.begin(), d.operations.end(),
                           [&](const Operation& o) { return o.token == token; });
    end(fd, op, -ECANCELED);
    settle(fd);
  }

  void run(uint64_t until_ns, const std::function<void(const Completion&)>& on_completion) override {
    for (int fd : unsettled_) sync(fd);
    unsettled_.clear();
    int count = wait(ended_.empty() ? until_ns : 0);
    for (int i = 0; i < count; i++) match(events_[i].data.fd, events_[i].events);
    delivering_.clear();
    delivering_.swap(ended_);
    for (const Completion& c : delivering_) on_completion(c);
  }

 private:
  enum class Kind { accept, once, each, connect };
  struct Operation {
    Token token;
    Kind kind;
    uint32_t events;
    uint32_t told = 0;  // of kForEver
  };
  struct Descriptor {
    std::vector<Operation> operations;
    uint32_t registered = 0;  // 0: not at all
    bool look = false;        // say what holds already: an operation began, or more may be accepted
    bool unsettled = false;   // in unsettled_
  };

  void begin(int fd, const Operation& operation) {
    if (fd < 0) return ended_.push_back({operation.token, -EBADF, false});
    if (static_cast<size_t>(fd) >= descriptors_.size()) descriptors_.resize(static_cast<size_t>(fd) + 1);
    bool added = fd_of_.emplace(operation.token, fd).second;
    PENSTOCK_ASSERT(added);
    Descriptor& d = descriptors_[static_cast<size_t>(fd)];
    d.operations.push_back(operation);
    d.look = true;
    settle(fd);
  }

  std::vector<Operation>::iterator end(int fd, std::vector<Operation>::iterator op, int result) {
    ended_.push_back({op->token, result, false});
    fd_of_.erase(op->token);
    return descriptors_[static_cast<size_t>(fd)].operations.erase(op);
  }

  // After operations of `fd` have come or gone.
  void settle(int fd) {
    Descriptor& d = descriptors_[static_cast<size_t>(fd)];
    if (d.operations.empty()) {
      if (d.registered) epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
      d.registered = 0;
    } else if (!std::exchange(d.unsettled, true)) {
      unsettled_.push_back(fd);
    }
  }

  void sync(int fd) {
    Descriptor& d = descriptors_[static_cast<size_t>(fd)];
    d.unsettled = false;
    bool look = std::exchange(d.look, false);
    if (d.operations.empty()) return;
    uint32_t wanted = EPOLLET | kAlways;
    for (const Operation& op : d.operations) wanted |= op.events & ~op.told;
    // A FIN comes once: that nobody waits for it any more is not worth a call.
    if (!look && ((wanted ^ d.registered) & ~EPOLLRDHUP) == 0) return;
    epoll_event e{wanted, {.fd = fd}};
    if (epoll_ctl(epoll_.get(), d.registered ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &e) == 0) {
      d.registered = wanted;
      return;
    }
    int error = errno;
    while (!d.operations.empty()) end(fd, d.operations.begin(), -error);
    settle(fd);
  }

  // How many of events_ are filled.
  int wait(uint64_t until_ns) {
    uint64_t now = now_ns(), left = until_ns > now ? until_ns - now : 0;
    int count;
    if (in_ms_) {
      uint64_t ms = std::min<uint64_t>(left / 1'000'000 + (left % 1'000'000 != 0), INT_MAX);
      count = epoll_wait(epoll_.get(), events_, kEventsPerTurn, static_cast<int>(ms));
    } else {
      const timespec timeout{static_cast<time_t>(left / 1'000'000'000),
                             static_cast<long>(left % 1'000'000'000)};
      count = epoll_pwait2(epoll_.get(), events_, kEventsPerTurn, timeout);
    }
    PENSTOCK_ASSERT(count >= 0 || errno == EINTR);
    return std::max(count, 0);
  }

  void match(int fd, uint32_t events) {
    Descriptor& d = descriptors_[static_cast<size_t>(fd)];
    for (auto op = d.operations.begin(); op != d.operations.end();) {
      uint32_t fresh = events & (op->events | kAlways) & ~op->told;
      int result = static_cast<int>(fresh);
      bool over = true;
      if (!fresh) {
        over = false;
      } else if (op->kind == Kind::accept) {
        result = accept_some(d, fd, op->token);
        over = result < 0;
      } else if (op->kind == Kind::each) {
        ended_.push_back({op->token, result, true});
        op->told |= fresh & kForEver;
        over = false;
      } else if (op->kind == Kind::connect) {
        socklen_t size = sizeof result;
        if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &result, &size)) result = errno;
        result = -result;
      }
      op = over ? end(fd, op, result) : op + 1;
    }
    settle(fd);
  }

  // 0, or the -errno that ends it.
  int accept_some(Descriptor& d, int listener, Token token) {
    for (int i = 0; i < kAcceptsPerTurn;) {
      int fd = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
      if (fd >= 0) {
        ended_.push_back({token, fd, true});
        i++;
      } else if (errno == EAGAIN) {
        return 0;
      } else if (errno != EINTR) {
        return -errno;
      }
    }
    d.look = true;
    return 0;
  }

  Fd epoll_;
  bool in_ms_ = false;
  std::vector<Descriptor> descriptors_;  // by number
  std::unordered_map<Token, int> fd_of_;
  std::vector<int> unsettled_;  // descriptors whose registration may not be what it should
  epoll_event events_[kEventsPerTurn];
  std::vector<Completion> ended_, delivering_;
};

}  // namespace

Result<std::unique_ptr<Io>> open_epoll(const std::string& refusal) {
  auto epoll = std::make_unique<Epoll>();
  if (auto s = epoll->set_up(refusal); !s) return s.error();
  return std::unique_ptr<Io>(std::move(epoll));
}

}  // namespace penstock::io
