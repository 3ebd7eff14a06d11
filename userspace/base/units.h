// SPDX-License-Identifier: Apache-2.0
// base/units.h: durations and sizes as an operator writes them: digits and a unit, nothing else ("250ms",
// "64KiB"). A number without a unit is refused. tests/unit/units_test.cc.
#pragma once
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace penstock {

std::optional<std::chrono::milliseconds> parse_duration(std::string_view text);  // ms s m h d
std::optional<uint64_t> parse_size(std::string_view text);  // B, KiB MiB GiB TiB (1024), KB MB GB TB (1000)

// In the largest unit that divides the value; parses back to it. REQUIRES: duration >= 0
std::string duration_text(std::chrono::milliseconds duration);
std::string size_text(uint64_t bytes);

}  // namespace penstock
