// SPDX-License-Identifier: Apache-2.0
// flow/accept.cc: a connection becomes a flow, or is refused with a reason.
#include <linux/filter.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>

#include "base/assert.h"
#include "base/log.h"
#include "flow/socket_names.h"
#include "flow/worker.h"
#include "route/route.h"

namespace penstock::flow {
namespace {

constexpr uint64_t kAcceptRetryNs = 100'000'000;
constexpr uint64_t kToldAgainNs = 1'000'000'000;
constexpr uint64_t kSweepNs = 100'000'000, kSweptNs = 1'000'000'000;
constexpr int kSweptMax = 64;  // at a time: others wait for their turn

// A filter that lets everything pass but a SYN alone: the RST and the end of a handshake, too. It is shown a
// segment from its TCP header on, as of tcp_v4_rcv().
void drop_syns(int fd) {
  constexpr uint8_t kFlagsAt = 13, kSyn = 2, kAck = 16;  // RFC 9293 3.1
  sock_filter code[] = {BPF_STMT(BPF_LD | BPF_B | BPF_ABS, kFlagsAt),
                        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, kSyn | kAck),
                        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, kSyn, 0, 1), BPF_STMT(BPF_RET | BPF_K, 0),
                        BPF_STMT(BPF_RET | BPF_K, UINT32_MAX)};
  sock_fprog program{sizeof code / sizeof *code, code};
  setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program);
}

void remove_filter(int fd) {
  int none = 0;
  setsockopt(fd, SOL_SOCKET, SO_DETACH_FILTER, &none, sizeof none);
}

}  // namespace

void Worker::add_listener(const ListenerSocket& socket) {
  post([=](Worker& w) {
    if (!w.accepting_ || w.stopping_) {
      close(socket.fd);
      return;
    }
    Listening* place = w.find_listening(-1);
    if (!place) place = &w.listening_.emplace_back();
    *place = {.socket = socket};
    w.begin_accept(*place);
    if (!socket.adopted) return;
    const uint64_t now_ns = io::now_ns();
    place->sweep_ns = now_ns + kSweepNs;
    place->swept_until_ns = now_ns + kSweptNs;
  });
}

void Worker::assign_listener(int fd, uint32_t listener, std::shared_ptr<const Plan> plan) {
  post([=](Worker& w) {
    Listening& l = *w.find_listening(fd);
    l.socket.listener = listener;
    l.socket.plan = plan;
    if (!w.set_filter(fd)) return;
    remove_filter(fd);
    l.inherits_other = true;
  });
}

void Worker::retire_listener(int fd) {
  post([=](Worker& w) {
    w.find_listening(fd)->inherits_other = true;
    drop_syns(fd);
  });
}

void Worker::remove_listener(int fd) {
  post([=](Worker& w) {
    Listening& l = *w.find_listening(fd);
    l.removing = true;
    if (l.accepting)
      w.io_->cancel(w.accept_token(l));
    else
      w.close_listening(l);
  });
}

void Worker::stop_accepting() {
  post([](Worker& w) {
    if (!w.accepting_) return;
    w.accepting_ = false;
    for (Listening& l : w.listening_) {
      l.again_ns = l.sweep_ns = 0;
      if (l.socket.fd < 0) continue;
      if (l.accepting) w.io_->cancel(w.accept_token(l));
      shutdown(l.socket.fd, SHUT_RD);  // refuses new SYNs at once, also while the cancel is under way
    }
  });
}

// REQUIRES: fd is -1, or one of ours.
Worker::Listening* Worker::find_listening(int fd) {
  for (Listening& l : listening_)
    if (l.socket.fd == fd) return &l;
  PENSTOCK_ASSERT(fd == -1);
  return nullptr;
}

// Of a socket that takes part: the trim where flows may be spliced. Connections inherit it. 0, or an errno.
int Worker::set_filter(int fd) const {
  if (shared_.splice) return shared_.sockmap->attach_trim(fd);
  remove_filter(fd);
  return 0;
}

