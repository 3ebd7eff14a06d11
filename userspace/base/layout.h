// SPDX-License-Identifier: Apache-2.0
// base/layout.h: the number of a layout of memory that one program leaves to the next. It counts up by one
// with a change that programs of both numbers can live with: its room comes from a reserve or the end, and
// zero there means "as before"; by two with any other: no upgrade goes across it.
#pragma once
#include <cstdint>

#include "bpf/abi.h"

namespace penstock {

// What this build adds to all of them: PENSTOCK_LAYOUT_STEP.
inline constexpr uint32_t kLayoutStep = PENSTOCK_LAYOUT_STEP;

// Whether a program of layout `own` understands `found`.
constexpr bool can_take_over(uint32_t found, uint32_t own) {
  return found + 1 >= own && own + 1 >= found;
}

}  // namespace penstock
