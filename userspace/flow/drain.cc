// SPDX-License-Identifier: Apache-2.0
// flow/drain.cc: a FIN is passed on after the last byte before it, in its direction alone, and only when the
// accounts of both sockets agree; and what ends a flow that nobody ends.
//
// In `splice` the FIN arrives while the kernel may still be writing: closing or shutting the target down now
// would lose the backlog and send a clean FIN. In `relay` the end of stream is what splice() says, but a
// reset whose error somebody consumed looks the same: only the account tells, a FIN counts one in
// bytes_received.
#include <linux/sockios.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "base/log.h"
#include "flow/socket_options.h"
#include "flow/worker.h"

namespace penstock::flow {
namespace {

constexpr uint64_t kFirstLookNs = 50'000, kLastLookNs = 200'000'000;
constexpr uint64_t kKeepaliveTickNs = 250'000'000;  // set after 4 to 5 of them
constexpr uint64_t kMismatchNs = 500'000'000;       // the accounts may differ this long while nothing moves
constexpr uint64_t kLostNs = 60'000'000'000;  // what the kernel has not written for so long, it has lost
constexpr uint64_t kFirstAckLookNs = 10'000'000, kLastAckLookNs = 1'000'000'000;

}  // namespace

// A look at the target while the kernel writes to it what it was handed: true, and a line in the log, when it
// has taken more, or long takes nothing more though its queue is empty. A pause of ours, or of the machine,
// adds no more to "long" than the wait that was meant.
bool Worker::is_mismatch(Flow& f, Direction d, uint64_t handed_bytes, const SocketAccount& target) const {
  DirectionState& s = f.direction[d];
  const bool moves = target.queued_bytes > 0 || target.written_bytes != s.written_bytes;
  s.stuck_ns = moves ? 0 : s.stuck_ns + std::min(now_ns_ - s.looked_ns, s.patience_ns);
  s.written_bytes = target.written_bytes;
  s.looked_ns = now_ns_;
  const bool lost = target.written_bytes < handed_bytes && s.stuck_ns > kLostNs;
  if (target.written_bytes <= handed_bytes && !lost) return false;
  log::error("flow cookie={} {}: handed {} bytes, the target took {}", f.record->cookie[kClient],
             d == kUp ? "up" : "down", handed_bytes, target.written_bytes);
  return true;
}

// REQUIRES: the source's FIN was seen.
void Worker::check_drain(Flow& f, Direction d) {
  FlowRecord& r = *f.record;
  DirectionState& s = f.direction[d];
  switch (lane(f, d)) {
    case Lane::none:
    case Lane::shut:
      return;
    case Lane::held:
      return check_held(f, d);
    case Lane::relay:
      s.readable = true;
      return enqueue(f);
    case Lane::splice:
      break;
  }
  uint32_t index = socket_index(f, d);
  if (shared_.sockmap->closed(index)) return leave_splice(f, d, LaneChange::backlog_high);
  const DirectionRecord& dr = r.direction[d];
  SocketAccount source, target;
  if (!read_received(r.fd[d], &source) || !read_account(r.fd[d ^ 1], d == kUp, &target))
    return begin_close(f, CloseReason::internal_error);
  uint64_t handed = shared_.sockmap->direction(index).redirected + dr.relayed_out_bytes;
  uint64_t written = target.written_bytes - dr.header_bytes;
  // Then nothing is unread either, or the verdict would have counted less.
  if (source.received_bytes == handed + dr.discarded_bytes + 1 && written == handed) return send_fin(f, d);
  if (source.state == TCP_CLOSE && source.received_bytes == handed + dr.discarded_bytes)
    return begin_close(f, d == kUp ? CloseReason::client_reset : CloseReason::upstream_reset);
  if (is_mismatch(f, d, handed + dr.header_bytes, target))
    return begin_close(f, CloseReason::account_mismatch);
  if (written == handed && s.stuck_ns > kMismatchNs) return pass_fin(f, d);  // finds and reports the mismatch
  // Nothing on its way and yet not all here: segments may be waiting for a verdict.
  if (written == handed && unread_bytes(r.fd[d])) sockmap::Sockmap::kick(r.fd[d]);
  s.patience_ns = s.patience_ns ? std::min(2 * s.patience_ns, kLastLookNs) : kFirstLookNs;
  set_lane_deadline(f, d, now_ns_ + s.patience_ns);
}

void Worker::pass_fin(Flow& f, Direction d) {
  FlowRecord& r = *f.record;
  DirectionRecord& dr = r.direction[d];
  Side from = d == kUp ? kClient : kUpstream, to = d == kUp ? kUpstream : kClient;
  SocketAccount source, target;
  if (!read_received(r.fd[from], &source) || !read_account(r.fd[to], d == kUp, &target))
    return begin_close(f, CloseReason::internal_error);
  uint64_t unread = unread_bytes(r.fd[from]);
  uint64_t arrived = source.received_bytes - unread - dr.discarded_bytes;
  uint64_t passed_on = target.written_bytes - dr.header_bytes + (dr.relayed_in_bytes - dr.relayed_out_bytes);
  if (arrived != passed_on + 1) {
    bool no_fin = arrived == passed_on && (source.state == TCP_CLOSE || target.state == TCP_CLOSE);
    if (no_fin) return begin_close(f, d == kUp ? CloseReason::client_reset : CloseReason::upstream_reset);
    if (target.state == TCP_CLOSE)
      return begin_close(f, d == kUp ? CloseReason::upstream_reset : CloseReason::client_reset);
    log::error("flow cookie={} {}: received {} (with FIN), unread {}, passed on {}, lane {}, states {}/{}",
               r.cookie[kClient], d == kUp ? "up" : "down", source.received_bytes, unread, passed_on,
               text(lane(f, d)), source.state, target.state);
    return begin_close(f, CloseReason::account_mismatch);
  }
  give_back_pipe(f, d);
  send_fin(f, d);
}

// REQUIRES: the accounts agree.
void Worker::send_fin(Flow& f, Direction d) {
  FlowRecord& r = *f.record;
  DirectionRecord& dr = r.direction[d];
  Side to = d == kUp ? kUpstream : kClient;
  dr.fin_received = 1;
  dr.lane = Lane::shut;
  deadlines_.clear(f.slot * kDeadlinesPerFlow + 1 + d);
  if (shutdown(r.fd[to], SHUT_WR))
    return begin_close(f, to == kClient ? CloseReason::client_reset : CloseReason::upstream_reset);
  f.direction[d].patience_ns = 0;
  f.direction[d].lane_since_ns = now_ns_;
  publish(f);
  set_open_deadline(f, now_ns_ + timeout_ns(f, &config::Timeouts::half_closed));
  if (is_shut(f)) check_delivered(f);
}

bool Worker::is_shut(const Flow& f) const {
  return lane(f, kUp) == Lane::shut && lane(f, kDown) == Lane::shut;
}

// Both FINs are passed on; what stands before them may still be on its way to a peer that reads slowly. With
// a socket that nobody holds the kernel has less patience (tcp_orphan_retries, tcp_max_orphans; net/ipv4/
// tcp_timer.c), and nobody would hear how it ended. Each side is on its own now: one that fails takes nothing
// from the other. The last ACK may wake us (TCP_CLOSE is POLLHUP); else we look.
void Worker::check_delivered(Flow& f) {
  for (Side s : {kClient, kUpstream}) {
    if (is_delivered(f, s)) continue;
    uint64_t& patience_ns = f.direction[s].patience_ns;
    patience_ns = patience_ns ? std::min(2 * patience_ns, kLastAckLookNs) : kFirstAckLookNs;
    return set_lane_deadline(f, static_cast<Direction>(s), now_ns_ + patience_ns);
  }
  begin_close(f, f.is_lost ? f.loss : CloseReason::completed);
}

// To the peer of side `s`, or it is gone: then `loss` says why, if it was owed anything but a FIN. But for a
// FIN on its way all is acknowledged: asked for in this order, or it might be the bytes before it that are on
// their way, while a closed window holds the FIN back.
bool Worker::is_delivered(Flow& f, Side s) {
  const int fd = f.record->fd[s];
  int queued = 0;
  SocketAccount account;
  ioctl(fd, SIOCOUTQ, &queued);
  if (queued == 0 || !read_received(fd, &account)) return true;
  const bool closed = account.state == TCP_CLOSE;
  if (closed) ioctl(fd, SIOCOUTQ, &queued);  // the last ACK may have closed it
  if (queued == 0 || (queued == 1 && (account.in_flight || closed))) return true;
  if (!closed) return false;
  if (!std::exchange(f.is_lost, true)) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
    f.loss = reason_of(s, error);
  }
  return true;
}

