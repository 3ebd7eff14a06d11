// SPDX-License-Identifier: Apache-2.0
#include "loop.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

namespace penstock::torture {
namespace {

constexpr int kEventsPerTurn = 256;
constexpr int kClientsPerTurn = 16;
constexpr int64_t kLookEveryMs = 200;
constexpr int64_t kCloseHungAfterMs = 1000;
constexpr uint32_t kEvents = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;

void set(int fd, int level, int name, int value) {
  setsockopt(fd, level, name, &value, sizeof value);
}

void prepare(int fd, const LifePlan& plan, Side side) {
  const EndPlan& end = plan.end(side);
  if (end.no_delay) set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  if (end.send_buffer_bytes > 0) set(fd, SOL_SOCKET, SO_SNDBUF, end.send_buffer_bytes);
  if (end.receive_buffer_bytes > 0) set(fd, SOL_SOCKET, SO_RCVBUF, end.receive_buffer_bytes);
  // A RST beyond what a full receive buffer let in is ignored and never repeated: TCP's own way out is to
  // ask. A proxy's socket answers, so this hides none of its mistakes.
  if (plan.end(other(side)).reset) {
    set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 5);
    set(fd, IPPROTO_TCP, TCP_KEEPINTVL, 1);
  }
}

// ::1 has one address, so the ports below the kernel's own choice are used in turn: two lives of one port lie
// far apart.
void bind_port(int fd, uint64_t turn) {
  constexpr uint16_t kFirst = 10'240, kPorts = 32'768 - kFirst;  // net.ipv4.ip_local_port_range
  constexpr int kTries = 100;                                    // some are others'
  set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
  for (int i = 0; i < kTries; ++i) {
    Endpoint source{*IpAddress::parse("::1")};
    source.port = static_cast<uint16_t>(kFirst + (turn + static_cast<uint64_t>(i)) % kPorts);
    sockaddr_storage address;
    const socklen_t length = source.to_sockaddr(&address);
    if (bind(fd, reinterpret_cast<sockaddr*>(&address), length) == 0) return;
  }
}

void bind_source(int fd, const Cidr& prefix, uint64_t turn) {
  const int host_bits = std::min(128 - prefix.prefix_bits, 32);
  Endpoint source{prefix.address};
  uint32_t low;
  std::memcpy(&low, &source.address.bytes[12], sizeof low);
  const auto host = static_cast<uint32_t>((turn + 1) & ((uint64_t{1} << host_bits) - 1));
  low = htonl(ntohl(low) | host);
  std::memcpy(&source.address.bytes[12], &low, sizeof low);
  sockaddr_storage address;
  const socklen_t length = source.to_sockaddr(&address);
  set(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1);
  bind(fd, reinterpret_cast<sockaddr*>(&address), length);  // where it fails, connect() tells
}

}  // namespace

struct Loop::Runner : Watched {
  Runner(Loop& owner, Life& life, Side side, int fd) : loop(owner), run(life, side, fd) {}
  void on_events(uint32_t events) override {
    if (!dead) loop.drive(*this, run.on_events(events));
  }
  Loop& loop;
  EndRun run;
  bool queued = false, dead = false;
  std::multimap<int64_t, Runner*>::iterator timer;
  std::list<Runner>::iterator self;
};

Loop::Loop(const Options& options, Registry& registry, Tally& tally, Role role)
    : options_(options),
      registry_(registry),
      tally_(tally),
      role_(role),
      epoll_(epoll_create1(EPOLL_CLOEXEC)),
      acceptor_(options, registry, epoll_.get(), [this](const Acceptor::Guest& guest) { welcome(guest); }) {}

Loop::~Loop() {
  for (const Closing& c : closing_) close(c.fd);
}

Loop::Runner& Loop::add(Life& life, Side side, int fd) {
  Runner& runner = runners_.emplace_back(*this, life, side, fd);
  runner.timer = timers_.end();
  runner.self = std::prev(runners_.end());
  return runner;
}

bool Loop::start_clients() {
  if (role_ == Role::first) {
    if (Life* probe = registry_.begin_probe()) start_client(*probe);
  }
  for (int i = 0; i < kClientsPerTurn; ++i) {
    Life* life = registry_.begin();
    if (life == nullptr) return false;
    start_client(*life);
  }
  return true;
}

