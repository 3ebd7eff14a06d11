// SPDX-License-Identifier: Apache-2.0
// flow/plan.h: one configuration as the workers use it. Immutable; a reload makes a new one beside it, and a
// flow keeps the one it came in under. What outlives a reload is shared between plans: the slot of a name in
// the pinned statistics, and what is known of a server (upstream.h). tests/unit/plan_test.cc.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/result.h"
#include "config/config.h"
#include "flow/upstream.h"
#include "route/route.h"

namespace penstock::flow {

// Which entry of `listeners` or `upstreams` a name has: its own as long as any plan holds it. Thread-safe.
class Names {
 public:
  // `name_entry(slot, name)` when a slot is given out, before anybody counts there; with "" when it is free
  // again.
  Names(uint32_t slots_max, std::function<void(uint32_t slot, std::string_view name)> name_entry)
      : slots_max_(slots_max), name_entry_(std::move(name_entry)) {}
  // nullopt: all are taken.
  std::optional<uint32_t> take(const std::string& name);
  // `name` has `slot` already, given out by a process that died; the entry stays as it is. REQUIRES: nothing
  // was taken yet, and a plan will.
  void restore(const std::string& name, uint32_t slot);
  void give_back(const std::string& name);

 private:
  struct Entry {
    uint32_t slot = 0, plans = 0;
  };
  const uint32_t slots_max_;
  const std::function<void(uint32_t, std::string_view)> name_entry_;
  std::mutex mutex_;
  std::map<std::string, Entry, std::less<>> entries_;
  std::vector<uint32_t> free_;
  uint32_t used_ = 0;
};

class Plan {
 public:
  // Servers known to `previous` (may be null) go on with what is known of them. Errors: more names than
  // slots, while those of the old configuration are still in use. `listeners` and `upstreams` outlive the
  // plan.
  static Result<std::shared_ptr<const Plan>> make(config::Config config, Names& listeners, Names& upstreams,
                                                  const Plan* previous, uint32_t id = 1);
  ~Plan();

  uint32_t id() const { return id_; }  // a flow's record names its configuration by it
  const config::Config& config() const { return config_; }
  const route::Table& routes() const { return routes_; }  // in indices of config()

  // A listener or upstream of config(), by its index there, has this slot; the records of flows say slots.
  uint32_t listener_slot(size_t index) const { return listener_slots_[index]; }
  uint32_t upstream_slot(size_t index) const { return upstream_slots_[index]; }
  // REQUIRES: of a flow that came in under this plan.
  uint32_t listener_index(uint32_t slot) const { return listener_index_.at(slot); }
  std::optional<uint32_t> find_listener(uint32_t slot) const;  // for any slot
  std::optional<uint32_t> find_upstream(uint32_t slot) const;
  uint32_t upstream_index(uint32_t slot) const { return upstream_index_.at(slot); }
  const config::Listener& listener(uint32_t slot) const { return config_.listeners[listener_index(slot)]; }
  const config::Upstream& upstream(uint32_t slot) const { return config_.upstreams[upstream_index(slot)]; }
  Upstream& servers(uint32_t slot) const { return *servers_[upstream_index(slot)]; }
  Upstream& servers_at(size_t index) const { return *servers_[index]; }

 private:
  Plan(config::Config config, Names& listeners, Names& upstreams, uint32_t id)
      : id_(id),
        config_(std::move(config)),
        routes_(config_),
        listener_names_(listeners),
        upstream_names_(upstreams) {}

  const uint32_t id_;
  const config::Config config_;
  const route::Table routes_;
  Names& listener_names_;
  Names& upstream_names_;
  std::vector<uint32_t> listener_slots_, upstream_slots_;
  std::map<uint32_t, uint32_t> listener_index_, upstream_index_;
  std::vector<std::shared_ptr<Upstream>> servers_;
};

}  // namespace penstock::flow
