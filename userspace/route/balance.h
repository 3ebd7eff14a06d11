// SPDX-License-Identifier: Apache-2.0
// route/balance.h: which server of an upstream a new flow goes to. Pure: no clock, no allocation once built;
// one Balancer is shared by all threads. What is known of the servers comes from the caller, anew at each
// choice. tests/unit/balance_test.cc.
#pragma once
#include <atomic>
#include <bitset>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/endpoint.h"
#include "config/config.h"

namespace penstock::route {

// A server as the balance knows it. `key` is what source_hash hashes: the text of the server.
struct Member {
  std::string key;
  uint32_t weight = 1;
  bool backup = false;
};

//   round_robin  by turns in the order of nginx's smooth weighted round robin: in every round each server as
//                often as its weight says, spread as evenly as it goes. Turns of those who cannot take them
//                are skipped.
//   least_flows  fewest flows for its weight; among equals by turns, as above.
//   source_hash  Maglev (Eisenbud et al., NSDI 2016, 3.4): the same client, by its whole address, the same
//                server, on every machine and after every restart, in whatever order the servers stand. A
//                client whose server cannot take it has a next one, and one after that; nobody else moves.
//                Add or remove a server, and less than 1 % of the clients of the others move.
//                The whole address also of IPv6, not its /64: one /64 may be all the clients there are (an
//                office, an overlay network). The price: who changes address within it may change server.
//                The hash has no secret: clients who pick their addresses can pick their server.
//
// Backups, by the same rule, take what no other server can.
class Balance {
 public:
  // REQUIRES: what config::parse says of servers: at most kServersMax, weights from 1 to kWeightMax, no two
  // keys alike. 1024 of great weights may take a second.
  Balance(config::Balance how, const std::vector<Member>& members);

  // An index into `members` for which `fit(index)` says true; nothing when there is none. `flows(index)`: how
  // many it has open; asked for least_flows. Both are called within, on the caller's thread. Thread-safe.
  template <typename Fit, typename Flows>
  std::optional<uint32_t> choose(const IpAddress& client, Fit fit, Flows flows) {
    for (Tier& tier : tiers_) {
      Set able;
      for (const uint16_t member : tier.members) {
        if (fit(member)) able.set(member);
      }
      if (able.none()) continue;
      switch (how_) {
        case config::Balance::round_robin:
          return take_turn(&tier, able);
        case config::Balance::least_flows:
          return take_turn(&tier, least_loaded(tier, able, flows));
        case config::Balance::source_hash:
          return by_hash(tier, client, able);
      }
    }
    return std::nullopt;
  }

 private:
  using Set = std::bitset<config::kServersMax>;
  struct Tier {  // the members that are no backups, or those that are
    std::vector<uint16_t> members;
    std::vector<uint16_t> turns;   // a whole round; of round_robin and least_flows
    std::vector<uint16_t> maglev;  // of source_hash
    std::atomic<uint64_t> next_turn{0};
  };

  template <typename Flows>
  Set least_loaded(const Tier& tier, const Set& able, Flows flows) const {
    Set least;
    uint64_t least_flows = 0, least_weight = 1;
    for (const uint16_t member : tier.members) {
      if (!able[member]) continue;
      const uint64_t its_flows = flows(member);
      // its_flows / its weight against least_flows / least_weight
      const uint64_t its = its_flows * least_weight, others = least_flows * weights_[member];
      if (least.none() || its < others) {
        least.reset();
        least_flows = its_flows;
        least_weight = weights_[member];
      } else if (its > others) {
        continue;
      }
      least.set(member);
    }
    return least;
  }
  void build(Tier* tier, const std::vector<Member>& members) const;
  static uint32_t take_turn(Tier* tier, const Set& able);
  uint32_t by_hash(const Tier& tier, const IpAddress& client, const Set& able) const;

  const config::Balance how_;
  std::vector<uint32_t> weights_;
  std::vector<uint64_t> hashes_;  // of the keys
  Tier tiers_[2];
};

}  // namespace penstock::route
