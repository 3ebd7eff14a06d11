// SPDX-License-Identifier: Apache-2.0
// flow/close.cc: the end of a flow, in two steps: cancel, then let go when no operation is in flight. The
// order of letting go (map entries, then descriptors, then the slot) stands here and nowhere else.
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <vector>

#include "base/log.h"
#include "flow/dial.h"
#include "flow/worker.h"

namespace penstock::flow {
namespace {

// A clean end, or nothing to tell the peer: a plain close. Else RST to both: a truncated stream must not look
// whole. Behind both FINs it is whole: what was not acknowledged yet the kernel goes on sending, unless the
// operator or the memory wants it gone.
bool ends_with_fin(const Flow& f, CloseReason reason) {
  const DirectionRecord* const d = f.record->direction;
  if (d[kUp].lane == Lane::shut && d[kDown].lane == Lane::shut)
    return reason != CloseReason::killed && reason != CloseReason::memory_limit;
  if (reason == CloseReason::no_server)
    return f.plan->upstream(f.record->upstream).on_down == config::OnDown::close;
  return reason == CloseReason::completed || reason == CloseReason::client_closed_early ||
         reason == CloseReason::proxy_probe;
}

void let_go(int fd, bool fin) {
  if (!fin) {
    linger rst{1, 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &rst, sizeof rst);
  }
  close(fd);
}

// By admit(). As many may come as somebody likes.
bool is_refusal(CloseReason reason) {
  return reason == CloseReason::denied || reason == CloseReason::max_flows ||
         reason == CloseReason::max_flows_per_client || reason == CloseReason::new_flows_per_client;
}

}  // namespace

void Worker::begin_close(Flow& f, CloseReason reason) {
  f.record->reason = static_cast<uint32_t>(reason);
  advance(f, Event::ended);
  clear_deadlines(f);
  for (uint32_t op = 0; op < 32; op++) disarm(f, static_cast<Op>(op));
  if (f.armed == 0) release(f);
}

void Worker::release(Flow& f) {
  FlowRecord& r = *f.record;
  CloseReason reason = static_cast<CloseReason>(r.reason);
  const std::array<uint64_t, 2> spliced = count_end(f, reason);
  if (!r.logged && f.plan->config().daemon.log_access && (!is_refusal(reason) || refusals_.allow(now_ns_)))
    log_access(f, reason, spliced);
  r.logged = 1;

  const bool fin = ends_with_fin(f, reason);
  for (Side s : {kClient, kUpstream})
    if (r.fd[s] >= 0) {  // closed first: what the record does not know is taken for a new connection
      let_go(r.fd[s], fin);
      r.fd[s] = -1;
    }
  if (f.dial)
    for (Attempt& a : f.dial->attempts)
      if (a.fd >= 0) let_go(std::exchange(a.fd, -1), fin);
  delete std::exchange(f.dial, nullptr);
  if (r.known) shared_.sockmap->settle(f.slot);
  for (Direction d : {kUp, kDown}) give_back_pipe(f, d);
  shared_.clients->leave(r.client.address, r.listener, &f.place);
  if (f.server) Upstream::give_back(std::exchange(f.server, nullptr));
  leave_plan(std::exchange(f.plan, nullptr));
  if (--live_ == 0) pipes_.let_go();
  advance(f, Event::released);
  std::lock_guard lock(shared_.slots_mutex);
  shared_.free_slots.push_back(f.slot);
}

// Once, however many workers die of it meanwhile. Without maps the record says so first: one that dies
// between the two leaves an end that is not counted. Returns what was spliced, read once: a verdict that is
// still running may add to it, and log and totals are to agree.
std::array<uint64_t, 2> Worker::count_end(const Flow& f, CloseReason reason) {
  FlowRecord& r = *f.record;
  const uint64_t relayed = r.direction[kUp].relayed_out_bytes + r.direction[kDown].relayed_out_bytes;
  const uint32_t upstream = r.upstream_counted ? r.upstream : UINT32_MAX;
  if (shared_.sockmap) {
    penstock_end e{.cookie = {r.cookie[kClient], r.cookie[kUpstream]},
                   .slot = f.slot,
                   .generation = r.generation,
                   .listener = r.listener,
                   .upstream = upstream,
                   .reason = static_cast<uint32_t>(reason),
                   .shown = f.shown,
                   .spliced = r.known,
                   .counted = 0,
                   .relayed_bytes = relayed,
                   .spliced_bytes = {}};
    shared_.sockmap->end(&e);
    return {e.spliced_bytes[kUp], e.spliced_bytes[kDown]};
  }
  if (std::exchange(r.ended, 1)) return {};
  if (upstream != UINT32_MAX) uncount(shared_.statistics.upstreams[upstream].active);
  Update update(shared_.statistics);
  count(shared_.statistics.totals->relayed_bytes, relayed);
  count(shared_.statistics.closed(reason));
  uncount(shared_.statistics.totals->active);
  count(shared_.statistics.listeners[r.listener].closed);
  uncount(shared_.statistics.listeners[r.listener].active);
  return {};
}

void Worker::log_access(const Flow& f, CloseReason reason, const std::array<uint64_t, 2>& spliced_bytes) {
  const FlowRecord& r = *f.record;
  std::string line = fmt::format("flow cookie={} client={} listener={}", r.cookie[kClient], r.client.text(),
                                 f.plan->listener(r.listener).name);
  if (r.sni_size) line += fmt::format(" sni={}", log::escaped(r.sni()));
  if (r.upstream != UINT32_MAX) line += fmt::format(" upstream={}", f.plan->upstream(r.upstream).name);
  if (r.proxy.port) line += fmt::format(" proxy={}{}", r.proxy.text(), r.local ? " local" : "");
  if (auto id = r.unique_id(); !id.empty()) line += fmt::format(" unique_id={}", log::escaped(id));
  if (r.server_endpoint.port) line += fmt::format(" server={}", r.server_endpoint.text());
  bool only_looked = r.local;
  for (Direction d : {kUp, kDown}) {
    const DirectionRecord& dr = r.direction[d];
    const uint64_t bytes = spliced_bytes[d] + dr.relayed_out_bytes;
    if (d == kUp && bytes > 0) only_looked = false;
    line += fmt::format(" {}={} {}_relayed={} {}_lanes={}", d == kUp ? "up" : "down", bytes,
                        d == kUp ? "up" : "down", dr.relayed_out_bytes, d == kUp ? "up" : "down",
                        dr.lane_changes);
  }
  line += fmt::format(" ms={} reason={}", (now_ns_ - r.accepted_ns) / 1'000'000, text(reason));
  log::write(access_level(reason, only_looked), line);
}

// limits.memory: the flows that hold most are reset until three eighths are free again. It begins
// before new flows are refused (accept.cc): who does not read what it asked for goes before who has just
// arrived.
void Worker::evict_if_over_limit() {
  uint64_t all = shared_.held_bytes(), limit = shared_.memory_limit_bytes;
  if (all >= limit / 4 * 3) shared_.evicting = true;
  if (!shared_.evicting) return;
  if (all < limit / 8 * 5) {
    shared_.evicting = false;
    return;
  }
  uint64_t last = shared_.last_eviction_ns.load();
  if (now_ns_ - last < kEvictionNs || !shared_.last_eviction_ns.compare_exchange_strong(last, now_ns_))
    return;
  struct Holder {
    uint64_t bytes;
    uint32_t slot, generation, thread;
  };
  std::vector<Holder> holders;
  for (uint32_t slot = 0; slot < shared_.table->used(); slot++) {
    FlowRecord& r = (*shared_.table)[slot];
    const uint32_t generation = r.generation.load(std::memory_order_acquire);
    if (r.phase.load(std::memory_order_acquire) != Phase::open) continue;
    uint64_t bytes = 0;
    for (Direction d : {kUp, kDown}) {
      if (r.known) bytes += shared_.sockmap->direction(2 * slot + d).charged;
      if (r.direction[d].pipe_in >= 0) bytes += r.direction[d].pipe_capacity_bytes;
    }
    const uint32_t thread = r.thread;
    if (bytes && r.still(generation)) holders.push_back({bytes, slot, generation, thread});
  }
  std::sort(holders.begin(), holders.end(),
            [](const Holder& x, const Holder& y) { return x.bytes > y.bytes; });
  uint64_t excess = all - limit / 8 * 5;
  for (const Holder& h : holders) {
    shared_.workers[h.thread]->kill(h.slot, h.generation, CloseReason::memory_limit);
    if (h.bytes >= excess) break;
    excess -= h.bytes;
  }
}

}  // namespace penstock::flow
