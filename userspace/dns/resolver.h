// SPDX-License-Identifier: Apache-2.0
// dns/resolver.h: names to addresses and services to servers without blocking a worker. c-ares lives in this
// folder and nowhere else, on a thread of its own. One question per name and kind is in flight, however many
// wait for it; it is answered within kAnswerMax. What is remembered, and for how long: README.md.
// Kept true by tests/dns/resolver_test.cc, against a real server.
#pragma once
#include <chrono>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/endpoint.h"
#include "base/result.h"

namespace penstock::dns {

inline constexpr std::chrono::milliseconds kAnswerMax{5000};
// Who could have an old answer waits this long for a new one (RFC 8767 5, the client response timer).
inline constexpr std::chrono::milliseconds kStaleWait{500};
inline constexpr size_t kAddressesMax = 64, kTargetsMax = 64;  // of one answer; what is beyond is left out

enum class Family { any, v4, v6 };

struct Options {
  std::vector<Endpoint> servers;  // empty: those of resolv.conf, followed whenever it changes
  // What an answer's TTL is raised or cut to. REQUIRES: ttl_min <= ttl_max
  std::chrono::milliseconds ttl_min{std::chrono::seconds(1)}, ttl_max{std::chrono::hours(1)};
  std::chrono::milliseconds stale{std::chrono::hours(24)};  // how long beyond its TTL, while DNS is down
  bool operator==(const Options&) const = default;
};

struct SrvTarget {
  uint16_t priority = 0;  // the lowest first
  std::string host;       // lower case, no trailing dot
  uint16_t port = 0;
  uint16_t weight = 0;  // among equal priorities; 0: hardly ever (RFC 2782)
  auto operator<=>(const SrvTarget&) const = default;
};

struct Answer {
  std::vector<IpAddress> addresses;  // of resolve(): v6 and v4 interleaved, v6 first (RFC 8305 4)
  std::vector<SrvTarget> targets;    // of resolve_srv(): by priority
  // "no such name", "timeout", ...: one line, printable. Why there is nothing, or, beside addresses or
  // targets, how the last attempt to renew them failed.
  std::string error;
  bool stale = false;                                // its TTL is over, and no new answer has come
  std::chrono::steady_clock::time_point obtained{};  // when DNS said so; zero when it did not
  std::chrono::steady_clock::time_point expires{};   // the end of its TTL
  bool found() const { return !addresses.empty() || !targets.empty(); }
  bool operator==(const Answer&) const = default;
};

// Since the start.
struct Counters {
  uint64_t answered = 0, no_such_name = 0, failed = 0;  // questions, by what came of them
  uint64_t stale = 0;                                   // times an answer was given out beyond its TTL
};

class Resolver {
 public:
  // Reads the hosts file as the system does, and resolv.conf unless `options` has servers.
  static Result<std::unique_ptr<Resolver>> start(const Options& options = {});
  // Answers what is outstanding with an error, joins the thread. REQUIRES: not called from a `done`.
  ~Resolver();

  // All below are thread-safe, also from a `done`.

  // Counts from the next question on, and for what is waiting. Other servers: what the former ones said
  // counts as expired. A longer ttl_min or ttl_max does not prolong an answer that is already there.
  void configure(const Options& options);

  using Done = std::function<void(const Answer&)>;
  // What the cache can serve, and the refusal of what cannot be a host name (labels of 1-63 letters, digits,
  // '-', '_'; 253 bytes in all), is delivered before this returns, on the caller's thread; else `done` runs
  // once, later, on the resolver's thread, and must not block it.
  void resolve(std::string_view name, Family family, Done done);
  // "_imap._tcp.example.net" (RFC 2782). The name is taken as whole: no search list, no hosts file.
  void resolve_srv(std::string_view name, Done done);

  // "Nothing of what this name means could be reached": asks whatever the TTL, but at most once a second per
  // name; `done` gets the new answer, which takes the place of the old one. Asked less than a second ago, by
  // whomever: what was said then. DNS is down: the old answer, which stays.
  void renew(std::string_view name, Family family, Done done);
  void renew_srv(std::string_view name, Done done);

  Counters counters() const;

 private:
  struct Impl;
  explicit Resolver(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace penstock::dns
