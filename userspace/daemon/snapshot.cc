// SPDX-License-Identifier: Apache-2.0
#include "daemon/snapshot.h"

#include <sched.h>

#include <atomic>

#include "base/log.h"

namespace penstock::daemon {
namespace {

constexpr int kAttempts =
    100;  // a copy takes less than a microsecond; a worker may be off its CPU amid an update

// Counters and text alike; each word is read at once. REQUIRES: nothing but __u64 and names in T.
template <typename T>
void copy(T* from, T* to) {
  static_assert(sizeof(T) % sizeof(__u64) == 0 && alignof(T) == alignof(__u64));
  for (size_t i = 0; i < sizeof(T) / sizeof(__u64); i++)
    reinterpret_cast<__u64*>(to)[i] = flow::read(reinterpret_cast<__u64*>(from)[i]);
}

}  // namespace

Snapshot take_snapshot(const flow::Shared& shared) {
  const flow::Statistics& s = shared.statistics;
  Snapshot out;
  out.plan = shared.plan();
  const flow::Plan& plan = *out.plan;
  out.listeners.resize(plan.config().listeners.size());
  out.upstreams.resize(plan.config().upstreams.size());
  for (int attempt = 0; attempt < kAttempts; attempt++) {
    if (attempt) sched_yield();
    uint64_t done = std::atomic_ref(s.totals->updates_done).load(std::memory_order_acquire);
    copy(s.totals, &out.totals);
    for (size_t i = 0; i < out.listeners.size(); i++)
      copy(&s.listeners[plan.listener_slot(i)], &out.listeners[i]);
    for (size_t i = 0; i < out.upstreams.size(); i++)
      copy(&s.upstreams[plan.upstream_slot(i)], &out.upstreams[i]);
    std::atomic_thread_fence(std::memory_order_acquire);
    out.totals.updates_done = done;
    out.totals.updates_begun = flow::read(s.totals->updates_begun);
    if (out.totals.updates_begun == done) break;
  }
  if (shared.sockmap) copy(&shared.sockmap->globals(), &out.globals);
  out.log_lines_dropped = log::dropped();
  out.clients_forgotten = shared.clients->forgotten();
  return out;
}

}  // namespace penstock::daemon
