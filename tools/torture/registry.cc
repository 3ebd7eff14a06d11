// SPDX-License-Identifier: Apache-2.0
#include "registry.h"

#include <fmt/format.h>

namespace penstock::torture {
namespace {

constexpr int64_t kProbeEveryMs = 200;

bool half_closes(const LifePlan& plan) {
  const auto waits_for_fin = [](const EndPlan& end) {
    return !end.gates.empty() && end.gates.back().until == kUntilFin;
  };
  return waits_for_fin(plan.ends[0]) || waits_for_fin(plan.ends[1]);
}

}  // namespace

Registry::Registry(const Options& options, Tally& tally, Ledger* ledger)
    : options_(options), tally_(tally), ledger_(ledger) {
  if (options.only_life) next_ = *options.only_life;
}

bool Registry::may_begin() {
  const int64_t elapsed_ms = now_ms() - began_ms_;
  if (options_.lives_for_ms > 0 && elapsed_ms >= options_.lives_for_ms) stopped_ = true;
  if (options_.only_life ? next_ > *options_.only_life : next_ >= options_.lives) stopped_ = true;
  if (stopped_) return false;
  uint64_t most = options_.concurrency;
  if (elapsed_ms < options_.ramp_ms) most = 1 + most * static_cast<uint64_t>(elapsed_ms) / options_.ramp_ms;
  return active_ < most;
}

Life* Registry::add(std::unique_ptr<Life> life) {
  life->destination = life->plan.proxied ? life->plan.proxied->destination : life->to;
  if (options_.preamble == Preamble::id) {
    life->plan.end(Side::client)
        .header.append(reinterpret_cast<const char*>(&life->plan.seed), sizeof life->plan.seed);
  }
  life->began_us = now_us();
  life->last_progress_ms = life->began_us / 1000;
  Life* bare = life.get();
  std::lock_guard lock(mutex_);
  if (options_.preamble == Preamble::id) by_id_[life->plan.seed] = bare;
  lives_[bare] = std::move(life);
  return bare;
}

Life* Registry::begin() {
  if (!may_begin()) return nullptr;
  const uint64_t index = next_.fetch_add(1);
  if (options_.only_life ? index > *options_.only_life : index >= options_.lives) return nullptr;
  active_.fetch_add(1);
  auto life = std::make_unique<Life>();
  life->counted = true;
  life->index = index;
  const Entrance& entrance = options_.to[index % options_.to.size()];
  life->plan = plan_life(options_.seed, index, options_.recipe, entrance.manners);
  life->to = entrance.to;
  life->traced = options_.only_life.has_value();
  if (life->traced) fmt::print(stderr, "life {} to {}: {}\n", index, life->to.text(), describe(life->plan));
  return add(std::move(life));
}

Life* Registry::begin_probe() {
  const int64_t due_ms = began_ms_ + static_cast<int64_t>(next_probe_) * kProbeEveryMs;
  if (!options_.probe_client || (stopped_ && active_ == 0) || now_ms() < due_ms) return nullptr;
  auto life = std::make_unique<Life>();
  life->index = next_probe_.fetch_add(1);
  const Entrance& entrance = options_.to[life->index % options_.to.size()];
  life->plan = plan_probe(options_.seed, life->index, entrance.manners);
  life->to = entrance.to;
  life->probe = true;
  return add(std::move(life));
}

bool Registry::finished() const {
  if (!stopped_) return false;
  std::lock_guard lock(mutex_);
  return lives_.empty();
}

void Registry::known_as(Life& life, const Endpoint& peer) {
  if (ledger_ != nullptr) ledger_->begin(peer);
  std::lock_guard lock(mutex_);
  life.peer = peer;
  life.client = life.plan.proxied ? life.plan.proxied->client : peer;
  by_client_[life.client] = &life;
  departed_.erase(life.client);
}

Registry::Claim Registry::claim_locked(Life* found, Life** life) {
  if (found->claimed) return Claim::taken;
  found->claimed = true;
  *life = found;
  return Claim::yours;
}

Registry::Claim Registry::claim(const Endpoint& client, Life** life) {
  std::lock_guard lock(mutex_);
  const auto found = by_client_.find(client);
  if (found != by_client_.end()) return claim_locked(found->second, life);
  return departed_.contains(client) ? Claim::departed : Claim::unknown;
}

Registry::Claim Registry::claim(uint64_t id, Life** life) {
  std::lock_guard lock(mutex_);
  const auto found = by_id_.find(id);
  if (found != by_id_.end()) return claim_locked(found->second, life);
  return departed_ids_.contains(id) ? Claim::departed : Claim::unknown;
}

void Registry::end_done(Life& life, Side side, EndReport report) {
  std::lock_guard lock(mutex_);
  const bool may_still_arrive = report.arrived && !life.hung;
  life.reports[index_of(side)] = std::move(report);
  (side == Side::client ? life.client_done : life.server_done) = true;
  if (!life.client_done) return;
  if (life.server_done || (!life.claimed && !may_still_arrive)) {
    conclude(life);
  } else if (!life.claimed) {
    uncount(life);
    life.parked = true;
    parked_.push_back({now_ms() + options_.late_ms, &life});
  }
}

void Registry::uncount(Life& life) {
  if (!life.counted) return;
  life.counted = false;
  active_.fetch_sub(1);
}

void Registry::reap(int64_t now) {
  std::lock_guard lock(mutex_);
  while (!parked_.empty() && parked_.front().until_ms <= now) {
    Life* life = parked_.front().life;
    parked_.pop_front();
    life->parked = false;
    if (!life->claimed) conclude(*life);
  }
}

void Registry::conclude(Life& life) {
  const EndReport& client = life.reports[index_of(Side::client)];
  const EndReport& server = life.reports[index_of(Side::server)];
  const Verdict verdict = judge(life.plan, client, server, life.hung);
  if (verdict.failure != Failure::none) {
    tally_.add_failure(verdict.failure);
    tell_failure(options_, life.index, verdict.failure,
                 fmt::format("{} [{}]", verdict.reason, describe(life.plan)));
  }
  if (life.traced) {
    fmt::print(stderr, "verdict: {}: client {}; server {}\n", name_of(verdict.failure), describe(client),
               describe(server));
  }
  if (life.probe) {
    (verdict.failure == Failure::none ? tally_.probes_good : tally_.probes_bad).fetch_add(1);
    raise_to(tally_.probe_worst_us, static_cast<uint64_t>(now_us() - life.began_us));
  } else {
    tally_.done.fetch_add(1);
    if (client.reset_sent) tally_.reset_by_client.fetch_add(1);
    if (server.reset_sent) tally_.reset_by_server.fetch_add(1);
    if (life.plan.starved && !client.reset_sent) tally_.starved_resets.fetch_add(1);
    if (client.fin_seen && server.fin_seen && half_closes(life.plan)) tally_.half_closed.fetch_add(1);
  }
  if (client.reset_sent && !server.arrived) {
    tally_.upstream_never_dialled.fetch_add(1);
    departed_.insert(life.client);
    departed_ids_.insert(life.plan.seed);
  }
  if (client.arrived) tally_.connected.fetch_add(1);
  tally_.sent_bytes.fetch_add(client.sent + server.sent);
  if (ledger_ != nullptr && client.arrived) {
    LedgerEntry entry = entry_of(life.index, life.plan, client, server);
    entry.failed = verdict.failure != Failure::none;
    entry.judged = !entry.failed && !life.plan.starved;
    ledger_->expect(life.peer, std::move(entry));
  }
  if (life.claimed || !client.reset_sent) tally_.last_end_ms = now_ms();
  uncount(life);
  if (life.parked) std::erase_if(parked_, [&](const Parked& p) { return p.life == &life; });

  const auto by_client = by_client_.find(life.client);
  if (by_client != by_client_.end() && by_client->second == &life) by_client_.erase(by_client);
  by_id_.erase(life.plan.seed);
  lives_.erase(&life);
}

void Registry::add_stray(Failure failure, const std::string& reason) {
  if (failure == Failure::headerless) {
    tally_.headerless.fetch_add(1);
    return;
  }
  tally_.add_failure(failure);
  tell_failure(options_, std::nullopt, failure, reason);
}

}  // namespace penstock::torture
