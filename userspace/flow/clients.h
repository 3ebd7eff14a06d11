// SPDX-License-Identifier: Apache-2.0
// flow/clients.h: who may have one more flow: the counts behind [limits] and a listener's own limits. Shared
// by all threads and exact: of n that come at once to a place for k, k get in. Where no limit of a client is
// set nothing is locked or remembered. tests/unit/clients_test.cc.
#pragma once
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "base/endpoint.h"
#include "config/config.h"
#include "flow/close_reason.h"

namespace penstock::flow {

// A client is an IPv4 address or an IPv6 /64: what one customer has (RFC 6177), so that nobody is many by
// taking another of his addresses.
//
// What is remembered of clients has a fixed size. An entry lives while its client has flows, or has
// not recovered all of its rate. When an entry finds no place, one without flows is given up for it (its
// client may come more often than its rate), else it goes uncounted itself; `forgotten` counts both.
class Clients {
 public:
  // What a flow holds. Given back by leave().
  struct Place {
    bool taken = false;                // of max_flows
    bool counted[2] = {false, false};  // of its client: of all flows, of the listener's
  };

  Clients(uint32_t flows_max, uint32_t listeners_max);

  // `all`: [limits], `own`: the listener's; both hold. Why it may not come, or nothing and `place` is filled.
  // REQUIRES: listener < listeners_max, `place` is empty; now_ns > 0.
  std::optional<CloseReason> enter(const IpAddress& client, uint32_t listener, const config::Limits& all,
                                   const config::Limits& own, uint64_t now_ns, Place* place);
  // REQUIRES: `place` is of an enter() with this client and listener. Empties it.
  void leave(const IpAddress& client, uint32_t listener, Place* place);

  uint64_t forgotten() const { return forgotten_.load(std::memory_order_relaxed); }

 private:
  using Prefix = std::array<uint8_t, 16>;
  // Of a client, over all listeners or one. All zero: free.
  struct Entry {
    Prefix prefix;
    uint32_t scope;  // 0: all listeners; else the listener + 1
    uint32_t flows;
    // When its rate is as if it had never come (the theoretical arrival time of ITU-T I.371's cell rate
    // algorithm): each flow puts it off by per / count, at most to now + per.
    uint64_t fresh_ns;
  };
  static constexpr uint32_t kShards = 64, kWays = 8;  // two buckets of 8 entries for each client
  struct Free {
    void operator()(void* p) const { free(p); }
  };

  Entry* find(uint64_t hash, const Prefix& prefix, uint32_t scope);
  Entry* make(uint64_t hash, const Prefix& prefix, uint32_t scope, uint64_t now_ns, const Entry* kept);
  std::array<Entry*, 2> buckets_of(uint64_t hash, uint32_t scope);
  uint64_t hash_of(const Prefix& prefix) const;

  const uint64_t seed_[2];                  // nobody outside knows which clients share a bucket
  uint32_t buckets_;                        // of a shard; a power of two
  std::unique_ptr<Entry[], Free> entries_;  // untouched pages cost nothing
  std::array<std::mutex, kShards> shards_;
  std::atomic<uint32_t> flows_{0};
  std::vector<std::atomic<uint32_t>> flows_of_;  // a listener
  std::atomic<uint64_t> forgotten_{0};
};

}  // namespace penstock::flow
