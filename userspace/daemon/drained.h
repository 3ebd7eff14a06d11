// SPDX-License-Identifier: Apache-2.0
// daemon/drained.h: which upstreams and servers get no new flows, by command; also over the death of a
// worker.
#pragma once
#include <atomic>
#include <cstdint>
#include <string_view>
#include <vector>

#include "flow/plan.h"

namespace penstock::daemon {

// In memory that outlives the worker; zeros are an empty one. One writer at a time; a list that was not
// written whole is not there, the one before it is.
struct DrainedNames {
  static constexpr size_t kBytesMax = 64 << 10;
  struct List {
    uint32_t bytes;
    char text[kBytesMax];  // names, each with a '\n' behind it
  };
  std::atomic<uint32_t> current;
  List lists[2];
};

// One upstream ("mailbox") or server ("mailbox/192.0.2.1:25") of this plan, and what came of it.
struct DrainedServer {
  flow::Server* server;
  bool changed;
};
// All servers that `name` means get no new flows, or do again: for an upstream whatever its servers are
// later, for a server as long as the configuration has it. False: nothing has that name.
bool set_drained(const flow::Plan& plan, std::string_view name, bool drained,
                 std::vector<DrainedServer>* servers);

// Thread-safe.
void keep_drained(DrainedNames& names, const flow::Plan& plan);
void drain_again(const DrainedNames& names, const flow::Plan& plan);

}  // namespace penstock::daemon
