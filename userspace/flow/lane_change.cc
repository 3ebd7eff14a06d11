// SPDX-License-Identifier: Apache-2.0
// flow/lane_change.cc: how a direction leaves the splice and comes back.
//
// Out. A source is only ever taken out of `sources` by socket_ops, under its socket lock: by itself when the
// backlog is over the threshold, or asked to by close_valve(). Deleting it from here would free segments the
// verdict loop is about to look at, after they were acknowledged. `closed` is the truth, not the call's
// result: after our own FIN the request fails, and a direction treated as closed while the verdict still runs
// would be moved by two hands at once.
//
// Held. Nobody moves new bytes: they wait in the source's receive queue, its window closes, the sender waits.
// The kernel's worker goes on writing what was redirected. Only when written == handed may anyone else write
// to the target, or the order of bytes is lost.
//
// Back, from held: the backlog is low and what waits in the receive queue fits with it (opening hands all of
// it over at once). From relay: the pipe is empty, a splice() begun with the empty pipe says EAGAIN (EAGAIN
// with bytes in the pipe may only mean that the pipe is full), no FIN either way. A segment that arrives in
// between, or that was read in part, is in order all the same: the verdict cuts what was read. Everything
// before it is written, so the target's write_seq is the new base of the backlog.
#include <fcntl.h>
#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/log.h"
#include "flow/worker.h"

