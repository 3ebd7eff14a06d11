// SPDX-License-Identifier: Apache-2.0
// flow/machine.h: the phases of a flow and the only ways between them. Worker::advance() is the one writer of
// a phase and asserts on this table; the lanes of an open flow's directions are a matter of their own
// (lane_change.cc).
#pragma once
#include <cstdint>

#include "bpf/abi.h"

namespace penstock::flow {

enum class Phase : uint32_t {
#define X(name) name,
  PENSTOCK_PHASES(X)
#undef X
};
enum class Lane : uint32_t {
#define X(name) name,
  PENSTOCK_LANES(X)
#undef X
};
inline constexpr const char* kPhaseNames[] = {
#define X(name) #name,
    PENSTOCK_PHASES(X)
#undef X
};
inline constexpr const char* kLaneNames[] = {
#define X(name) #name,
    PENSTOCK_LANES(X)
#undef X
};
inline const char* text(Phase p) {
  return kPhaseNames[static_cast<uint32_t>(p)];
}
inline const char* text(Lane l) {
  return kLaneNames[static_cast<uint32_t>(l)];
}

enum class Event : uint32_t {
  accepted_from_proxy,    // who the client is, the PROXY header will tell
  accepted_speaks_first,  // the client is known; the listener routes by what it says
  accepted,               // the client is known; the listener's own upstream
  classified,
  resolved,
  connected,
  next_server,  // this one failed, there is another
  header_sent,
  handed_off,
  ended,     // for whatever CloseReason
  released,  // no operation is in flight any more, descriptors closed
};

struct Edge {
  Phase from;
  Event event;
  Phase to;
};

inline constexpr Edge kEdges[] = {
    {Phase::free, Event::accepted_from_proxy, Phase::proxy_header},
    {Phase::free, Event::accepted_speaks_first, Phase::classifying},
    {Phase::free, Event::accepted, Phase::resolving},
    {Phase::proxy_header, Event::accepted_speaks_first, Phase::classifying},
    {Phase::proxy_header, Event::accepted, Phase::resolving},
    {Phase::proxy_header, Event::ended, Phase::closing},
    {Phase::classifying, Event::classified, Phase::resolving},
    {Phase::classifying, Event::ended, Phase::closing},
    {Phase::resolving, Event::resolved, Phase::dialing},
    {Phase::resolving, Event::ended, Phase::closing},
    {Phase::dialing, Event::next_server, Phase::resolving},
    {Phase::dialing, Event::connected, Phase::priming},
    {Phase::dialing, Event::ended, Phase::closing},
    {Phase::priming, Event::header_sent, Phase::handing_off},
    {Phase::priming, Event::ended, Phase::closing},
    {Phase::handing_off, Event::handed_off, Phase::open},
    {Phase::handing_off, Event::ended, Phase::closing},
    {Phase::open, Event::ended, Phase::closing},
    {Phase::closing, Event::released, Phase::free},
};

// The phase `event` leads to, or nullptr: that may not happen there.
constexpr const Edge* edge(Phase from, Event event) {
  for (const Edge& e : kEdges)
    if (e.from == from && e.event == event) return &e;
  return nullptr;
}

}  // namespace penstock::flow
