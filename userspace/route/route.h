// SPDX-License-Identifier: Apache-2.0
// route/route.h: which upstream a new flow goes to. Immutable after it is built, shared by all threads.
// Pure; tests/unit/route_test.cc.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/endpoint.h"
#include "config/config.h"

namespace penstock::route {

// What is known of a client when it is routed. `sni` lower case, empty when there is none.
struct Query {
  std::string_view sni;
  std::span<const std::string_view> alpn;
  IpAddress client;
  uint16_t port = 0;  // the port it came in on
};

struct Decision {
  bool reject = false;
  uint32_t upstream = 0;  // index into Config::upstreams; valid unless `reject`
  int32_t route = -1;     // index of the matching [[listener.route]]; -1: the listener's own upstream
};

class Table {
 public:
  // REQUIRES: every upstream named by a listener or route exists (config::parse checks it).
  explicit Table(const config::Config& config);
  // Does listener `index` have to see the ClientHello before it can decide?
  bool needs_client_hello(uint32_t listener) const;
  Decision decide(uint32_t listener, const Query& query) const;

 private:
  struct Rule;
  struct PerListener;
  std::vector<PerListener> listeners_;

 public:
  ~Table();
  Table(Table&&) noexcept;
};

// One of `prefixes` does.
bool covers(const std::vector<Cidr>& prefixes, const IpAddress& address);

// `deny` first; an empty `allow` allows all.
bool allows(const config::Listener& listener, const IpAddress& client);

// One pattern against one name (both lower case, without trailing dot). Exposed for tests and `check`.
bool sni_matches(std::string_view pattern, std::string_view name);

}  // namespace penstock::route
