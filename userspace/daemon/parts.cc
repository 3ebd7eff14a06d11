// SPDX-License-Identifier: Apache-2.0
#include "daemon/parts.h"

#include <sys/mman.h>

namespace penstock::daemon {
namespace {

void name_counters(Parts& p) {
  const flow::Statistics& s = p.shared.statistics;
  auto name = [](auto* entries) {
    return [entries](uint32_t slot, std::string_view text) {
      entries[slot] = {};
      text.copy(entries[slot].name, PENSTOCK_NAME_BYTES - 1);
    };
  };
  p.listener_names.emplace(PENSTOCK_LISTENERS_MAX, name(s.listeners));
  p.upstream_names.emplace(PENSTOCK_UPSTREAMS_MAX, name(s.upstreams));
}

}  // namespace

Parts::~Parts() {
  listeners.reset();
  for (auto& w : shared.workers) w->join();  // stopped before, or never started
  doctor.reset();
  checker.reset();   // before the resolver it asks
  services.reset();  // its plan goes before the names that have it
  resolver.reset();  // its last answers go to the workers
  shared.workers.clear();
  if (flows) munmap(flows, flows_bytes);
}

Status build(Parts& p, Kept& kept, Facts& facts) {
  flow::Shared& shared = p.shared;
  shared.sockmap = kept.sockmap.get();
  shared.splice = kept.engine.splice;
  shared.statistics = kept.statistics();
  name_counters(p);
  p.flows_bytes = sizeof(flow::Flow) * kept.flows_max;
  void* memory = mmap(nullptr, p.flows_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return Error{"no memory for the flow table"};
  p.flows = static_cast<flow::Flow*>(memory);
  shared.table = &*kept.table;
  shared.flows = p.flows;
  shared.free_slots.reserve(kept.flows_max);
  p.clients.emplace(kept.flows_max, PENSTOCK_LISTENERS_MAX);
  shared.clients = &*p.clients;
  facts.flows_max = kept.flows_max;
  facts.engine = kept.engine.splice ? "sockmap" : "io_uring";
  facts.engine_reason = kept.engine.reason;
  facts.pid = kept.pid;
  facts.started_ns = kept.started_ns;
  facts.started_unix_s = kept.started_unix_s;
  return Nothing{};
}

void make_workers(Parts& p, Kept& kept, Facts& facts) {
  for (unsigned t = 0; t < kept.threads; t++)
    p.shared.workers.push_back(std::make_unique<flow::Worker>(p.shared, t));
  p.listeners.emplace(p.shared.workers, kept.engine.splice ? kept.sockmap.get() : nullptr);
  facts.listeners = &*p.listeners;
}

Status begin(Parts& p, Kept& kept, const config::Config& c, const config::Source& source) {
  for (uint32_t slot = kept.flows_max; slot-- > 0;) p.shared.free_slots.push_back(slot);
  p.shared.memory_limit_bytes = memory_limit_bytes(c);
  auto plan = flow::Plan::make(c, *p.listener_names, *p.upstream_names, nullptr, 1);
  if (!plan) return plan.error();
  kept.plans->keep(source, *plan);
  p.shared.set_plan(*plan);
  const auto failures = p.listeners->apply(*plan);
  if (!failures.empty()) return Error{failures[0]};
  return Nothing{};
}

}  // namespace penstock::daemon
