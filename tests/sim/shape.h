// SPDX-License-Identifier: Apache-2.0
// sim/shape.h: what one life is made of: the configuration, the weather, who comes and what they do. Drawn
// from the seed (random_shape), or written down (scenarios.cc).
#pragma once
#include <string>
#include <vector>

#include "config/config.h"
#include "dns/resolver.h"
#include "sim/kernel.h"
#include "sim/peer.h"

namespace penstock::sim {

inline constexpr uint64_t kMillisecond = 1'000'000, kSecond = 1'000'000'000;

struct ClientShape {
  Talk talk;
  uint32_t listener = 0;
  Endpoint from;
  uint64_t at_ns = 0;
  size_t header_bytes = 0;  // of its first bytes, a PROXY header that we take off
};

// How an address of a server behaves, in the order of dials; the last one goes on.
struct ServerShape {
  IpAddress address;
  Remote::What what = Remote::listening;
  uint64_t delay_ns = 50'000;
  Talk talk;
};

struct NameShape {
  std::string name;
  std::vector<IpAddress> addresses;  // empty: no such name
  std::vector<dns::SrvTarget> targets;
  uint64_t delay_ns = 0;  // 0: from the cache
  bool changes = false;   // a second question is answered with the addresses the other way round
};

struct Command {
  enum What {
    kill,
    order,
    view,
    drain,
    reload,
    move_listener,
    stop_accepting,
    stop,
    fail_socket
  } what = view;
  uint64_t at_ns = 0;
};

struct Shape {
  config::Config config;
  Weather weather;
  uint32_t threads = 1;
  bool splice = true, sockmap = true;
  uint32_t flows_max = 8;
  uint64_t memory_limit = 1u << 30;
  std::vector<ClientShape> clients;
  std::vector<ServerShape> servers;
  std::vector<NameShape> names;
  std::vector<Command> commands;
  uint32_t deaths = 0, die_in = 0;  // how often the process dies; at each moment with this chance of 1 in
};

Shape random_shape(Random& random);

// Of use in scenarios too.
config::Config plain_config();
Endpoint client_endpoint(uint32_t n);
IpAddress server_address(uint32_t n);  // odd: IPv6
inline constexpr uint16_t kListenPort = 25;

}  // namespace penstock::sim
