// SPDX-License-Identifier: Apache-2.0
#include "flow/clients.h"

#include <sys/random.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstring>
#include <utility>

#include "base/assert.h"

namespace penstock::flow {
namespace {

constexpr uint32_t kBucketsMin = 16;  // of a shard
__extension__ using Wide = unsigned __int128;

std::array<uint8_t, 16> prefix_of(const IpAddress& client) {
  std::array<uint8_t, 16> prefix = client.bytes;
  if (!client.is_v4()) std::fill(prefix.begin() + 8, prefix.end(), 0);
  return prefix;
}

uint64_t random_word() {
  uint64_t word = 0;
  PENSTOCK_ASSERT(getrandom(&word, sizeof word, 0) == sizeof word);
  return word;
}

// Never above `limit`, not even for a moment: somebody else might be refused for it.
bool take(std::atomic<uint32_t>& flows, std::optional<uint32_t> limit) {
  uint32_t now = flows.load(std::memory_order_relaxed);
  do {
    if (limit && now >= *limit) return false;
  } while (!flows.compare_exchange_weak(now, now + 1, std::memory_order_relaxed));
  return true;
}

uint64_t between_flows_ns(const config::Rate& rate) {
  const auto per = static_cast<uint64_t>(std::chrono::nanoseconds(rate.per).count());
  return std::max<uint64_t>(1, per / rate.count);
}

}  // namespace

// Eight entries for each flow there may be, four times as many as live flows need: some shards get more of
// them than others.
Clients::Clients(uint32_t flows_max, uint32_t listeners_max)
    : seed_{random_word(), random_word()},
      buckets_(std::bit_ceil(std::max(kBucketsMin, 8 * flows_max / (kShards * kWays)))),
      entries_(static_cast<Entry*>(calloc(size_t{kShards} * buckets_ * kWays, sizeof(Entry)))),
      flows_of_(listeners_max) {
  PENSTOCK_ASSERT(entries_);
}

// Two rounds of a multiply-and-fold by words unknown outside.
uint64_t Clients::hash_of(const Prefix& prefix) const {
  uint64_t word[2];
  memcpy(word, prefix.data(), sizeof word);
  const auto fold = [](uint64_t a, uint64_t b) {
    const Wide product = static_cast<Wide>(a) * b;
    return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
  };
  return fold(fold(word[0] ^ seed_[0], word[1] ^ seed_[1]) ^ seed_[0], seed_[1] | 1);
}

// REQUIRES: its shard is locked. Null: it is not there.
Clients::Entry* Clients::find(uint64_t hash, const Prefix& prefix, uint32_t scope) {
  for (Entry* bucket : buckets_of(hash, scope))
    for (Entry* e = bucket; e < bucket + kWays; e++)
      if (e->scope == scope && e->prefix == prefix) return e;
  return nullptr;
}

// REQUIRES: as find(), and it is not there. Never takes the place of `kept`. Null: no room.
Clients::Entry* Clients::make(uint64_t hash, const Prefix& prefix, uint32_t scope, uint64_t now_ns,
                              const Entry* kept) {
  Entry* best = nullptr;  // of the bucket with fewer in use, the one whose loss is the least
  uint32_t best_in_use = UINT32_MAX;
  for (Entry* bucket : buckets_of(hash, scope)) {
    Entry* spare = nullptr;
    uint32_t in_use = 0;
    for (Entry* e = bucket; e < bucket + kWays; e++) {
      in_use += e->flows || e->fresh_ns > now_ns;
      if (e->flows == 0 && e != kept && (!spare || e->fresh_ns < spare->fresh_ns)) spare = e;
    }
    if (!spare || in_use >= best_in_use) continue;
    best = spare;
    best_in_use = in_use;
  }
  if (!best || best->fresh_ns > now_ns) forgotten_.fetch_add(1, std::memory_order_relaxed);
  if (best) *best = {prefix, scope, 0, 0};
  return best;
}

std::array<Clients::Entry*, 2> Clients::buckets_of(uint64_t hash, uint32_t scope) {
  // The shard is of the prefix alone: one lock for both scopes.
  const uint64_t mixed = (hash ^ scope) * 0x9e3779b97f4a7c15;  // 2^64 / golden ratio (Knuth 6.4)
  Entry* shard = &entries_[(hash % kShards) * buckets_ * kWays];
  return {&shard[(mixed >> 20 & (buckets_ - 1)) * kWays], &shard[(mixed >> 42 & (buckets_ - 1)) * kWays]};
}

std::optional<CloseReason> Clients::enter(const IpAddress& client, uint32_t listener,
                                          const config::Limits& all, const config::Limits& own,
                                          uint64_t now_ns, Place* place) {
  const config::Limits* const limits[] = {&all, &own};
  Entry* entries[2] = {nullptr, nullptr};
  const auto of_client = [](const config::Limits& l) {
    return l.max_flows_per_client || l.new_flows_per_client;
  };
  std::unique_lock<std::mutex> lock;
  if (of_client(all) || of_client(own)) {
    const Prefix prefix = prefix_of(client);
    const uint64_t hash = hash_of(prefix);
    lock = std::unique_lock(shards_[hash % kShards]);
    // Both are asked before either counts.
    for (uint32_t i = 0; i < 2; i++) {
      if (!of_client(*limits[i])) continue;
      const uint32_t scope = i == 0 ? 0 : listener + 1;
      Entry* e = find(hash, prefix, scope);
      if (!e) e = make(hash, prefix, scope, now_ns, entries[0]);
      if (!e) continue;
      entries[i] = e;
      if (limits[i]->max_flows_per_client && e->flows >= *limits[i]->max_flows_per_client)
        return CloseReason::max_flows_per_client;
      if (const auto& rate = limits[i]->new_flows_per_client) {
        const uint64_t step = between_flows_ns(*rate);
        if (std::max(e->fresh_ns, now_ns) + step > now_ns + step * rate->count)
          return CloseReason::new_flows_per_client;
      }
    }
  }
  if (!take(flows_of_[listener], own.max_flows)) return CloseReason::max_flows;
  if (!take(flows_, all.max_flows)) {
    flows_of_[listener].fetch_sub(1, std::memory_order_relaxed);
    return CloseReason::max_flows;
  }
  place->taken = true;
  for (uint32_t i = 0; i < 2; i++) {
    Entry* e = entries[i];
    if (!e) continue;
    e->flows++;
    place->counted[i] = true;
    if (const auto& rate = limits[i]->new_flows_per_client)
      e->fresh_ns = std::max(e->fresh_ns, now_ns) + between_flows_ns(*rate);
  }
  return std::nullopt;
}

void Clients::leave(const IpAddress& client, uint32_t listener, Place* place) {
  if (!std::exchange(place->taken, false)) return;
  if (place->counted[0] || place->counted[1]) {
    const Prefix prefix = prefix_of(client);
    const uint64_t hash = hash_of(prefix);
    std::lock_guard lock(shards_[hash % kShards]);
    for (uint32_t i = 0; i < 2; i++) {
      if (!std::exchange(place->counted[i], false)) continue;
      Entry* e = find(hash, prefix, i == 0 ? 0 : listener + 1);
      PENSTOCK_ASSERT(e && e->flows > 0);  // an entry with flows is never given up
      e->flows--;
    }
  }
  flows_of_[listener].fetch_sub(1, std::memory_order_relaxed);
  flows_.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace penstock::flow
