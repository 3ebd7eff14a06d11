// SPDX-License-Identifier: Apache-2.0
// flow/relay.cc: the worker moves bytes from socket to socket through a pipe, without seeing them. A full
// target stops the pipe, a full pipe stops the reading, an unread socket stops its sender: TCP's own
// backpressure. A direction has a pipe only while something is in it.
#include <fcntl.h>
#include <linux/sockios.h>
#include <poll.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "flow/worker.h"

namespace penstock::flow {
namespace {

constexpr uint64_t kTurnBytes = 2 << 20;    // most that one direction moves before others get their turn
constexpr uint64_t kBulkBytes = 256 << 10;  // moved in one stay: worth a larger pipe
// From here on a turn of the relay costs less per byte than what the sockmap does for each segment
// (tools/bench, paced: equal at 250 KB a millisecond and flow, the splice a quarter cheaper at half of it).
constexpr uint64_t kBulkTurnBytes = 128 << 10;
constexpr uint64_t kPublishNs = 100'000'000;
constexpr uint64_t kPipeAgainNs = 50'000'000, kPipePatienceNs = 5'000'000'000;
constexpr uint64_t kMemoryAgainNs = 5'000'000;
constexpr uint64_t kQuietDefaultNs = 20'000'000;

// splice(2) stops in front of an urgent byte for ever, while poll(2) says there is something to read.
bool at_urgent_mark(int fd) {
  int at = 0;
  return ioctl(fd, SIOCATMARK, &at) == 0 && at;
}

}  // namespace

// What a new pipe may hold: more for bulk, which then costs fewer system calls and wake-ups.
uint32_t Worker::pipe_bytes(const Flow& f, Direction d) const {
  bool more =
      f.direction[d].moved_bytes > kBulkBytes && shared_.held_bytes() < shared_.memory_limit_bytes / 4;
  return more ? static_cast<uint32_t>(f.plan->config().flow.pipe_bytes) : Pipes::kCapacityBytes;
}

// False: no descriptors, or no memory within limits.memory; the direction waits, its bytes stay in the
// socket.
bool Worker::take_pipe(Flow& f, Direction d) {
  DirectionRecord& dr = f.record->direction[d];
  if (dr.pipe_in >= 0) return true;
  uint32_t wanted = pipe_bytes(f, d);
  Pipe p;
  if (shared_.held_bytes() + Pipes::kCapacityBytes > shared_.memory_limit_bytes || !pipes_.take(wanted, &p)) {
    count(shared_.statistics.totals->pipes_refused);
    set_lane_deadline(f, d, now_ns_ + kPipeAgainNs);
    return false;
  }
  dr.pipe_in = p.in;
  dr.pipe_out = p.out;
  dr.pipe_capacity_bytes = p.capacity_bytes;
  if (p.capacity_bytes < wanted) f.direction[d].moved_bytes = 0;  // it may not grow: not tried at every turn
  return true;
}

void Worker::give_back_pipe(Flow& f, Direction d) {
  DirectionRecord& dr = f.record->direction[d];
  if (dr.pipe_in < 0) return;
  Pipe p{dr.pipe_in, dr.pipe_out, dr.pipe_capacity_bytes};
  dr.pipe_in = dr.pipe_out = -1;
  pipes_.give_back(p, dr.relayed_in_bytes == dr.relayed_out_bytes);
}

void Worker::enter_relay(Flow& f, Direction d, LaneChange why) {
  DirectionState& s = f.direction[d];
  s.readable = true;
  s.ended = false;
  s.moved_ns = s.blocked_ns = now_ns_;
  s.moved_bytes = 0;
  s.turn_bytes = why == LaneChange::saturated ? 8 * kBulkTurnBytes : 0;
  enter_lane(f, d, Lane::relay, why);
  pump(f, d);
}

void Worker::pump(Flow& f, Direction d) {
  FlowRecord& r = *f.record;
  DirectionRecord& dr = r.direction[d];
  DirectionState& s = f.direction[d];
  const Side from = d == kUp ? kClient : kUpstream, to = d == kUp ? kUpstream : kClient;
  uint64_t moved = 0;
  bool blocked = false, has_room = std::exchange(s.has_room, false);
  for (bool progress = true; progress && moved < kTurnBytes;) {
    progress = false;
    uint64_t in_pipe = dr.relayed_in_bytes - dr.relayed_out_bytes;
    if (s.readable && !s.ended && (dr.pipe_in < 0 || in_pipe < dr.pipe_capacity_bytes)) {
      if (!take_pipe(f, d)) {
        // Every pipe is with a reader that does not read. Ending one flow serves others: each tries before it
        // gives up. (Where it is memory that lacks, evict_if_over_limit() finds it.)
        if (!s.pipe_wanted_ns) s.pipe_wanted_ns = now_ns_;
        if (now_ns_ - s.pipe_wanted_ns > kPipePatienceNs) begin_close(f, CloseReason::fd_limit);
        return;
      }
      s.pipe_wanted_ns = 0;
      ssize_t n = splice(r.fd[from], nullptr, dr.pipe_in, nullptr, dr.pipe_capacity_bytes - in_pipe,
                         SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
      if (n > 0) {
        dr.relayed_in_bytes += static_cast<uint64_t>(n);
        progress = true;
      } else if (n == 0) {
        s.ended = true;
      } else if (errno == EAGAIN) {
        if (in_pipe == 0) s.readable = false;  // with bytes in the pipe it may be the pipe that is full
        if (in_pipe == 0 && moved == 0 && at_urgent_mark(r.fd[from])) return pass_urgent(f, d);
      } else if (errno != EINTR) {
        return begin_close(f, reason_of(from, errno));
      }
    }
    in_pipe = dr.relayed_in_bytes - dr.relayed_out_bytes;
    if (in_pipe > 0) {
      ssize_t n = splice(dr.pipe_out, nullptr, r.fd[to], nullptr, in_pipe, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
      blocked = n < 0 && errno == EAGAIN;
      if (blocked) s.blocked_ns = now_ns_;
      if (n > 0) {
        dr.relayed_out_bytes += static_cast<uint64_t>(n);
        moved += static_cast<uint64_t>(n);
        progress = true;
      } else if (!blocked && errno != EINTR) {
        return begin_close(f, reason_of(to, errno));
      }
      if (blocked && in_pipe >= dr.pipe_capacity_bytes / 2) break;
    }
  }
  if (moved) {
    s.moved_ns = now_ns_;
    s.moved_bytes += moved;
    s.turn_bytes = (7 * s.turn_bytes + moved) / 8;
    f.dirty = true;
    if (now_ns_ - f.published_ns > kPublishNs) publish(f);
  }

  uint64_t in_pipe = dr.relayed_in_bytes - dr.relayed_out_bytes;
  if (in_pipe == 0) {
    if (s.ended) return pass_fin(f, d);
    if (s.order == Lane::splice && !s.readable && try_promote(f, d, LaneChange::ordered)) return;
    if (!s.readable && s.turn_bytes < kBulkTurnBytes && unhindered(f, d) &&
        try_promote(f, d, LaneChange::quiet))
      return;
    in_pipe = dr.relayed_in_bytes - dr.relayed_out_bytes;
  }
  if (uint32_t bytes = pipe_bytes(f, d); in_pipe > 0 && dr.pipe_capacity_bytes < bytes) {
    Pipe p{dr.pipe_in, dr.pipe_out, dr.pipe_capacity_bytes};
    dr.pipe_capacity_bytes = pipes_.grow(&p, bytes);
    if (dr.pipe_capacity_bytes < bytes) s.moved_bytes = 0;
  }
  // Room by poll(2) and none by sendmsg(): TCP as a whole is out of memory.
  if (blocked && has_room && !moved)
    set_lane_deadline(f, d, now_ns_ + kMemoryAgainNs);
  else if (blocked)
    arm_poll(f, to == kClient ? Op::write_client : Op::write_upstream, r.fd[to], POLLOUT);
  if (!s.readable && !s.ended)
    arm_poll(f, from == kClient ? Op::read_client : Op::read_upstream, r.fd[from], POLLIN | POLLRDHUP);
  if (!blocked && (s.readable || in_pipe > 0)) return enqueue(f);
  if (in_pipe == 0) {
    give_back_pipe(f, d);
    if ((may_open_valve(f, d) && s.order == Lane::none) || f.dirty)
      set_lane_deadline(f, d, now_ns_ + (dr.quiet_ns ? dr.quiet_ns : kQuietDefaultNs));
  }
}

// The verdict takes urgent bytes in line, like a receiver with SO_OOBINLINE.
void Worker::pass_urgent(Flow& f, Direction d) {
  if (!try_promote(f, d, LaneChange::urgent) && f.record->phase == Phase::open && !f.direction[d].readable)
    begin_close(f, CloseReason::urgent_data);
}

// The direction's deadline: it has been quiet, or waits for a pipe.
void Worker::on_quiet(Flow& f, Direction d) {
  DirectionRecord& dr = f.record->direction[d];
  DirectionState& s = f.direction[d];
  if (f.dirty) publish(f);
  if (s.readable || dr.relayed_in_bytes != dr.relayed_out_bytes) return pump(f, d);
  if (!may_open_valve(f, d)) return;
  if (unhindered(f, d)) try_promote(f, d, LaneChange::quiet);
}

// The direction is quiet: the target has taken all it was offered, at once, for as long as this direction
// must show it.
bool Worker::unhindered(const Flow& f, Direction d) const {
  uint64_t quiet_ns = f.record->direction[d].quiet_ns;
  return now_ns_ - f.direction[d].blocked_ns >= (quiet_ns ? quiet_ns : kQuietDefaultNs);
}

}  // namespace penstock::flow
