// SPDX-License-Identifier: Apache-2.0
#include "route/balance.h"

#include <algorithm>
#include <numeric>
#include <span>
#include <string_view>

#include "base/assert.h"

namespace penstock::route {
namespace {

constexpr uint32_t kMaglevSlots = 65537;  // a prime, more than 64 for each of 1024 servers
constexpr unsigned kRehashesMax = 64;
constexpr uint16_t kEmpty = UINT16_MAX;
static_assert(config::kServersMax < kEmpty);

// Which server a client has depends on these two for ever: they may not change.
//
// FNV-1a, 64 bits (Fowler, Noll, Vo; draft-eastlake-fnv).
uint64_t fnv1a(std::span<const uint8_t> bytes) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const uint8_t byte : bytes) hash = (hash ^ byte) * 0x100000001b3;
  return hash;
}

// The n-th output of SplitMix64 from this seed (Steele, Lea, Flood: Fast splittable pseudorandom number
// generators, OOPSLA 2014): every bit of FNV-1a's result counts in every bit of each.
uint64_t mixed(uint64_t seed, uint64_t n) {
  uint64_t z = seed + (n + 1) * 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

uint64_t hash_of(const IpAddress& address) {
  return fnv1a(std::span(address.bytes).subspan(address.is_v4() ? 12 : 0));
}

uint64_t hash_of(std::string_view text) {
  return fnv1a({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

// nginx, ngx_http_upstream_round_robin.c: at each turn everyone gains its weight, who has most takes the turn
// and pays the sum of all weights. After that many turns (divided by what divides all weights) it is as at
// the start.
std::vector<uint16_t> smooth_round(std::span<const uint16_t> members, std::span<const uint32_t> weights) {
  std::vector<int32_t> weight, credit(members.size(), 0);
  int32_t divisor = 0, sum = 0;
  for (const uint16_t member : members) {
    weight.push_back(static_cast<int32_t>(weights[member]));
    divisor = std::gcd(divisor, weight.back());
  }
  for (int32_t& w : weight) sum += w /= divisor;
  std::vector<uint16_t> turns;
  turns.reserve(static_cast<size_t>(sum));
  for (int32_t turn = 0; turn < sum; ++turn) {
    size_t richest = 0;
    for (size_t i = 0; i < members.size(); ++i) {
      credit[i] += weight[i];
      if (credit[i] > credit[richest]) richest = i;
    }
    credit[richest] -= sum;
    turns.push_back(members[richest]);
  }
  return turns;
}

// Each member in turn takes the next free slot of its own permutation of all slots; one of half the greatest
// weight at every other turn. `members` are in an order that the file's does not change.
std::vector<uint16_t> maglev_table(std::span<const uint16_t> members, std::span<const uint32_t> weights,
                                   std::span<const uint64_t> hashes) {
  struct Permutation {
    uint16_t member;
    uint32_t weight, slot, step, credit = 0;
  };
  std::vector<Permutation> all;
  uint32_t weight_most = 0;
  for (const uint16_t member : members) {
    all.push_back({member, weights[member], static_cast<uint32_t>(mixed(hashes[member], 0) % kMaglevSlots),
                   static_cast<uint32_t>(mixed(hashes[member], 1) % (kMaglevSlots - 1) + 1)});
    weight_most = std::max(weight_most, weights[member]);
  }
  std::vector<uint16_t> table(kMaglevSlots, kEmpty);
  for (uint32_t taken = 0; taken < kMaglevSlots;) {
    for (Permutation& p : all) {
      p.credit += p.weight;
      if (p.credit < weight_most) continue;
      p.credit -= weight_most;
      while (table[p.slot] != kEmpty) p.slot = (p.slot + p.step) % kMaglevSlots;
      table[p.slot] = p.member;
      if (++taken == kMaglevSlots) break;
    }
  }
  return table;
}

}  // namespace

Balance::Balance(config::Balance how, const std::vector<Member>& members) : how_(how) {
  PENSTOCK_ASSERT(members.size() <= config::kServersMax);
  for (uint16_t i = 0; i < members.size(); ++i) {
    PENSTOCK_ASSERT(members[i].weight >= 1 && members[i].weight <= config::kWeightMax);
    weights_.push_back(members[i].weight);
    hashes_.push_back(hash_of(members[i].key));
    tiers_[members[i].backup].members.push_back(i);
  }
  for (Tier& tier : tiers_) {
    if (!tier.members.empty()) build(&tier, members);
  }
}

void Balance::build(Tier* tier, const std::vector<Member>& members) const {
  if (how_ != config::Balance::source_hash) {
    tier->turns = smooth_round(tier->members, weights_);
    return;
  }
  std::sort(tier->members.begin(), tier->members.end(),
            [&](uint16_t a, uint16_t b) { return members[a].key < members[b].key; });
  tier->maglev = maglev_table(tier->members, weights_, hashes_);
}

// Every turn is taken by one thread. REQUIRES: `able` has one of the tier's members; each has a turn.
uint32_t Balance::take_turn(Tier* tier, const Set& able) {
  uint64_t first = tier->next_turn.load(std::memory_order_relaxed);
  for (;;) {
    uint64_t turn = first;
    size_t at = turn % tier->turns.size();
    while (!able[tier->turns[at]]) {
      ++turn;
      if (++at == tier->turns.size()) at = 0;
    }
    if (tier->next_turn.compare_exchange_weak(first, turn + 1, std::memory_order_relaxed)) {
      return tier->turns[at];
    }
  }
}

// A client's slots, one after the other, until one is of a server that can take it: whether it moves depends
// on no other server. When hardly any is able, each is asked how much it wants this client (rendezvous
// hashing: Thaler, Ravishankar 1998), which moves nobody else either; weights do not count then.
uint32_t Balance::by_hash(const Tier& tier, const IpAddress& client, const Set& able) const {
  const uint64_t hash = hash_of(client);
  for (unsigned n = 0; n < kRehashesMax; ++n) {
    const uint16_t member = tier.maglev[mixed(hash, n) % kMaglevSlots];
    if (able[member]) return member;
  }
  uint16_t best = kEmpty;
  uint64_t most = 0;
  for (const uint16_t member : tier.members) {
    const uint64_t wish = mixed(hash ^ hashes_[member], 0);
    if (!able[member] || (best != kEmpty && wish <= most)) continue;
    best = member;
    most = wish;
  }
  return best;
}

}  // namespace penstock::route