io::Token Worker::accept_token(const Listening& l) const {
  return static_cast<uint64_t>(Op::accept) | static_cast<uint64_t>(&l - listening_.data()) << 8;
}

void Worker::begin_accept(Listening& l) {
  l.again_ns = 0;
  l.accepting = true;
  io_->accept(l.socket.fd, accept_token(l));
}

void Worker::accept_again(uint64_t now_ns) {
  for (Listening& l : listening_)
    if (l.again_ns && l.again_ns <= now_ns) begin_accept(l);
}

// A dead process's accept waits on, exclusively, until the kernel's worker has taken its ring apart: tens of
// milliseconds after the last close. It alone is woken for a connection that comes meanwhile; with no other
// behind it, that one would wait for ever.
void Worker::sweep(uint64_t now_ns) {
  for (Listening& l : listening_) {
    if (!l.sweep_ns || l.sweep_ns > now_ns) continue;
    l.sweep_ns = now_ns < l.swept_until_ns ? now_ns + kSweepNs : 0;
    accept_waiting(l, kSweptMax);
  }
}

void Worker::on_accepted(uint32_t index, const io::Completion& c) {
  Listening& l = listening_[index];
  if (!c.more) l.accepting = false;
  if (c.result >= 0) {
    accept_error_ = 0;
    arrive(l, c.result);
  } else if (c.result != -ECANCELED && accepting_) {
    // Out of descriptors or memory: the queue stays, we come back.
    count(shared_.statistics.totals->accept_failed);
    if (accept_error_ != -c.result && now_ns_ >= accept_told_ns_ + kToldAgainNs) {
      log::warn("cannot accept: {}; trying again", strerror(-c.result));
      accept_told_ns_ = now_ns_;
    }
    accept_error_ = -c.result;
  }
  if (c.more) return;
  if (l.removing) return close_listening(l);
  if (!accepting_ || stopping_) return;
  if (c.result >= 0)
    begin_accept(l);
  else
    l.again_ns = now_ns_ + kAcceptRetryNs;
}

void Worker::arrive(const Listening& l, int fd) {
  const Arrival a{fd, l.socket.listener, l.socket.bound, l.socket.plan};
  if (l.inherits_other && set_filter(fd)) {  // no memory for what bounds it
    live_++;
    return refuse(a, CloseReason::fd_limit);
  }
  Worker& idlest = least_loaded();
  if (&idlest != this && idlest.give(a)) return;
  live_++;
  begin_flow(a);
}

void Worker::close_listening(Listening& l) {
  accept_waiting(l, INT_MAX);  // it gets no more
  close(l.socket.fd);
  l = {};
}

