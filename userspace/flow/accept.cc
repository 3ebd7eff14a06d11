// SPDX-License-Identifier: Apache-2.0
// flow/accept.cc: a connection becomes a flow, or is refused with a reason.
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/log.h"
#include "flow/worker.h"

namespace penstock::flow {
namespace {

constexpr uint64_t kAcceptRetryNs = 100'000'000;

// Who connected, also when it has gone again: getpeername(2) would not know. SO_PEERNAME takes no more room
// than it fills.
Endpoint peer_of(int fd) {
  sockaddr_storage a;
  for (socklen_t size : {sizeof(sockaddr_in6), sizeof(sockaddr_in)})
    if (getsockopt(fd, SOL_SOCKET, SO_PEERNAME, &a, &size) == 0)
      return Endpoint::from_sockaddr(reinterpret_cast<sockaddr*>(&a), size).value_or(Endpoint{});
  return {};
}

bool covers(const std::vector<Cidr>& prefixes, const IpAddress& address) {
  return std::any_of(prefixes.begin(), prefixes.end(),
                     [&](const Cidr& prefix) { return prefix.contains(address); });
}

Endpoint endpoint_of(int fd, int (*which)(int, sockaddr*, socklen_t*)) {
  sockaddr_storage a;
  socklen_t size = sizeof a;
  if (which(fd, reinterpret_cast<sockaddr*>(&a), &size)) return {};
  return Endpoint::from_sockaddr(reinterpret_cast<sockaddr*>(&a), size).value_or(Endpoint{});
}

uint64_t cookie_of(int fd) {
  uint64_t cookie = 0;
  socklen_t size = sizeof cookie;
  getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &size);
  return cookie;
}

}  // namespace

void Worker::begin_accept(uint32_t listener_socket) {
  io_->accept(listeners_[listener_socket].fd,
              static_cast<uint64_t>(Op::accept) | static_cast<uint64_t>(listener_socket) << 8);
}

void Worker::on_accepted(uint32_t listener_socket, const io::Completion& c) {
  const ListenerSocket& l = listeners_[listener_socket];
  if (c.result < 0 && c.result != -ECANCELED && accepting_) {
    // Out of descriptors or memory: the queue stays, we come back.
    count(shared_.statistics.totals->accept_failed);
    if (accept_error_ != -c.result) log::warn("cannot accept: {}; trying again", strerror(-c.result));
    accept_error_ = -c.result;
  }
  if (!c.more && accepting_ && !stopping_) {
    if (c.result >= 0) {
      begin_accept(listener_socket);
    } else {
      accept_again_ns_[listener_socket] = now_ns_ + kAcceptRetryNs;
    }
  }
  if (c.result < 0) return;
  accept_error_ = 0;
  Worker& idlest = least_loaded();
  if (&idlest != this && idlest.give(c.result, l)) return;
  live_++;
  begin_flow(c.result, l);
}

// SO_REUSEPORT spreads connections by their hash: of eight, six may come to one thread of two.
Worker& Worker::least_loaded() {
  Worker* least = this;
  for (auto& w : shared_.workers)
    if (w->live_ < least->live_) least = w.get();
  return live_ > least->live_ + live_ / 8 ? *least : *this;
}

bool Worker::give(int fd, const ListenerSocket& l) {
  {
    std::lock_guard lock(inbox_mutex_);
    if (over_) return false;
    live_++;  // now: others look at it before the task has run
    inbox_.push_back([=](Worker& w) { w.begin_flow(fd, l); });
  }
  wake();
  return true;
}

// REQUIRES: it is counted in live_.
void Worker::begin_flow(int fd, const ListenerSocket& l) {
  if (!accepting_ || stopping_) return refuse(fd, l, CloseReason::shutdown);
  if (shared_.held_bytes() > shared_.memory_limit_bytes / 16 * 15)
    return refuse(fd, l, CloseReason::memory_limit);
  const config::AcceptProxy& accept_proxy = l.plan->listener(l.listener).accept_proxy;
  Endpoint client = endpoint_of(fd, getpeername);
  if (client.port == 0) {  // gone before we looked
    bool proxy = covers(accept_proxy.from, peer_of(fd).address);
    return refuse(fd, l, proxy ? CloseReason::proxy_probe : CloseReason::client_reset);
  }
  bool trusted = covers(accept_proxy.from, client.address);
  bool stranger = !accept_proxy.from.empty() && !trusted;
  if (stranger && !accept_proxy.others_direct) return refuse(fd, l, CloseReason::proxy_not_trusted);
  uint32_t slot;
  {
    std::lock_guard lock(shared_.slots_mutex);
    if (shared_.free_slots.empty()) {
      slot = UINT32_MAX;
    } else {
      slot = shared_.free_slots.back();
      shared_.free_slots.pop_back();
    }
  }
  if (slot == UINT32_MAX) return refuse(fd, l, CloseReason::max_flows);

  for (uint32_t used = shared_.slots_used;
       used <= slot && !shared_.slots_used.compare_exchange_weak(used, slot + 1);) {
  }
  FlowRecord& r = (*shared_.table)[slot];
  uint32_t generation = r.generation + 1;
  new (&r) FlowRecord;  // a free record belongs to whoever took its slot
  r.generation = generation;
  r.fd[kClient] = fd;
  r.cookie[kClient] = cookie_of(fd);
  r.thread = index_;
  r.listener = l.listener;
  r.upstream = UINT32_MAX;
  r.client = client;
  r.destination = l.bound.port ? l.bound : endpoint_of(fd, getsockname);
  r.port = r.destination.port;
  r.accepted_ns = now_ns_;
  r.unproven = stranger;
  Flow& f = shared_.flows[slot];
  f = Flow{};
  f.record = &r;
  f.slot = slot;
  f.plan = use_plan(l.plan);
  {
    Update update(shared_.statistics);
    count(shared_.statistics.totals->accepted);
    count(shared_.statistics.totals->active);
    count(shared_.statistics.listeners[l.listener].accepted);
    count(shared_.statistics.listeners[l.listener].active);
  }

  arm_poll(f, Op::watch_client, fd, 0);
  if (!trusted) return begin_client(f);
  advance(f, Event::accepted_from_proxy);
  show(f);
  begin_proxy_header(f);
}

// Who the client is stands in the record now: by its own address, or by what a trusted proxy says. Whatever
// is judged by the client's address is judged from here on.
void Worker::begin_client(Flow& f) {
  bool waits = f.plan->routes().needs_client_hello(f.plan->listener_index(f.record->listener));
  advance(f, waits ? Event::accepted_speaks_first : Event::accepted);
  show(f);
  if (waits)
    begin_classify(f);
  else
    route(f, nullptr);
}

// Counted and logged like any flow, with a RST: the client learns at once.
void Worker::refuse(int fd, const ListenerSocket& l, CloseReason reason) {
  live_--;
  {
    Update update(shared_.statistics);
    count(shared_.statistics.totals->accepted);
    count(shared_.statistics.closed(reason));
    count(shared_.statistics.listeners[l.listener].accepted);
    count(shared_.statistics.listeners[l.listener].closed);
  }
  if (l.plan->config().daemon.log_access)
    log::write(access_level(reason),
               fmt::format("flow cookie={} client={} listener={} reason={}", cookie_of(fd),
                           peer_of(fd).text(), l.plan->listener(l.listener).name, text(reason)));
  linger rst{1, 0};
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &rst, sizeof rst);
  close(fd);
}

}  // namespace penstock::flow
