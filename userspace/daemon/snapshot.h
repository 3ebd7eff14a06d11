// SPDX-License-Identifier: Apache-2.0
// daemon/snapshot.h: all counters at one moment, copied out of the memory of the maps. What `penstock status`
// and /metrics say is made from one of these.
#pragma once
#include <cstdint>
#include <vector>

#include "bpf/abi.h"
#include "flow/worker.h"

namespace penstock::daemon {

struct Snapshot {
  std::shared_ptr<const flow::Plan> plan;  // whose listeners and upstreams these are
  penstock_totals totals{};
  std::vector<penstock_listener> listeners;  // in the order of the configuration, as are the upstreams
  std::vector<penstock_upstream> upstreams;
  penstock_globals globals{};  // zeros without maps
  uint64_t log_lines_dropped = 0;
  uint64_t clients_forgotten = 0;
};

// Thread-safe; asks no worker. The law holds in it exactly, for the totals and for each listener, unless
// updates came so fast for so long that no quiet moment was found: then totals.updates_begun -
// totals.updates_done bounds what it is off by.
Snapshot take_snapshot(const flow::Shared& shared);

}  // namespace penstock::daemon
