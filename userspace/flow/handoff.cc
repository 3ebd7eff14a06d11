// SPDX-License-Identifier: Apache-2.0
// flow/handoff.cc: both sockets go to the kernel.
//
// The order, and why:
//   1. take: the programs learn the cookies and clean counters. Nothing is in a sockmap yet.
//   2. join: both sockets into `targets`. A direction may only be opened when its target is there: the
//      verdict would find nobody to redirect to, and the bytes it drops are acknowledged already. The map
//      refuses a socket that is past ESTABLISHED, so a side that has closed (or was reset) means relay, for
//      both directions: each socket is the source of one and the target of the other.
//   3. open_valve: each source into `sources`, if it is still ESTABLISHED at that moment: the insertion holds
//      the socket lock, so a FIN is either before it (EOPNOTSUPP: relay, the other direction stays spliced)
//      or after it (POLLRDHUP: drain.cc). The lane is in the record before the valve opens.
//   4. kick: what had arrived by then. The verdict takes whole segments from the receive queue in order; the
//      bytes we peeked at are among them. Data that comes during the kick waits for the socket lock, so it
//      comes after.
// From step 3 on userspace may no longer read from that source or write to its target.
// A FIN seen before `open` was only noted; it is acted on at the end.
#include <cerrno>
#include <cstring>

#include "base/log.h"
#include "flow/worker.h"

namespace penstock::flow {
namespace {

// So much waiting on average: the relay, which moves a pipe's worth at a time, costs less per byte than what
// the sockmap does for each segment. Found by each verdict (tools/bench): 140-230 KB in 64 saturated flows,
// 50 KB in 8 that carry 1 Gbit/s each, next to nothing where requests are answered.
constexpr uint32_t kBulkBytes = 128 << 10;

}  // namespace

void Worker::begin_handoff(Flow& f) {
  FlowRecord& r = *f.record;
  sockmap::Sockmap* m = shared_.sockmap;
  r.opened_ns = now_ns_;
  show_now(f);  // before the verdict writes into it
  int refused[2] = {0, 0};
  LaneChange why = LaneChange::engine;
  if (shared_.splice) {
    why = LaneChange::refused_half_closed;
    uint64_t buffer = f.plan->config().flow.buffer_bytes;
    m->clear(f.slot, index_, r.cookie[kClient],
             {.high_bytes = static_cast<uint32_t>(buffer / 4),
              .bulk_bytes = kBulkBytes,
              .limit_bytes = static_cast<uint32_t>(buffer / 8 * 7)});
    r.known = 1;
    int error = m->enter(f.slot, r.cookie);
    for (Side s : {kClient, kUpstream})
      if (!error && !(error = m->join(socket_index(f, s), r.fd[s]))) r.joined |= 1u << s;
    if (error) {
      refused[kUp] = refused[kDown] = error;
      if (error != EOPNOTSUPP) {
        why = LaneChange::refused_sockmap;
        log::warn("flow cookie={}: the sockmap refused: {}; relaying", r.cookie[kClient], strerror(error));
      }
    }
    for (Direction d : {kUp, kDown}) {
      if (refused[d] || (d == kUp && r.unproven)) continue;
      // Nobody has read from it yet, so its window has not grown: little is queued, and asking how little
      // costs.
      bool crowded = shared_.held_bytes() > shared_.memory_limit_bytes / 4;
      if (crowded && !memory_allows(receive_queue_memory(r.fd[d]))) {
        r.direction[d].lane = Lane::held;
        count(shared_.statistics.lane_changes(LaneChange::memory));
        continue;
      }
      r.direction[d].lane = Lane::splice;
      f.direction[d].lane_since_ns = now_ns_;
      refused[d] = m->open_valve(socket_index(f, d), r.fd[d], true);
      if (refused[d]) r.direction[d].lane = Lane::none;
    }
  }
  if (r.unproven) {  // first_bytes.cc
    r.direction[kUp].lane = Lane::held;
    count(shared_.statistics.lane_changes(LaneChange::first_bytes));
  }
  advance(f, Event::handed_off);
  set_open_deadline(f, now_ns_ + timeout_ns(f, &config::Timeouts::idle));
  for (Direction d : {kUp, kDown})
    if (lane(f, d) == Lane::splice) sockmap::Sockmap::kick(r.fd[d]);
  publish(f);
  for (Direction d : {kUp, kDown}) {
    if (r.phase != Phase::open) return;
    if (lane(f, d) == Lane::none)
      enter_relay(f, d, why);
    else if (lane(f, d) == Lane::held)
      check_held(f, d);
    else if (r.direction[d].fin_received)
      check_drain(f, d);
  }
}

}  // namespace penstock::flow
