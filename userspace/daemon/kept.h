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

#include "base/layout.h"
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

inline constexpr uint32_t kMemoryLayout = 2 + kLayoutStep;  // of Memory and Plans; base/layout.h

inline constexpr size_t kManifestBytes = 3136, kTotalsAt = 1187968;

// Where everything is that a worker of another program has to find. Written before the first worker; the
// layout and `sockmap` also by each worker of another program, `loaded_by` by its first.
struct Manifest {
  uint32_t layout;
  uint32_t flows_max, threads;
  uint32_t has_sockmap, splice;
  int32_t table, plans, crashes;  // descriptors
  uint64_t started_ns;
  double started_unix_s;
  AdminSocket::Handle admin;
  sockmap::Handles sockmap;
  char engine_reason[512], crash_directory[256];
  uint64_t loaded_by;  // which run of which program loaded what `sockmap` says; 0: the first
  uint64_t reserved[31];
};

// In memory that all workers share; zero at the start. New fields at the end: it grows when they come.
struct Memory {
  Manifest manifest;
  std::atomic<uint64_t> crashes_told;  // of State::crashes, those that are in the log
  std::atomic<uint64_t> answers_told;  // of State::upgrades_answered
  std::atomic<uint64_t> end_ns;        // when the grace is over; 0: nobody wants the end
  DrainedNames drained;
  alignas(8) std::byte log_ring[1 << 20];
  alignas(8) std::byte crash[sizeof(crash::Shared)];
  penstock_totals totals;  // where there are no maps
  penstock_listener listeners[PENSTOCK_LISTENERS_MAX];
  penstock_upstream upstreams[PENSTOCK_UPSTREAMS_MAX];
#if PENSTOCK_LAYOUT_STEP
  std::atomic<uint64_t> takeovers;  // by programs that have this field
#endif
};
// The same in every layout: what is new is at the end, or in the manifest's reserve.
static_assert(sizeof(Manifest) == kManifestBytes && offsetof(Memory, totals) == kTotalsAt);

struct Kept {
  Fd memory_file;
  bool reopened = false;  // made by another program
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
  std::vector<int> descriptors;  // sorted: of all that, and what else was open before the first worker
  ~Kept();

  flow::Statistics statistics();
  bool is_kept(int fd) const;
};

uint64_t memory_limit_bytes(const config::Config& c);

// REQUIRES: one thread.
Status make_kept(const config::Config& config, const config::Source& source, Kept* out);
void remove_kept(Kept& kept);
// Before a process that keeps them ends with flows still open: whose streams are not complete get a RST.
void reset_open_flows(flow::FlowTable& table);

// What another program made, by the descriptor of its memory. With the BPF programs of this one, which its
// first worker loads. `run`: the same for all workers of this one, and for no other program's. REQUIRES: one
// thread, and every worker before this one is dead.
Status reopen_kept(const keeper::State& state, uint64_t run, Kept* out);
void remove_kept(int memory_file);
// The configurations that a worker needs: those flows came in under, and the newest. The oldest first.
std::vector<Plans::Kept> needed_plans(Kept& kept);
// That of it which can be looked at without a change to anything: layouts, plans, engine.
Status look_at_kept(int memory_file, Kept* out);

}  // namespace penstock::daemon
