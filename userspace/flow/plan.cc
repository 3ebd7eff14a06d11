// SPDX-License-Identifier: Apache-2.0
#include "flow/plan.h"

#include <fmt/format.h>

#include "base/assert.h"

namespace penstock::flow {

std::optional<uint32_t> Names::take(const std::string& name) {
  std::lock_guard lock(mutex_);
  if (auto known = entries_.find(name); known != entries_.end()) {
    known->second.plans++;
    return known->second.slot;
  }
  uint32_t slot = used_;
  if (!free_.empty()) {
    slot = free_.back();
    free_.pop_back();
  } else if (used_ == slots_max_) {
    return std::nullopt;
  } else {
    used_++;
  }
  entries_[name] = {slot, 1};
  name_entry_(slot, name);
  return slot;
}

void Names::restore(const std::string& name, uint32_t slot) {
  std::lock_guard lock(mutex_);
  if (!entries_.emplace(name, Entry{slot, 0}).second) return;
  for (; used_ <= slot; used_++)
    if (used_ != slot) free_.push_back(used_);
  std::erase(free_, slot);
}

void Names::give_back(const std::string& name) {
  std::lock_guard lock(mutex_);
  auto known = entries_.find(name);
  PENSTOCK_ASSERT(known != entries_.end());
  if (--known->second.plans) return;
  name_entry_(known->second.slot, "");
  free_.push_back(known->second.slot);
  entries_.erase(known);
}

Result<std::shared_ptr<const Plan>> Plan::make(config::Config config, Names& listeners, Names& upstreams,
                                               const Plan* previous, uint32_t id) {
  std::shared_ptr<Plan> plan(new Plan(std::move(config), listeners, upstreams, id));
  const config::Config& c = plan->config_;
  for (const config::Listener& l : c.listeners) {
    const auto slot = listeners.take(l.name);
    if (!slot) return Error{"too many listeners while those of the old configuration still have flows"};
    plan->listener_index_[*slot] = static_cast<uint32_t>(plan->listener_slots_.size());
    plan->listener_slots_.push_back(*slot);
  }
  for (const config::Upstream& u : c.upstreams) {
    const auto slot = upstreams.take(u.name);
    if (!slot) return Error{"too many upstreams while those of the old configuration still have flows"};
    const auto index = static_cast<uint32_t>(plan->upstream_slots_.size());
    plan->upstream_index_[*slot] = index;
    plan->upstream_slots_.push_back(*slot);
    const Upstream* known = nullptr;
    if (previous)
      if (auto before = previous->upstream_index_.find(*slot); before != previous->upstream_index_.end())
        known = previous->servers_[before->second].get();
    plan->servers_.push_back(std::make_shared<Upstream>(u, known));
  }
  return std::shared_ptr<const Plan>(std::move(plan));
}

std::optional<uint32_t> Plan::find_listener(uint32_t slot) const {
  const auto found = listener_index_.find(slot);
  if (found == listener_index_.end()) return std::nullopt;
  return found->second;
}

std::optional<uint32_t> Plan::find_upstream(uint32_t slot) const {
  const auto found = upstream_index_.find(slot);
  if (found == upstream_index_.end()) return std::nullopt;
  return found->second;
}

Plan::~Plan() {
  for (size_t i = 0; i < listener_slots_.size(); i++) listener_names_.give_back(config_.listeners[i].name);
  for (size_t i = 0; i < upstream_slots_.size(); i++) upstream_names_.give_back(config_.upstreams[i].name);
}

}  // namespace penstock::flow
