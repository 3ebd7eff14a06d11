// SPDX-License-Identifier: Apache-2.0
// flow/view.h: a flow as it is shown: taken on the thread that owns it, then anybody's.
#pragma once
#include <cstdint>
#include <string>

#include "base/endpoint.h"
#include "flow/machine.h"

namespace penstock::flow {

struct DirectionView {
  Lane lane = Lane::none;
  uint64_t spliced_bytes = 0, relayed_bytes = 0;
  uint64_t held_bytes = 0;  // kernel memory that waits for the target, pipe included
  uint32_t lane_changes = 0;
};

struct FlowView {
  uint64_t cookie = 0;
  uint32_t thread = 0;
  std::string listener, upstream;  // upstream: empty before it is routed
  Endpoint client, destination, server;
  Endpoint proxy;  // the proxy in front; port 0: none
  std::string sni;
  Phase phase = Phase::free;
  uint64_t age_ms = 0, idle_ms = 0;
  DirectionView direction[2];
};

// One listener, as one thread's sockets of it are.
struct ListenerView {
  bool listening = true;  // false: shut, for good
  int accept_error = 0;   // an errno: what keeps it from accepting; it tries again
};

}  // namespace penstock::flow
