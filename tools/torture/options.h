// SPDX-License-Identifier: Apache-2.0
// torture/options.h: the command line. Printed by --help; README.md says which to use for what.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/endpoint.h"
#include "life.h"
#include "proxy_header.h"

namespace penstock::torture {

// One of the proxy's addresses.
struct Entrance {
  Endpoint to;
  Manners manners;
};

struct Options {
  std::vector<Entrance> to;     // where clients connect; lives alternate
  std::vector<Endpoint> serve;  // where the server listens
  Preamble preamble = Preamble::v2;
  Recipe recipe;
  uint64_t seed = 0;                  // drawn where none is given
  uint64_t lives = 10'000;            // kWithoutEnd: until lives_for_ms
  uint32_t lives_for_ms = 0;          // 0: until `lives`
  std::optional<uint64_t> only_life;  // replay with a trace
  uint32_t concurrency = 200;
  uint32_t ramp_ms = 0;  // concurrency grows to its value in this time
  uint32_t hang_ms = 30'000;
  uint32_t late_ms = 5000;     // the server may hear so late of a client that left with a RST
  std::optional<Cidr> source;  // clients bind addresses of it in rotation
  std::string penstockd,
      engine = "auto";     // an own daemon is started, with this engine; empty: it is there already
  std::string admin, log;  // of a penstockd that is there: its admin socket, the file that has its access log
  bool probe_client = false;
  bool redials = false;  // an upstream connection may end without a header, and another take its place
  bool json = false;
  unsigned threads = 2;
};

std::optional<Endpoint> parse_endpoint(std::string_view text);  // "192.0.2.1:25", "[2001:db8::1]:25"

// Exits with the usage and code 2 on a mistake, 0 after --help.
Options parse_options(int argc, char** argv);

}  // namespace penstock::torture
