// SPDX-License-Identifier: Apache-2.0
// check/checker.h: which servers are up, found by asking each of them every `interval`. One thread for the
// whole daemon; servers of two upstreams that are checked in the same way share one check. README.md has the
// rules; tests/check/checker_test.cc keeps them.
#pragma once
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "check/probe.h"
#include "config/config.h"
#include "dns/resolver.h"

namespace penstock::check {

enum class State { unknown, up, down };  // unknown: not checked yet
const char* text(State state);

struct Health {
  using Time = std::chrono::system_clock::time_point;
  State state = State::unknown;
  Time since;                              // of the state
  Failure failure = Failure::none;         // of the last check that failed, and why
  std::string reason;                      // printable, one line; empty: none failed
  std::optional<Time> checked;             // the last check's end
  milliseconds took{0};                    // the last check, from its first dial to its verdict
  std::optional<Endpoint> address;         // last dialled
  std::optional<Certificate> certificate;  // last seen, type tls
  uint64_t checks = 0, failed = 0;         // so far; marks by suspect() are in neither
  uint32_t failed_in_a_row = 0;            // those too; 0: the last one passed
  uint64_t changes = 0;                    // from up to down or back, so far
};

// One server of one upstream.
struct Target {
  std::string upstream;
  config::Server server;
  config::Check check;
  config::ProxyProtocol proxy_protocol = config::ProxyProtocol::off;  // of the upstream
  config::Family family = config::Family::any;
  std::optional<IpAddress> source;

  std::string key() const { return key_of(upstream, server.text); }
  static std::string key_of(std::string_view upstream,
                            std::string_view server_text);  // "mailbox/10.0.0.2:25"
};

// Every server of every upstream that has a `check`; of `srv` upstreams those that stand in `servers`.
std::vector<Target> targets_of(const config::Config& config);

class Checker {
 public:
  // On the checker's thread, after the state of a target changed and was logged; may call what is below.
  using OnChange = std::function<void(const std::string& key, const Health& health)>;

  // `resolver` outlives the checker.
  static Result<std::unique_ptr<Checker>> start(dns::Resolver& resolver, OnChange on_change);
  // Says goodbye where a check is under way (2 s at most), joins the thread.
  ~Checker();

  // Thread-safe, all three.
  // Replaces the whole set, with a reload or when DNS names others. Equal targets keep schedule, state and
  // counts; a new target that joins a check whose state is known hears of it by OnChange.
  void set(const std::vector<Target>& targets);
  // A flow could not be connected to it: counts as one failed check and brings the next one forward; at most
  // once a second, what comes in between is ignored. Unknown keys are ignored. `reason`: printable.
  void suspect(const std::string& key, std::string_view reason);
  std::optional<Health> health(const std::string& key) const;  // nothing: no such target

 private:
  struct Impl;
  explicit Checker(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace penstock::check
