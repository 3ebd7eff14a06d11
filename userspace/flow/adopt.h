// SPDX-License-Identifier: Apache-2.0
// flow/adopt.h: what a worker process that died has left. The keeper holds every descriptor under its number,
// and the records and maps are shared memory: so the next process takes stock, then its threads go on with
// each flow (adopt.cc). REQUIRES: the one that died is dead, and no thread of this one works on a flow yet.
#pragma once
#include <array>
#include <cstdint>
#include <iterator>
#include <string>
#include <vector>

#include "flow/worker.h"

namespace penstock::flow {

// A flow in hand, in words; at most `bytes`, ends with 0. No allocation, no lock: also while the process
// crashes, and whatever its numbers are.
void describe(FlowTable& table, const InHand::Flow& flow, char* out, size_t bytes);

struct Stock {
  std::vector<uint32_t> flows;   // slots
  std::vector<int> descriptors;  // that records speak of
  std::vector<uint64_t> lost;    // cookies of sockets that are not where their record says
  uint32_t abandoned = 0;        // flows that cannot even be closed without another death
  // How many of those flows, of their directions, of the pipes of these with bytes in them.
  std::array<uint32_t, std::size(kPhaseNames)> in_phase{};
  std::array<uint32_t, std::size(kLaneNames)> in_lane{};
  uint32_t filled_pipes = 0;
};
// "206 flows (3 dialing, 203 open); directions: 380 splice, 32 relay; 4 pipes with bytes in them"
std::string in_words(const Stock& stock);

// Of a flow that the one that died had in hand, and is not innocent of it. After two a flow is closed
// (worker_crashed).
void blame(Shared& shared, const InHand::Flow& flow);

// Counts anew what a death between two steps may have left wrong: active flows, pipes, free slots, charges of
// slots that are free; accepted is what active and closed say. Records that say what is not so (a descriptor
// that is another's) are corrected. `threads`: of this process.
Stock take_stock(Shared& shared, uint32_t threads);

}  // namespace penstock::flow