void Worker::accept_waiting(const Listening& l, int most) {
  for (int fd;
       most-- > 0 && (fd = accept4(l.socket.fd, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;)
    arrive(l, fd);
}

// SO_REUSEPORT spreads connections by their hash: of eight, six may come to one thread of two.
Worker& Worker::least_loaded() {
  Worker* least = this;
  for (auto& w : shared_.workers)
    if (w->live_ < least->live_) least = w.get();
  return live_ > least->live_ + live_ / 8 ? *least : *this;
}

bool Worker::give(const Arrival& a) {
  {
    std::lock_guard lock(inbox_mutex_);
    if (over_) return false;
    live_++;  // now: others look at it before the task has run
    inbox_.push_back([=](Worker& w) { w.begin_flow(a); });
  }
  wake();
  return true;
}

// REQUIRES: it is counted in live_.
void Worker::begin_flow(const Arrival& a) {
  if (!accepting_ || stopping_) return refuse(a, CloseReason::shutdown);
  if (shared_.held_bytes() > shared_.memory_limit_bytes / 16 * 15)
    return refuse(a, CloseReason::memory_limit);
  const config::AcceptProxy& accept_proxy = a.plan->listener(a.listener).accept_proxy;
  Endpoint client = remote_of(a.fd);
  if (client.port == 0) {  // gone before we looked
    bool proxy = route::covers(accept_proxy.from, peer_of(a.fd).address);
    return refuse(a, proxy ? CloseReason::proxy_probe : CloseReason::client_reset);
  }
  bool trusted = route::covers(accept_proxy.from, client.address);
  bool stranger = !accept_proxy.from.empty() && !trusted;
  if (stranger && !accept_proxy.others_direct) return refuse(a, CloseReason::proxy_not_trusted);
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
  if (slot == UINT32_MAX) return refuse(a, CloseReason::max_flows);

  std::atomic<uint32_t>& end = shared_.table->used();
  for (uint32_t used = end; used <= slot && !end.compare_exchange_weak(used, slot + 1);) {
  }
  FlowRecord& r = (*shared_.table)[slot];
  r.take();
  r.fd[kClient] = a.fd;
  r.cookie[kClient] = cookie_of(a.fd);
  r.thread = index_;
  r.listener = a.listener;
  r.upstream = UINT32_MAX;
  r.client = client;
  r.destination = a.bound.port ? a.bound : local_of(a.fd);
  r.port = r.destination.port;
  r.accepted_ns = now_ns_;
#if PENSTOCK_LAYOUT_STEP
  r.not_cookie = ~r.cookie[kClient];
#endif
  r.unproven = stranger;
  r.plan = a.plan->id();
  Flow& f = shared_.flows[slot];
  f = Flow{};
  f.record = &r;
  f.slot = slot;
  f.plan = use_plan(a.plan);
  {
    Update update(shared_.statistics);
    count(shared_.statistics.totals->accepted);
    count(shared_.statistics.totals->active);
    count(shared_.statistics.listeners[a.listener].accepted);
    count(shared_.statistics.listeners[a.listener].active);
  }

  arm_poll(f, Op::watch_client, a.fd, 0);
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
  if (auto refusal = admit(f)) return begin_close(f, *refusal);
  show(f);
  if (waits)
    begin_classify(f);
  else
    route(f, nullptr);
}

// Counted and logged like any flow, with a RST: the client learns at once. Closed before it is counted: to a
// worker that comes after one that died in between, an open connection would be a new one.
void Worker::refuse(const Arrival& a, CloseReason reason) {
  live_--;
  const log::Level level = access_level(reason);  // a proxy's probes take no line from others
  const bool logged =
      a.plan->config().daemon.log_access && (level == log::Level::debug || refusals_.allow(now_ns_));
  const uint64_t cookie = logged ? cookie_of(a.fd) : 0;
  const Endpoint client = logged ? peer_of(a.fd) : Endpoint{};
  linger rst{1, 0};
  setsockopt(a.fd, SOL_SOCKET, SO_LINGER, &rst, sizeof rst);
  close(a.fd);
  {
    Update update(shared_.statistics);
    count(shared_.statistics.totals->accepted);
    count(shared_.statistics.closed(reason));
    count(shared_.statistics.listeners[a.listener].accepted);
    count(shared_.statistics.listeners[a.listener].closed);
  }
  if (logged)
    log::write(level, fmt::format("flow cookie={} client={} listener={} reason={}", cookie, client.text(),
                                  a.plan->listener(a.listener).name, text(reason)));
}

void Worker::tell_left_out() {
  log::info("{} more refused connections are counted but not logged one by one", refusals_.take_left_out());
}

ListenerView Worker::listener_view(uint32_t listener) const {
  ListenerView v;
  for (const Listening& l : listening_) {
    if (l.socket.fd < 0 || l.socket.listener != listener) continue;
    tcp_info info{};
    socklen_t size = sizeof info;
    bool known = getsockopt(l.socket.fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0;
    if (!known || info.tcpi_state != TCP_LISTEN) v.listening = false;
    if (l.again_ns) v.accept_error = accept_error_;
  }
  return v;
}

}  // namespace penstock::flow
