// SPDX-License-Identifier: Apache-2.0
#include "loop.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <ctime>

#include "base/assert.h"

namespace penstock::bench {
namespace {

constexpr size_t kSendBytes = 256 << 10;   // at once; of it the kernel takes what fits
constexpr size_t kReceiveBytes = 1 << 30;  // all there is
constexpr int64_t kTickNs = 1'000'000;
constexpr int kWaitMs = 50;  // until stop() is noticed
constexpr int kEvents = 64;
const std::array<char, kSendBytes> kBytes{};

// REQUIRES: no other thread writes it
void add_to(std::atomic<uint64_t>& counter, uint64_t n) {
  counter.store(counter.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
}

}  // namespace

uint64_t now_ns() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(t.tv_nsec);
}

void set_options(int fd) {
  int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

Loop::Loop()
    : epoll_(epoll_create1(EPOLL_CLOEXEC)),
      timer_(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)) {
  PENSTOCK_ASSERT(epoll_.valid() && timer_.valid());
  add(timer_.get(), EPOLLIN, nullptr);
}

void Loop::add(int fd, uint32_t events, Watched* watched) {
  epoll_event event{.events = events, .data = {.ptr = watched}};
  PENSTOCK_ASSERT(epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0);
}

void Loop::change(int fd, uint32_t events, Watched* watched) {
  epoll_event event{.events = events, .data = {.ptr = watched}};
  PENSTOCK_ASSERT(epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event) == 0);
}

void Loop::tick(Flow* flow) {
  if (ticked_.empty()) {
    const itimerspec every{.it_interval = {0, kTickNs}, .it_value = {0, kTickNs}};
    timerfd_settime(timer_.get(), 0, &every, nullptr);
  }
  ticked_.push_back(flow);
}

void Loop::forget(Flow* flow) {
  std::erase(ticked_, flow);
  if (ticked_.empty()) {
    const itimerspec never{};
    timerfd_settime(timer_.get(), 0, &never, nullptr);
  }
}

void Loop::count_latency(uint64_t began_ns) {
  if (measuring.load(std::memory_order_relaxed))
    latencies_ns.push_back(static_cast<uint32_t>(std::min<uint64_t>(now_ns() - began_ns, UINT32_MAX)));
}

void Loop::run() {
  epoll_event ready[kEvents];
  while (!stopping_.load(std::memory_order_relaxed)) {
    const int n = epoll_wait(epoll_.get(), ready, kEvents, kWaitMs);
    bool ticks = false;
    for (int i = 0; i < n; ++i) {
      if (auto* watched = static_cast<Watched*>(ready[i].data.ptr))
        watched->on_ready(ready[i].events);
      else
        ticks = true;
    }
    if (!ticks) continue;
    uint64_t missed = 0;
    if (read(timer_.get(), &missed, sizeof missed) < 0) continue;
    for (size_t i = ticked_.size(); i > 0; --i) ticked_[i - 1]->on_tick();  // which may remove it
  }
}

Flow::~Flow() {
  if (ticked_) loop_.forget(this);
}

void Flow::watch() {
  loop_.add(socket_.get(), began_ ? EPOLLOUT : EPOLLIN, this);
}

bool Flow::read_request() {
  auto* at = reinterpret_cast<char*>(&asked_) + request_read_;
  const ssize_t n = recv(socket_.get(), at, sizeof asked_ - request_read_, 0);
  if (n < 0 && errno == EAGAIN) return false;
  if (n > 0) request_read_ += static_cast<uint32_t>(n);
  if (n > 0 && request_read_ < sizeof asked_) return false;
  if (n > 0 && asked_.magic == Request{}.magic && asked_.role <= Role::ping) return true;
  end();
  return false;
}

// On the loop's own thread: the client's flows are watched for EPOLLOUT first, which a new socket has at
// once.
void Flow::begin() {
  began_ = true;
  began_ns_ = now_ns();
  const bool paces = asked_.role == Role::paced || asked_.role == Role::slow;
  const bool sends = asked_.role == Role::source;
  loop_.change(socket_.get(), sends ? EPOLLOUT : paces ? EPOLLRDHUP : EPOLLIN, this);
  if (paces) {
    ticked_ = true;
    loop_.tick(this);
  }
  if (asked_.role == Role::ping) send_ping();
}

void Flow::send_ping() {
  round_bytes_ = 0;
  began_ns_ = now_ns();
  send(socket_.get(), kBytes.data(), asked_.size, MSG_NOSIGNAL);  // at most 16 KiB into an empty buffer
}

bool Flow::move(int64_t result) {
  if (result > 0) add_to(loop_.moved_bytes, static_cast<uint64_t>(result));
  if (result > 0 || (result < 0 && errno == EAGAIN)) return true;
  end();
  return false;
}

void Flow::end() {
  add_to(loop_.ended, 1);
  delete this;
}

void Flow::on_ready(uint32_t events) {
  if (!began_ns_) {
    if (began_ || read_request()) begin();
    return;
  }
  switch (asked_.role) {
    case Role::sink:
      move(recv(socket_.get(), nullptr, kReceiveBytes, MSG_TRUNC));
      return;
    case Role::source:
      move(send(socket_.get(), kBytes.data(), kBytes.size(), MSG_NOSIGNAL));
      return;
    case Role::paced:
    case Role::slow:
      if (events & (EPOLLHUP | EPOLLERR | EPOLLRDHUP)) end();
      return;
    case Role::echo:
    case Role::ping: {
      const ssize_t n = recv(socket_.get(), nullptr, asked_.size - round_bytes_, MSG_TRUNC);
      if (!move(n) || n < 0) return;
      round_bytes_ += static_cast<uint64_t>(n);
      if (round_bytes_ < asked_.size) return;
      if (asked_.role == Role::ping) {
        loop_.count_latency(began_ns_);
        send_ping();
      } else {
        round_bytes_ = 0;
        send(socket_.get(), kBytes.data(), asked_.size, MSG_NOSIGNAL);
      }
      return;
    }
  }
}

uint64_t Flow::due_bytes() const {
  const auto allowed = static_cast<uint64_t>(static_cast<double>(asked_.rate) *
                                             static_cast<double>(now_ns() - began_ns_) / 1e9);
  return allowed > paced_bytes_ ? allowed - paced_bytes_ : 0;
}

void Flow::on_tick() {
  // What is due by now, and no more: while it is sent, more becomes due.
  for (uint64_t due = due_bytes(); due > 0;) {
    const int64_t n = asked_.role == Role::paced ? send(socket_.get(), kBytes.data(),
                                                        std::min<uint64_t>(due, kSendBytes), MSG_NOSIGNAL)
                                                 : recv(socket_.get(), nullptr, due, MSG_TRUNC);
    if (!move(n) || n < 0) return;
    paced_bytes_ += static_cast<uint64_t>(n);
    due -= static_cast<uint64_t>(n);
  }
}

}  // namespace penstock::bench
