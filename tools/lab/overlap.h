// SPDX-License-Identifier: Apache-2.0
// lab/overlap.h: one TCP segment as two that overlap, what a retransmission with other boundaries looks like.
// Pure.
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

namespace penstock::lab {

using Packet = std::vector<uint8_t>;  // from the IP header on

// The first two thirds of the payload, and the last two thirds. Both empty where it cannot be done: not IPv4
// (RFC 791) and TCP (RFC 9293), under three bytes of payload, SYN, RST or urgent data.
std::pair<Packet, Packet> cut_to_overlap(const Packet& packet);

}  // namespace penstock::lab
