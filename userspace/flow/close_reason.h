// SPDX-License-Identifier: Apache-2.0
// flow/close_reason.h: why a flow ended. Public vocabulary: enumerator = counter = access-log word; the list,
// with whose doing each is, stands in bpf/abi.h because the counters live in a map.
#pragma once
#include <cstddef>
#include <cstdint>

#include "base/log.h"
#include "bpf/abi.h"

namespace penstock::flow {

enum class CloseReason : uint32_t {
#define X(name) name,
  PENSTOCK_CLOSE_REASONS(X)
#undef X
};

inline constexpr const char* kCloseReasonNames[] = {
#define X(name) #name,
    PENSTOCK_CLOSE_REASONS(X)
#undef X
};
inline constexpr size_t kCloseReasons = sizeof kCloseReasonNames / sizeof *kCloseReasonNames;
static_assert(sizeof(penstock_closed) == kCloseReasons * sizeof(uint64_t));

enum class LaneChange : uint32_t {
#define X(name) name,
  PENSTOCK_LANE_CHANGES(X)
#undef X
};
inline constexpr const char* kLaneChangeNames[] = {
#define X(name) #name,
    PENSTOCK_LANE_CHANGES(X)
#undef X
};
inline constexpr size_t kLaneChanges = sizeof kLaneChangeNames / sizeof *kLaneChangeNames;
static_assert(sizeof(penstock_lane_changes) == kLaneChanges * sizeof(uint64_t));

inline const char* text(CloseReason r) {
  return kCloseReasonNames[static_cast<size_t>(r)];
}
// Of the one line that a flow leaves. `only_looked`: a proxy in front had nothing to say.
inline log::Level access_level(CloseReason r, bool only_looked = false) {
  return only_looked || r == CloseReason::proxy_probe ? log::Level::debug : log::Level::info;
}
inline const char* text(LaneChange c) {
  return kLaneChangeNames[static_cast<size_t>(c)];
}

}  // namespace penstock::flow
