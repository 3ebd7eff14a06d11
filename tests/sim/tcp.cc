// SPDX-License-Identifier: Apache-2.0
// TCP between two sockets: nothing is lost on the way (what TCP itself repairs is not seen above it), all is
// late.
#include <fmt/format.h>

#include <cerrno>
#include <utility>

#include "sim/kernel.h"

namespace penstock::sim {
namespace {

constexpr uint64_t kRetransmitNs = 200'000'000;
constexpr uint32_t kCoalescedMax = 64 << 10;
constexpr uint64_t kJiffyNs = 4'000'000;
constexpr uint32_t kSegmentOverhead = 768;  // truesize beyond the payload

// tcp_try_coalesce(): small ones grow together while nobody takes them.
void queue_up(Socket* to, Segment segment) {
  if (!to->queue.empty()) {
    Segment& last = to->queue.back();
    const bool follows = last.seq + last.bytes.size() == segment.seq;
    if (follows && !segment.urgent && !last.urgent &&
        last.bytes.size() + segment.bytes.size() <= kCoalescedMax) {
      last.truesize += segment.bytes.size();
      last.bytes.append(segment.bytes);
      return;
    }
  }
  to->queue.push_back(std::move(segment));
}

}  // namespace

Socket* Kernel::make_socket(bool ours) {
  Socket& s = sockets_.emplace_back();
  s.ours = ours;
  s.cookie = ++last_cookie_;
  s.next_seq = s.copied_seq = static_cast<uint32_t>(random.next());
  s.write_seq = s.sent_seq = s.una_seq = static_cast<uint32_t>(random.next());
  s.send_buffer = static_cast<uint32_t>(random.log_between(4 << 10, 512 << 10));
  s.receive_buffer = static_cast<uint32_t>(random.log_between(16 << 10, 512 << 10));
  return &s;
}

void Kernel::join(Socket* a, Socket* b) {
  a->other = b;
  b->other = a;
  a->state = b->state = TCP_ESTABLISHED;
  a->opened_by_us = true;
  a->acked = 1;  // its SYN
  b->next_seq = b->copied_seq = a->write_seq;
  a->next_seq = a->copied_seq = b->write_seq;
}

void Kernel::connect(Socket* s, const Endpoint& to) {
  s->remote = to;
  s->state = TCP_SYN_SENT;
  const Remote remote = find_remote(to);
  if (remote.what == Remote::silent) return;
  after(remote.delay_ns, [this, s, remote] {
    if (s->closed || s->state != TCP_SYN_SENT) return;
    if (remote.what == Remote::listening || remote.what == Remote::resetting) {
      Socket* server = make_socket(false);
      join(s, server);
      if (remote.what == Remote::resetting)
        reset(server);
      else
        remote.on_connected(server);
    } else {
      s->error = remote.what == Remote::refusing ? ECONNREFUSED : EHOSTUNREACH;
      s->state = TCP_CLOSE;
      s->shut = kReceiveShut | kSendShut;
    }
    changed(s);
  });
}

Socket* Kernel::arrive(Socket* listener, const Endpoint& from, const Endpoint& to) {
  if (listener->state != TCP_LISTEN || (listener->shut & kReceiveShut)) return nullptr;
  Socket *client = make_socket(false), *s = make_socket(true);
  join(client, s);
  s->trim = listener->trim;
  s->local = to;
  s->remote = from;
  listener->accepted.push_back(s);
  changed(listener);
  return client;
}

void Kernel::ops(Socket* s, bool current_mss) {
  if (s->ours && s->connected()) sim_socket_ops(s, current_mss);
}

uint32_t Kernel::write(Socket* s, const Bytes& bytes, bool urgent) {
  ops(s, true);
  const uint32_t n = std::min(bytes.size(), s->room());
  if (n == 0) return 0;
  s->unsent.append(n == bytes.size() ? bytes : bytes.slice(0, n));
  s->write_seq += n;
  if (urgent && n == bytes.size()) {  // a segment of its own ends with it
    transmit(s);
    if (s->unsent.size() == 0 && s->other && !s->other->wire.empty()) s->other->wire.back().urgent = true;
  } else {
    transmit(s);
  }
  return n;
}

void Kernel::put_on_wire(Socket* to, Segment segment) {
  to->coming += segment.bytes.size();
  to->wire.push_back(std::move(segment));
  schedule_arrival(to, delay());
}

void Kernel::schedule_arrival(Socket* to, uint64_t in_ns) {
  if (std::exchange(to->arriving, true)) return;
  after(in_ns, [this, to] { on_arrival(to); });
}

void Kernel::transmit(Socket* s) {
  Socket* to = s->other;
  if (!to || s->state == TCP_SYN_SENT || s->state == TCP_CLOSE) return;
  while (s->unsent.size() > 0) {
    const uint64_t waiting = to->readable() + to->coming + kSegmentOverhead * to->queue.size();
    if (waiting >= to->receive_buffer) break;
    const uint64_t window = to->receive_buffer - waiting;
    const auto most = static_cast<uint32_t>(std::min<uint64_t>({window, weather.mss, s->unsent.size()}));
    const uint32_t n = random.chance(1, 8) ? static_cast<uint32_t>(random.between(1, most)) : most;
    Segment segment;
    segment.bytes = s->unsent.take(n);
    segment.seq = s->sent_seq;
    segment.truesize = n + kSegmentOverhead;
    s->sent_seq += n;
    ops(s, false);
    put_on_wire(to, std::move(segment));
  }
  // A FIN takes a byte of the window, too (net/ipv4/tcp_output.c, tcp_snd_wnd_test()).
  const bool fits = to->readable() + to->coming + kSegmentOverhead * to->queue.size() < to->receive_buffer;
  if (s->fin_queued && !s->fin_sent && s->unsent.size() == 0 && fits) {
    s->fin_sent = true;
    if (!to->wire.empty() && !to->wire.back().rst && random.chance(1, 2)) {
      to->wire.back().fin = true;
    } else {
      Segment segment;
      segment.seq = s->sent_seq;
      segment.fin = true;
      segment.truesize = kSegmentOverhead;
      put_on_wire(to, std::move(segment));
    }
  }
}

void Kernel::on_arrival(Socket* to) {
  to->arriving = false;
  if (to->wire.empty()) return;
  Segment& first = to->wire.front();
  if (to->trim && !to->closed && first.bytes.size() > 0) {
    const sim_segment segment{first.bytes.size(), first.truesize, first.seq, first.fin};
    if (sim_trim(&segment, to) < first.bytes.size() + kSimTcpHeaderBytes) {
      schedule_arrival(to, kRetransmitNs << std::min(to->trims++, 6u));
      return;
    }
  }
  to->trims = 0;
  Segment segment = std::move(first);
  to->wire.pop_front();
  to->coming -= segment.bytes.size();
  if (!to->wire.empty()) schedule_arrival(to, delay());
  if (segment.rst)
    on_reset(to);
  else
    deliver(to, std::move(segment));
}

void Kernel::answer_reset(Socket* from) {
  from->state = TCP_CLOSE;
  from->shut = kReceiveShut | kSendShut;
  from->unsent = {};
  Segment rst;
  rst.rst = true;
  if (from->other) put_on_wire(from->other, std::move(rst));
}

void Kernel::deliver(Socket* to, Segment segment) {
  const uint32_t n = segment.bytes.size();
  if (to->state == TCP_CLOSE || (to->closed && n > 0)) return answer_reset(to);
  const bool fin = segment.fin;
  if (n > 0) {
    to->received += n;
    to->next_seq += n;
    if (segment.urgent && !to->closed) {
      to->urgent = true;
      to->urgent_seq = to->next_seq - 1;
    }
    if (weather.overlap_in && to->last.size() > 0 && random.chance(1, weather.overlap_in)) {
      const auto again = static_cast<uint32_t>(random.between(1, to->last.size()));
      Bytes whole = to->last.slice(to->last.size() - again, again);
      whole.append(segment.bytes);
      segment.bytes = std::move(whole);
      segment.seq -= again;
      segment.truesize += again;
    }
    to->last = segment.bytes.slice(segment.bytes.size() - std::min(64u, n), 64);
    queue_up(to, std::move(segment));
  }
  if (fin) on_fin(to);
  if (n > 0) {
    kick(to);
    ops(to, false);  // the ACK
  }
  changed(to);
  if (!to->other) return;
  to->other->to_ack += n;
  to->other->fin_to_ack |= fin;
  schedule_ack(to->other, delay());
}

void Kernel::on_fin(Socket* s) {
  s->received++;
  s->done = true;
  s->shut |= kReceiveShut;
  if (s->state == TCP_ESTABLISHED)
    s->state = TCP_CLOSE_WAIT;
  else if (s->state == TCP_FIN_WAIT1)
    s->state = TCP_CLOSING;
  else if (s->state == TCP_FIN_WAIT2) {  // TIME_WAIT is another socket's
    s->state = TCP_CLOSE;
    s->shut |= kSendShut;
  }
}

void Kernel::on_reset(Socket* s) {
  if (s->state == TCP_CLOSE) return;
  s->error = s->state == TCP_CLOSE_WAIT ? EPIPE : s->state == TCP_SYN_SENT ? ECONNREFUSED : ECONNRESET;
  s->state = TCP_CLOSE;
  s->shut = kReceiveShut | kSendShut;
  s->unsent = {};
  trace(fmt::format("RST reaches socket {}", s->cookie));
  changed(s);
}

void Kernel::fail(Socket* s, int error) {
  if (!s->connected()) return;
  on_reset(s);
  s->error = error;
  if (s->other) on_reset(s->other);  // it learns in the same way
}

void Kernel::schedule_ack(Socket* of, uint64_t in_ns) {
  if (std::exchange(of->acking, true)) return;
  after(in_ns, [this, of] { on_ack(of); });
}

void Kernel::on_ack(Socket* s) {
  s->acking = false;
  const uint32_t n = std::exchange(s->to_ack, 0);
  const bool fin = std::exchange(s->fin_to_ack, false);
  if (s->state == TCP_CLOSE) return;
  s->una_seq += n;
  s->acked += n;
  if (fin) {
    s->fin_acked = true;
    s->una_seq++;
    s->acked++;
    if (s->state == TCP_FIN_WAIT1)
      s->state = TCP_FIN_WAIT2;
    else if (s->state == TCP_CLOSING || s->state == TCP_LAST_ACK) {
      s->state = TCP_CLOSE;
      s->shut = kReceiveShut | kSendShut;
    }
    changed(s);
  }
  if (s->unsent.size() > 0) ops(s, true);
  transmit(s);
  if (n && s->writeable()) changed(s);
  if (!s->backlog.empty()) schedule_worker(s, delay());
}

Bytes Kernel::read(Socket* s, uint32_t bytes) {
  Bytes out;
  while (bytes > 0 && !s->queue.empty()) {
    Segment& first = s->queue.front();
    const uint32_t skip = s->copied_seq - first.seq, left = first.bytes.size() - skip;
    const uint32_t n = std::min(bytes, left);
    out.append(first.bytes.slice(skip, n));
    s->copied_seq += n;
    bytes -= n;
    if (n == left) s->queue.pop_front();
  }
  if (out.size() > 0) window_opened(s);
  return out;
}

void Kernel::window_opened(Socket* reader) {
  Socket* sender = reader->other;
  if (!sender || (sender->unsent.size() == 0 && !sender->fin_queued)) return;
  after(delay(), [this, sender] { transmit(sender); });
}

void Kernel::resume_sending(Socket* s) {
  transmit(s);
}

void Kernel::shutdown_write(Socket* s) {
  if (s->shut & kSendShut) return;
  s->shut |= kSendShut;
  if (s->state == TCP_ESTABLISHED)
    s->state = TCP_FIN_WAIT1;
  else if (s->state == TCP_CLOSE_WAIT)
    s->state = TCP_LAST_ACK;
  else
    return;
  s->fin_queued = true;
  s->write_seq++;
  transmit(s);
  changed(s);
}

void Kernel::reset(Socket* s) {
  close_socket(s, true);
}

void Kernel::close_socket(Socket* s, bool linger_zero) {
  s->closed = true;
  s->fd = -1;
  drop_maps(s);
  if (s->state == TCP_LISTEN) {
    s->state = TCP_CLOSE;
    for (Socket* waiting : s->accepted) close_socket(waiting, true);
    s->accepted.clear();
    return;
  }
  if (s->state == TCP_SYN_SENT) s->state = TCP_CLOSE;
  if (s->state == TCP_CLOSE) return;
  if (linger_zero || s->readable() > 0) return answer_reset(s);
  s->shut |= kReceiveShut;
  shutdown_write(s);
}

// ---- the sockmap's part ----

// sk_psock_verdict_data_ready(): the whole queue, segment by segment, also one that was read in part.
void Kernel::kick(Socket* s) {
  if (s->source_index < 0) return;
  bool took = false;
  while (!s->queue.empty() && s->source_index >= 0) {
    Segment segment = std::move(s->queue.front());
    s->queue.pop_front();
    sim_segment seen{segment.bytes.size(), segment.truesize, segment.seq, 0};
    const uint32_t whole = seen.length;
    const bool passed = sim_verdict(&seen, s) == 1;
    s->copied_seq += seen.length;  // tcp_eat_skb()
    took = true;
    const uint32_t peer = static_cast<uint32_t>(s->source_index) ^ 1;
    Socket* target = passed ? static_cast<Socket*>(sim_lookup(kSimTargets, &peer)) : nullptr;
    if (!target || target->closed || !target->transmits) continue;  // dropped, though acknowledged
    segment.bytes = segment.bytes.slice(whole - seen.length, seen.length);
    target->backlog_truesize += segment.truesize;
    target->backlog.push_back(std::move(segment));
    schedule_worker(target, delay());
  }
  if (s->urgent && static_cast<int32_t>(s->copied_seq - s->urgent_seq) > 0) s->urgent = false;
  if (took) window_opened(s);
}

void Kernel::schedule_worker(Socket* s, uint64_t in_ns) {
  if (std::exchange(s->working, true)) return;
  after(in_ns, [this, s] { work(s); });
}

// sk_psock_backlog() of a target.
void Kernel::work(Socket* s) {
  s->working = false;
  while (!s->backlog.empty()) {
    const bool can = (s->state == TCP_ESTABLISHED || s->state == TCP_CLOSE_WAIT) && !(s->shut & kSendShut);
    if (!can || s->error) {
      if (!s->error) s->error = EPIPE;
      s->transmits = false;
      s->backlog.clear();
      s->backlog_truesize = 0;
      changed(s);
      return;
    }
    Segment& first = s->backlog.front();
    if (weather.loses_in && random.chance(1, weather.loses_in)) {
      s->backlog_truesize -= first.truesize;
      s->backlog.pop_front();
      continue;
    }
    if (weather.doubles_in && random.chance(1, weather.doubles_in)) write(s, first.bytes);
    uint32_t offered = first.bytes.size();
    if (weather.short_in && random.chance(1, weather.short_in))
      offered = static_cast<uint32_t>(random.between(1, offered));
    const uint32_t n = write(s, first.bytes.slice(0, offered));
    if (n == first.bytes.size()) {
      s->backlog_truesize -= first.truesize;
      s->backlog.pop_front();
      continue;
    }
    first.bytes = first.bytes.slice(n, first.bytes.size());
    if (n == 0) return schedule_worker(s, kJiffyNs);
  }
}

void Kernel::drop_maps(Socket* s) {
  if (s->source_index >= 0) {
    const auto i = static_cast<uint32_t>(s->source_index);
    sim_delete(kSimSources, &i);
  }
  if (s->target_index >= 0) {
    const auto i = static_cast<uint32_t>(s->target_index);
    sim_delete(kSimTargets, &i);
  }
  s->backlog.clear();  // lost, silently
  s->backlog_truesize = 0;
}

}  // namespace penstock::sim
