// SPDX-License-Identifier: Apache-2.0
// bench/load/drive.h: the clients before the proxies: opens flows, lets them warm up, measures for a while.
#pragma once
#include <string>

#include "base/endpoint.h"
#include "request.h"

namespace penstock::bench {

struct DriveOptions {
  Endpoint to;
  std::string load = "bulk";  // bulk, paced, slow, pingpong, connections, idle
  bool down = false;          // bulk, paced, slow: the server sends
  unsigned flows = 8;         // at once
  unsigned threads = 1;
  uint64_t size = 1;  // bytes of a ping
  uint64_t rate = 0;  // bytes/s of all flows together; paced, slow
  std::string sni;    // connections: the question is a ClientHello with this name
  unsigned warm_up_ms = 500;
  unsigned measure_ms = 3000;
};

// Prints "open" when the flows are, "begin" and "end" as the measured time begins and ends, then one JSON
// object. Returns the exit code.
int drive(const DriveOptions& options);

}  // namespace penstock::bench