namespace penstock::flow {
namespace {

constexpr uint64_t kFirstLookNs = 100'000, kLastLookNs = 1'000'000'000;
constexpr uint64_t kPollFromNs = 3'000'000;     // from this patience on, the target's room wakes us too
constexpr uint64_t kBulkCycleBytes = 16 << 20;  // over the threshold again within so many: bulk
constexpr uint32_t kCyclesMax = 1;              // held -> splice in a row of such; more: relay costs less
constexpr uint64_t kQuietFirstNs = 500'000'000, kQuietLastNs = 5'000'000'000;
constexpr uint64_t kRefusedAgainNs = 1'000'000'000;
constexpr uint64_t kMemoryAgainNs = 10'000'000;

}  // namespace

void Worker::enter_lane(Flow& f, Direction d, Lane to, LaneChange why) {
  DirectionRecord& dr = f.record->direction[d];
  dr.lane = to;
  dr.lane_changes++;
  f.direction[d].lane_since_ns = now_ns_;
  f.direction[d].patience_ns = f.direction[d].stuck_ns = 0;
  count(shared_.statistics.lane_changes(why));
  log::debug("flow cookie={} {}: {} ({})", f.record->cookie[kClient], d == kUp ? "up" : "down", text(to),
             text(why));
  publish(f);
}

// REQUIRES: the valve is closed.
void Worker::leave_splice(Flow& f, Direction d, LaneChange why) {
  DirectionState& s = f.direction[d];
  DirectionRecord& dr = f.record->direction[d];
  if (why == LaneChange::backlog_high) {
    const penstock_direction& k = shared_.sockmap->direction(socket_index(f, d));
    s.cycles = k.redirected - s.high_at_bytes < kBulkCycleBytes ? s.cycles + 1 : 1;
    if (k.backlog >= k.bulk_bytes) s.cycles = kCyclesMax + 1;
    s.high_at_bytes = k.redirected;
    // A direction that comes back from relay only to leave again goes there at once, and stays longer each
    // time.
    bool flaps = dr.quiet_ns && now_ns_ - s.lane_since_ns < 2 * dr.quiet_ns + 100'000'000;
    if (flaps && dr.relayed_in_bytes) {
      dr.quiet_ns = std::min(2 * dr.quiet_ns, kQuietLastNs);
      s.cycles = kCyclesMax + 1;
    } else {
      dr.quiet_ns = kQuietFirstNs;
    }
  }
  enter_lane(f, d, Lane::held, why);
  check_held(f, d);
}

bool Worker::may_open_valve(const Flow& f, Direction d) const {
  const FlowRecord& r = *f.record;
  return shared_.splice && r.joined == 3 && !r.direction[d].fin_received &&
         lane(f, static_cast<Direction>(d ^ 1)) != Lane::shut;
}

// Opening a valve hands over all that is queued: not when that would push all flows towards limits.memory.
bool Worker::memory_allows(uint64_t more_bytes) const {
  return shared_.held_bytes() + more_bytes <= shared_.memory_limit_bytes / 4 * 3;
}

// `back`: why it goes to splice, if it does.
void Worker::check_held(Flow& f, Direction d, LaneChange back) {
  FlowRecord& r = *f.record;
  if (d == kUp && r.unproven) return check_first_bytes(f);
  DirectionRecord& dr = r.direction[d];
  DirectionState& s = f.direction[d];
  uint32_t index = socket_index(f, d);
  const penstock_direction& k = shared_.sockmap->direction(index);
  SocketAccount target;
  if (!read_account(r.fd[d ^ 1], d == kUp, &target)) return begin_close(f, CloseReason::internal_error);
  uint64_t handed = dr.header_bytes + k.redirected + dr.relayed_out_bytes;
  if (target.written_bytes != s.written_bytes) s.moved_ns = now_ns_;
  if (is_mismatch(f, d, handed, target)) return begin_close(f, CloseReason::account_mismatch);
  uint64_t waiting = handed - target.written_bytes;

  bool may_open = may_open_valve(f, d);
  bool saturated = s.cycles > kCyclesMax;
  if (!may_open || saturated || s.order == Lane::relay) {
    if (waiting == 0) {
      LaneChange why = s.order == Lane::relay ? LaneChange::ordered
                       : may_open             ? LaneChange::saturated
                                              : LaneChange::cannot_reopen;
      s.order = Lane::none;
      s.cycles = 0;
      return enter_relay(f, d, why);
    }
  } else if (waiting <= k.high_bytes / 2) {
    shared_.sockmap->prepare_valve(index, k.charged);
    uint32_t queued = receive_queue_memory(r.fd[d]);
    if (!memory_allows(queued)) {
      shared_.sockmap->abandon_valve(index);
      return set_lane_deadline(f, d, now_ns_ + kMemoryAgainNs);
    }
    if (k.charged + queued <= k.limit_bytes / 2) {
      shared_.sockmap->count_queued(index, queued);
      s.order = Lane::none;
      enter_lane(f, d, Lane::splice, back);
      if (int error = shared_.sockmap->open_valve(index, r.fd[d], waiting == 0)) {
        if (error != EOPNOTSUPP)
          log::warn("flow cookie={}: the sockmap refused: {}", r.cookie[kClient], strerror(error));
        shared_.sockmap->abandon_valve(index);
        dr.lane = Lane::held;  // a FIN is on its way: it will go to relay
        publish(f);
        set_lane_deadline(f, d, now_ns_ + (error == EOPNOTSUPP ? kPollFromNs : kRefusedAgainNs));
        return;
      }
      sockmap::Sockmap::kick(r.fd[d]);
      return;
    }
    shared_.sockmap->abandon_valve(index);
    if (waiting == 0) {
      s.cycles = 0;
      return enter_relay(f, d, LaneChange::saturated);
    }
  }
  s.patience_ns = s.patience_ns ? std::min(2 * s.patience_ns, kLastLookNs) : kFirstLookNs;
  set_lane_deadline(f, d, now_ns_ + s.patience_ns);
  if (s.patience_ns >= kPollFromNs)
    arm_poll(f, d == kUp ? Op::write_upstream : Op::write_client, r.fd[d ^ 1], POLLOUT);
}

// relay -> splice. True when the direction is spliced now.
bool Worker::try_promote(Flow& f, Direction d, LaneChange why) {
  FlowRecord& r = *f.record;
  DirectionRecord& dr = r.direction[d];
  DirectionState& s = f.direction[d];
  if (!may_open_valve(f, d) || s.ended || dr.relayed_in_bytes != dr.relayed_out_bytes) return false;
  if (!take_pipe(f, d)) return false;
  uint32_t index = socket_index(f, d);
  shared_.sockmap->prepare_valve(index, 0);
  ssize_t n = splice(r.fd[d], nullptr, dr.pipe_in, nullptr, dr.pipe_capacity_bytes,
                     SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
  if (n > 0) dr.relayed_in_bytes += static_cast<uint64_t>(n);
  if (n == 0) s.ended = true;
  if (n >= 0 || errno != EAGAIN) {  // an error: pump() finds it again, or the poll does
    s.readable = true;
    shared_.sockmap->abandon_valve(index);
    enqueue(f);
    return false;
  }
  give_back_pipe(f, d);
  dr.lane = Lane::splice;
  if (int error = shared_.sockmap->open_valve(index, r.fd[d], true)) {
    shared_.sockmap->abandon_valve(index);
    if (error != EOPNOTSUPP)
      log::warn("flow cookie={}: the sockmap refused: {}", r.cookie[kClient], strerror(error));
    dr.lane = Lane::relay;
    set_lane_deadline(f, d, now_ns_ + kRefusedAgainNs);
    return false;
  }
  s.order = Lane::none;
  enter_lane(f, d, Lane::splice, why);
  sockmap::Sockmap::kick(r.fd[d]);
  return true;
}

bool Worker::follow_order(Flow& f, Direction d, Lane to) {
  DirectionState& s = f.direction[d];
  switch (lane(f, d)) {
    case Lane::splice:
      if (to == Lane::splice) return true;
      if (to != Lane::held && to != Lane::relay) return false;
      s.order = to == Lane::relay ? Lane::relay : Lane::none;
      if (!shared_.sockmap->close_valve(socket_index(f, d), f.record->fd[d])) {
        s.order = Lane::none;
        return false;
      }
      leave_splice(f, d, LaneChange::ordered);
      return true;
    case Lane::held:
      s.order = to == Lane::relay ? Lane::relay : Lane::none;
      return true;
    case Lane::relay:
      if (to == Lane::held || (to == Lane::splice && !may_open_valve(f, d))) return false;
      s.order = to == Lane::splice ? Lane::splice : Lane::none;
      enqueue(f);
      return true;
    case Lane::none:
    case Lane::shut:
      return false;
  }
  return false;
}

}  // namespace penstock::flow
