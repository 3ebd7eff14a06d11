// SPDX-License-Identifier: Apache-2.0
// flow/upstream.h: what is known of an upstream's servers while the daemon runs, and which one a flow gets.
// A Server outlives reloads as long as its upstream names it by the same text. Thread-safe.
// tests/unit/upstream_test.cc, srv_set_test.cc.
#pragma once
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "config/config.h"
#include "dns/resolver.h"
#include "route/balance.h"

namespace penstock::flow {

enum class Health : uint32_t { unknown, up, down };  // by its checks; without any it stays unknown

// Dials that fail in a row before a server is passed over while others can serve, and for how long then.
inline constexpr uint32_t kFailuresMax = 3;
inline constexpr uint64_t kShunnedNs = 10'000'000'000;

class Server {
 public:
  Server(std::string upstream, config::Server what);

  const std::string& upstream() const { return upstream_; }
  // The same in any process for a server of this text (FNV-1a, 64 bits); never 0.
  uint64_t id() const { return id_; }
  const config::Server& what() const { return what_; }

  std::atomic<Health> health{Health::unknown};
  std::atomic<bool> drained{false};  // by command: no new flows
  std::atomic<uint32_t> flows{0};    // that dial it or are open

  // What came of a dial. True: worth a line in the log, the first failure in a row or the first success
  // after.
  bool dial_failed(uint64_t now_ns);
  bool dial_succeeded();
  uint32_t failures() const { return failures_; }  // in a row
  bool shunned(uint64_t now_ns) const { return shunned_until_ns_ > now_ns; }

  // Whether the log may have a line about an address of it that failed: of many flows that wait together
  // each would write one.
  bool worth_a_line(uint64_t now_ns);

  // What its name last meant, for `status`. True: worth a line in the log, an old answer serves that did not
  // before, or no longer.
  bool set_answer(const dns::Answer& answer);
  dns::Answer answer() const;

  // An address that served while one before it did not answer goes first for a minute.
  void prefer(const IpAddress& address, uint64_t now_ns);
  void order(std::vector<IpAddress>* addresses, uint64_t now_ns) const;

 private:
  const std::string upstream_;
  const config::Server what_;
  const uint64_t id_;
  std::atomic<uint32_t> failures_{0};
  std::atomic<uint64_t> shunned_until_ns_{0};
  mutable std::mutex mutex_;
  dns::Answer answer_;
  std::optional<IpAddress> preferred_;
  uint64_t preferred_until_ns_ = 0;
  uint64_t lines_until_ns_ = 0;
  uint32_t lines_ = 0;  // until then
};

class Upstream {
 public:
  // `previous`: the upstream of this name in the configuration before, or null.
  Upstream(const config::Upstream& what, const Upstream* previous);

  // Counted in its `flows` until give_back(). Null: none may be had now: all were tried, are drained, or are
  // down and on_down is not "try".
  Server* choose(const IpAddress& client, std::span<const Server* const> tried, uint64_t now_ns);
  // Of a flow that a process which died has left: the server of this id, counted as by choose(). Null: it is
  // no more.
  Server* find(uint64_t id);
  static void give_back(Server* server) { server->flows.fetch_sub(1, std::memory_order_relaxed); }

  // With `srv`: the servers are these from now on (RFC 2782: the lowest priority serves, the others are its
  // backups; weight 0 counts as 1, those beyond kWeightMax are scaled down to it). True: they were others
  // before. REQUIRES: config::Upstream::srv.
  bool set_targets(const std::vector<dns::SrvTarget>& targets);
  // The same with what resolve_srv() has said; without targets the former servers stay.
  bool set_answer(const dns::Answer& answer);
  std::string error() const;  // of the last answer
  // By command, as a whole: servers that come later, by a reload or by DNS, are drained from their first
  // moment. Those that are there have their own `drained`.
  void set_drained(bool drained);
  bool is_drained() const;
  // With `srv`, of the server of this text, also when DNS names it only later, or again. False: it was so.
  bool keep_drained(std::string_view server, bool drained);
  std::set<std::string, std::less<>> kept_drained() const;
  size_t size() const;  // servers
  void for_each_server(const std::function<void(Server&)>& visit) const;

 private:
  struct Set {
    std::vector<std::shared_ptr<Server>> servers;
    std::unique_ptr<route::Balance> balance;  // null when there is no server
  };
  Set make_set(const std::vector<config::Server>& servers);  // the one before is in set_

  const config::Upstream what_;
  const bool by_srv_;
  mutable std::mutex mutex_;  // of what follows, where it changes: by_srv_
  Set set_;
  std::vector<dns::SrvTarget> targets_;
  std::string error_;
  bool drained_ = false;
  std::set<std::string, std::less<>> kept_drained_;
  std::map<std::string, std::shared_ptr<Server>, std::less<>>
      known_;  // by text; gone ones while flows remain
};

}  // namespace penstock::flow
