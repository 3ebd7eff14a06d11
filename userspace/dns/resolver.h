// SPDX-License-Identifier: Apache-2.0
// dns/resolver.h: names to addresses without blocking a worker. c-ares lives here and nowhere else, on a thread of
// its own. Answers are cached for their TTL (at least 1 s, at most 1 h); one question per name is in flight.
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

enum class Family { any, v4, v6 };

struct Answer {
  std::vector<IpAddress> addresses;  // empty: see `error`. v6 and v4 interleaved, v6 first (RFC 8305 4)
  std::string error;                 // "no such name", "timeout", ...: one line, printable
};

class Resolver {
 public:
  // Reads resolv.conf and hosts as the system does. `servers`: "address[:port]" list instead, for tests and [dns].servers.
  static Result<std::unique_ptr<Resolver>> start(const std::vector<std::string>& servers = {});
  ~Resolver();  // answers what is outstanding with an error, joins the thread

  using Done = std::function<void(const Answer&)>;
  // Thread-safe. A fresh cached answer is delivered before this returns, on the caller's thread; else `done` runs
  // once, later, on the resolver's thread. Names are at most 253 bytes.
  void resolve(std::string_view name, Family family, Done done);

 private:
  struct Impl;
  explicit Resolver(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace penstock::dns
