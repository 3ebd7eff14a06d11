// SPDX-License-Identifier: Apache-2.0
// torture/registry.h: the lives under way, found by what the server can know of them. Owns them: an end may
// use its Life until it has called end_done(), not after. Thread-safe.
#pragma once
#include <array>
#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>

#include "ledger.h"
#include "tally.h"

namespace penstock::torture {

struct Life {
  uint64_t index = 0;
  LifePlan plan;
  Endpoint to;  // where the client connects
  Endpoint
      destination;  // that the proxy must name to the server: `to`, or what the client's PROXY header says
  bool probe = false, traced = false;
  int64_t began_us = 0;

  std::atomic<int64_t> last_progress_ms = 0;    // lies ahead during an intended pause
  std::array<std::atomic<uint64_t>, 2> sent{};  // so far, by side
  std::atomic<bool> hung = false;

 private:
  friend class Registry;
  Endpoint client, peer;  // as the server learns it; its socket's own
  std::array<EndReport, 2> reports;
  bool client_done = false, claimed = false, server_done = false;
  bool counted = false;  // among those that --concurrency bounds
  bool parked = false;
};

class Registry {
 public:
  // `ledger`: null where the proxy's log is not read.
  Registry(const Options& options, Tally& tally, Ledger* ledger);

  Life* begin();          // the next life, or none for now
  Life* begin_probe();    // none before its time
  bool finished() const;  // all lives are over, and judged
  void stop_beginning() { stopped_ = true; }
  uint64_t active() const { return active_; }

  void known_as(Life& life, const Endpoint& peer);  // the client socket's own address
  uint64_t next_port() { return ports_.fetch_add(1); }
  enum class Claim { yours, unknown, taken, departed };
  Claim claim(const Endpoint& client, Life** life);
  Claim claim(uint64_t id, Life** life);
  // The last word of an end. The life is judged when both have spoken, or when a client that left early with
  // a RST has not been heard of at the server for late_ms; a
  // connection for it that comes later still is `departed`, for the rest of the run.
  void end_done(Life& life, Side side, EndReport report);
  void reap(int64_t now_ms);
  // A server connection that belongs to nobody.
  void add_stray(Failure failure, const std::string& reason);
  void add_health_check() { tally_.health_checks.fetch_add(1); }

 private:
  struct Parked {
    int64_t until_ms;
    Life* life;
  };
  Claim claim_locked(Life* found, Life** life);
  Life* add(std::unique_ptr<Life> life);
  void uncount(Life& life);
  void conclude(Life& life);  // judges, forgets
  bool may_begin();

  const Options& options_;
  Tally& tally_;
  Ledger* const ledger_;
  const int64_t began_ms_ = now_ms();
  std::atomic<uint64_t> next_ = 0, active_ = 0, next_probe_ = 0, ports_ = 0;
  std::atomic<bool> stopped_ = false;
  mutable std::mutex mutex_;
  std::unordered_map<Life*, std::unique_ptr<Life>> lives_;
  std::unordered_map<Endpoint, Life*, EndpointHash> by_client_;
  std::unordered_map<uint64_t, Life*> by_id_;
  std::deque<Parked> parked_;
  std::unordered_set<Endpoint, EndpointHash> departed_;
  std::unordered_set<uint64_t> departed_ids_;
};

}  // namespace penstock::torture
