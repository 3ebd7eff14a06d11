// SPDX-License-Identifier: Apache-2.0
// daemon/audit.h: the descriptor table after a worker that died. The keeper holds them all; what nobody
// speaks of was the dead worker's alone (its rings, timers, DNS sockets, pipes on their way) and is closed.
// Sockets that listen are found by asking the kernel, connections that were accepted and became no flow by
// the port they came in on.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "base/endpoint.h"

namespace penstock::daemon {

struct FoundListener {
  int fd;
  int family;
  Endpoint where;
  std::string device;     // empty: any
  unsigned device_index;  // 0: any
};

struct Found {
  std::vector<FoundListener> listeners;
  std::vector<int> accepted;
  size_t closed = 0;
};

// Whoever dies in here leaves one more, to the next audit.
std::vector<int> open_descriptors();

// SO_BINDTOIFINDEX, which an accepted socket has of the one it came in by; 0: any device.
unsigned device_of(int fd);
// By RST: whose connection nobody goes on with must not take it for complete.
void reset_connection(int fd);

// `is_kept`: not to be touched. REQUIRES: no other thread opens or closes descriptors meanwhile.
Found audit_descriptors(const std::function<bool(int)>& is_kept);

}  // namespace penstock::daemon