// Keepalive is five system calls that a short flow does without; many flows get theirs in one turn of the
// loop.
void Worker::set_open_deadline(Flow& f, uint64_t when_ns) {
  const uint64_t keepalive_ns = (f.record->opened_ns / kKeepaliveTickNs + 5) * kKeepaliveTickNs;
  set_phase_deadline(f, f.kept_alive ? when_ns : std::min(when_ns, keepalive_ns));
}

void Worker::check_idle(Flow& f) {
  FlowRecord& r = *f.record;
  if (!f.kept_alive) {
    f.kept_alive = true;
    set_keepalive(r.fd[kUpstream],
                  static_cast<uint32_t>(timeout_ns(f, &config::Timeouts::keepalive) / 1'000'000));
  }
  bool half_closed = lane(f, kUp) == Lane::shut || lane(f, kDown) == Lane::shut;
  uint64_t limit_ns = timeout_ns(f, half_closed ? &config::Timeouts::half_closed : &config::Timeouts::idle);
  uint64_t last_ns = r.opened_ns;
  for (Direction d : {kUp, kDown}) {
    last_ns = std::max(last_ns, f.direction[d].moved_ns);
    if (r.known)
      last_ns = std::max<uint64_t>(last_ns, shared_.sockmap->direction(socket_index(f, d)).active_ns);
    if (lane(f, d) == Lane::shut) last_ns = std::max(last_ns, f.direction[d].lane_since_ns);
  }
  // A slow reader may live on what its socket still has to give.
  uint64_t acked = 0;
  for (Side side : {kClient, kUpstream}) {
    SocketAccount account;
    if (read_received(r.fd[side], &account)) acked += account.acked_bytes;
  }
  if (acked != f.acked_bytes && f.acked_bytes) last_ns = now_ns_;
  f.acked_bytes = acked;
  if (now_ns_ >= last_ns + limit_ns)
    return begin_close(f, half_closed ? CloseReason::half_closed_timeout : CloseReason::idle_timeout);
  set_open_deadline(f, last_ns + limit_ns);
}

}  // namespace penstock::flow