void Loop::start_client(Life& life) {
  sockaddr_storage address;
  socklen_t length = life.to.to_sockaddr(&address);
  const int fd = socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  prepare(fd, life.plan, Side::client);
  if (options_.source && life.to.address.is_v4() == options_.source->address.is_v4()) {
    bind_source(fd, *options_.source, life.index);
  } else if (life.to.address == *IpAddress::parse("::1")) {
    bind_port(fd, registry_.next_port());
  }
  Runner& runner = add(life, Side::client, fd);
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), length) != 0 && errno != EINPROGRESS) {
    runner.run.report().error = errno;
    return finish(runner);
  }
  length = sizeof address;
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length);
  registry_.known_as(life, Endpoint::from_sockaddr(reinterpret_cast<sockaddr*>(&address), length).value());
  watch(epoll_.get(), EPOLL_CTL_ADD, fd, kEvents, &runner);
  // On loopback the handshake is over by now: what goes out at once is there before a proxy has dialled.
  length = sizeof address;
  const bool connected = getpeername(fd, reinterpret_cast<sockaddr*>(&address), &length) == 0;
  if (connected) drive(runner, runner.run.on_events(EPOLLOUT));
}

void Loop::welcome(const Acceptor::Guest& guest) {
  prepare(guest.fd, guest.life->plan, Side::server);
  Runner& runner = add(*guest.life, Side::server, guest.fd);
  watch(epoll_.get(), EPOLL_CTL_MOD, guest.fd, kEvents, &runner);
  runner.run.report().wrong_header = guest.wrong_header;
  runner.run.report().remark = guest.remark;
  runner.run.take_early(guest.early);
  drive(runner, runner.run.go_on());
}

void Loop::drive(Runner& runner, EndRun::After after) {
  (runner.run.side() == Side::server ? tally_.bytes_up : tally_.bytes_down) += runner.run.take_received();
  if (runner.timer != timers_.end()) {
    timers_.erase(runner.timer);
    runner.timer = timers_.end();
  }
  switch (after) {
    case EndRun::After::wait:
      if (const int64_t at = runner.run.wake_at_ms(); at != INT64_MAX) {
        runner.timer = timers_.emplace(at, &runner);
      }
      return;
    case EndRun::After::again:
      if (!std::exchange(runner.queued, true)) ready_.push_back(&runner);
      return;
    case EndRun::After::over:
      return finish(runner);
  }
}

void Loop::finish(Runner& runner) {
  EndRun& run = runner.run;
  raise_to(tally_.stalled_bytes_max, run.stalled_bytes());
  const EndReport& report = run.report();
  if (report.reset_sent || report.wrong_at) {
    const linger now{1, 0};
    setsockopt(run.fd(), SOL_SOCKET, SO_LINGER, &now, sizeof now);
  }
  if (run.life().hung) {
    epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, run.fd(), nullptr);
    closing_.push_back({now_ms() + kCloseHungAfterMs, run.fd()});
  } else {
    close(run.fd());
  }
  registry_.end_done(run.life(), run.side(), std::move(run.report()));
  if (runner.timer != timers_.end()) timers_.erase(runner.timer);
  runner.dead = true;
  dead_.splice(dead_.end(), runners_, runner.self);
}

void Loop::run_ready() {
  std::vector<Runner*> now;
  now.swap(ready_);
  for (Runner* runner : now) {
    runner->queued = false;
    if (!runner->dead) drive(*runner, runner->run.go_on());
  }
}

void Loop::run_timers() {
  const int64_t now = now_ms();
  while (!timers_.empty() && timers_.begin()->first <= now) {
    Runner& runner = *timers_.begin()->second;
    drive(runner, runner.run.go_on());
  }
}

void Loop::look_around() {
  const int64_t now = now_ms();
  if (now < next_look_ms_) return;
  next_look_ms_ = now + kLookEveryMs;
  for (auto next = runners_.begin(); next != runners_.end();) {
    Runner& runner = *next++;
    if (!runner.run.hangs(options_.hang_ms)) continue;
    runner.run.give_up();
    finish(runner);
  }
  std::erase_if(closing_, [&](const Closing& c) { return c.at_ms <= now && close(c.fd) == 0; });
  acceptor_.drop_silent(now);
  if (role_ == Role::first) registry_.reap(now);
}

int Loop::wait_ms(bool hurry) const {
  constexpr int64_t kAtMostMs = 20;  // lives that end elsewhere, probes and the ramp call for new clients
  if (hurry || !ready_.empty()) return 0;
  if (asking_) return 1;
  if (timers_.empty()) return kAtMostMs;
  return static_cast<int>(std::clamp<int64_t>(timers_.begin()->first - now_ms(), 0, kAtMostMs));
}

void Loop::run() {
  epoll_event events[kEventsPerTurn];
  while (!registry_.finished()) {
    const bool hurry = start_clients();
    const int count = epoll_wait(epoll_.get(), events, kEventsPerTurn, wait_ms(hurry));
    for (int i = 0; i < count; ++i) static_cast<Watched*>(events[i].data.ptr)->on_events(events[i].events);
    run_ready();
    run_timers();
    asking_ = acceptor_.ask_again();
    look_around();
    dead_.clear();
    acceptor_.free_dead();
  }
}

}  // namespace penstock::torture
