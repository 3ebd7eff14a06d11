// SPDX-License-Identifier: Apache-2.0
// dns/resolver.h: names to addresses without blocking a worker. c-ares lives in this folder and nowhere else,
// on a thread of its own. Answers are cached for their TTL (at least 1 s, at most 1 h), failures for 1 s; one
// question per name and family is in flight, however many wait for it. A question is answered within
// kAnswerMax. Kept true by tests/dns/resolver_test.cc, against a real server.
#pragma once
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/endpoint.h"
#include "base/result.h"

namespace penstock::dns {

inline constexpr std::chrono::milliseconds kAnswerMax{5000};

enum class Family { any, v4, v6 };

struct Answer {
  std::vector<IpAddress> addresses;  // empty: see `error`. v6 and v4 interleaved, v6 first (RFC 8305 4)
  std::string error;                 // "no such name", "timeout", ...: one line, printable
};

class Resolver {
 public:
  // Reads resolv.conf (again whenever it changes) and hosts as the system does.
  // `servers`: "address[:port]" list instead of resolv.conf's, for tests and [dns].servers.
  static Result<std::unique_ptr<Resolver>> start(const std::vector<std::string>& servers = {});
  // Answers what is outstanding with an error, joins the thread. REQUIRES: not called from a `done`.
  ~Resolver();

  using Done = std::function<void(const Answer&)>;
  // Thread-safe, also from a `done`. A fresh cached answer, and the refusal of what cannot be a host name
  // (labels of 1-63 letters, digits, '-', '_'; 253 bytes in all), is delivered before this returns, on the
  // caller's thread; else `done` runs once, later, on the resolver's thread, and must not block it.
  void resolve(std::string_view name, Family family, Done done);

 private:
  struct Impl;
  explicit Resolver(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace penstock::dns
