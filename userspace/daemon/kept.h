// SPDX-License-Identifier: Apache-2.0
// daemon/kept.h: what outlives every worker: made once, before the first, by the process that becomes the
// keeper; workers are copies of it that share its descriptors, and this memory. Removed when the daemon ends.
#pragma once
#include <atomic>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "config/config.h"
#include "crash/report.h"
#include "daemon/admin.h"
#include "daemon/daemon.h"
#include "daemon/drained.h"
#include "daemon/engine.h"
#include "daemon/plans.h"
#include "flow/record.h"
#include "flow/statistics.h"
#include "keeper/state.h"
#include "sockmap/sockmap.h"

namespace penstock::daemon {

// In memory that all workers share; zero at the start.
struct Memory {
  std::atomic<uint64_t> end_ns;  // when the grace is over; 0: nobody wants the end
  DrainedNames drained;
  alignas(8) std::byte log_ring[1 << 20];
  alignas(8) std::byte crash[sizeof(crash::Shared)];
  penstock_totals totals;  // where there are no maps
  penstock_listener listeners[PENSTOCK_LISTENERS_MAX];
  penstock_upstream upstreams[PENSTOCK_UPSTREAMS_MAX];
};

struct Kept {
  Memory* memory = nullptr;
  std::optional<AdminSocket> admin;
  std::unique_ptr<sockmap::Sockmap> sockmap;
  std::optional<flow::FlowTable> table;
  std::optional<Plans> plans;
  std::string crash_directory;
  Fd crashes;  // that; may be invalid
  EngineChoice engine;
  uint32_t flows_max = 0, threads = 0;
  pid_t pid = 0;
  uint64_t started_ns = 0;
  double started_unix_s = 0;
  std::vector<int> descriptors;  // sorted: open before the first worker

  flow::Statistics statistics();
  bool is_kept(int fd) const;
};

uint64_t memory_limit_bytes(const config::Config& c);

// REQUIRES: one thread.
Status make_kept(const config::Config& config, Kept* out);
void remove_kept(Kept& kept);

}  // namespace penstock::daemon
