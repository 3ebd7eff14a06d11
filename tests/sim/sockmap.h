// SPDX-License-Identifier: Apache-2.0
// sim/sockmap.h: the sockmap of a simulated kernel: userspace/sockmap/sockmap.cc and the programs are the
// real ones, what libbpf would do between them is bpf.cc's.
#pragma once
#include <cstddef>
#include <cstdint>

namespace penstock::sim {

inline constexpr uint32_t kFlowsMax = 16, kThreads = 2;
inline constexpr int kRingFd = (1 << 20) - 1000;  // of thread 0; its number alone says what it is

struct MapsLeft {
  size_t cookies, flows, sources, targets;
};
MapsLeft maps_left();  // entries, now
bool ring_readable(uint32_t thread);

}  // namespace penstock::sim
