// SPDX-License-Identifier: Apache-2.0
#include "flow/machine.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>

namespace penstock::flow {
namespace {

constexpr Phase kPhases[] = {
#define X(name) Phase::name,
    PENSTOCK_PHASES(X)
#undef X
};
constexpr Event kEvents[] = {Event::accepted_from_proxy,
                             Event::accepted_speaks_first,
                             Event::accepted,
                             Event::classified,
                             Event::resolved,
                             Event::connected,
                             Event::next_server,
                             Event::header_sent,
                             Event::handed_off,
                             Event::ended,
                             Event::released};
static_assert(std::size(kEvents) == static_cast<size_t>(Event::released) + 1);

// Everywhere `from` leads to, itself included.
std::set<Phase> reachable(Phase from) {
  std::set<Phase> seen, next = {from};
  while (!next.empty()) {
    const Phase at = *next.begin();
    next.erase(next.begin());
    if (!seen.insert(at).second) continue;
    for (const Event e : kEvents)
      if (const Edge* way = edge(at, e)) next.insert(way->to);
  }
  return seen;
}

// What may happen in which phase, and where it leads. Every other pair of phase and event is a bug of ours.
TEST(Machine, EveryPairOfPhaseAndEvent) {
  const std::map<std::pair<Phase, Event>, Phase> allowed = {
      {{Phase::free, Event::accepted_from_proxy}, Phase::proxy_header},
      {{Phase::proxy_header, Event::accepted_speaks_first}, Phase::classifying},
      {{Phase::proxy_header, Event::accepted}, Phase::resolving},
      {{Phase::proxy_header, Event::ended}, Phase::closing},
      {{Phase::free, Event::accepted_speaks_first}, Phase::classifying},
      {{Phase::free, Event::accepted}, Phase::resolving},
      {{Phase::classifying, Event::classified}, Phase::resolving},
      {{Phase::resolving, Event::resolved}, Phase::dialing},
      {{Phase::dialing, Event::next_server}, Phase::resolving},
      {{Phase::dialing, Event::connected}, Phase::priming},
      {{Phase::priming, Event::header_sent}, Phase::handing_off},
      {{Phase::handing_off, Event::handed_off}, Phase::open},
      {{Phase::classifying, Event::ended}, Phase::closing},
      {{Phase::resolving, Event::ended}, Phase::closing},
      {{Phase::dialing, Event::ended}, Phase::closing},
      {{Phase::priming, Event::ended}, Phase::closing},
      {{Phase::handing_off, Event::ended}, Phase::closing},
      {{Phase::open, Event::ended}, Phase::closing},
      {{Phase::closing, Event::released}, Phase::free},
  };
  for (const Phase p : kPhases) {
    for (const Event e : kEvents) {
      const auto expected = allowed.find({p, e});
      const Edge* way = edge(p, e);
      ASSERT_EQ(way != nullptr, expected != allowed.end()) << text(p) << ", event " << static_cast<int>(e);
      if (way) {
        EXPECT_EQ(way->to, expected->second) << text(p) << ", event " << static_cast<int>(e);
      }
    }
  }
}

TEST(Machine, NoPairStandsTwice) {
  std::set<std::pair<Phase, Event>> seen;
  for (const Edge& e : kEdges) EXPECT_TRUE(seen.insert({e.from, e.event}).second) << text(e.from);
}

TEST(Machine, OutOfFreeOnlyByAccept) {
  for (const Event e : kEvents)
    EXPECT_EQ(edge(Phase::free, e) != nullptr,
              e == Event::accepted || e == Event::accepted_speaks_first || e == Event::accepted_from_proxy);
}

TEST(Machine, OutOfClosingOnlyByRelease) {
  for (const Event e : kEvents) EXPECT_EQ(edge(Phase::closing, e) != nullptr, e == Event::released);
}

// Whatever phase a flow is in, it can end there, at once; and a phase no flow gets into has no way out
// either.
TEST(Machine, EveryPhaseEnds) {
  const std::set<Phase> used = reachable(Phase::free);
  for (const Phase p : kPhases) {
    if (!used.contains(p)) {
      for (const Event e : kEvents) EXPECT_EQ(edge(p, e), nullptr) << text(p);
      continue;
    }
    EXPECT_TRUE(reachable(p).contains(Phase::closing)) << text(p);
    EXPECT_TRUE(reachable(p).contains(Phase::free)) << text(p);
    const bool live = p != Phase::free && p != Phase::closing;
    EXPECT_EQ(edge(p, Event::ended) != nullptr, live) << text(p);
  }
}

TEST(Machine, OnlyTheNextServerLeadsBack) {
  for (const Edge& e : kEdges) {
    if (e.to == Phase::free) continue;
    EXPECT_EQ(e.to < e.from, e.event == Event::next_server) << text(e.from);
  }
}

}  // namespace
}  // namespace penstock::flow
