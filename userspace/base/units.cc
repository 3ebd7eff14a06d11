// SPDX-License-Identifier: Apache-2.0
#include "base/units.h"

#include <charconv>
#include <limits>
#include <span>

namespace penstock {
namespace {

struct Unit {
  std::string_view name;
  uint64_t factor;
};

// Printing takes the first unit that divides, so the order is the preference.
constexpr Unit kDurations[] = {{"d", 86'400'000}, {"h", 3'600'000}, {"m", 60'000}, {"s", 1'000}, {"ms", 1}};
constexpr Unit kSizes[] = {
    {"TiB", 1ULL << 40},
    {"GiB", 1ULL << 30},
    {"MiB", 1ULL << 20},
    {"KiB", 1ULL << 10},
    {"TB", 1'000'000'000'000},
    {"GB", 1'000'000'000},
    {"MB", 1'000'000},
    {"KB", 1'000},
    {"B", 1},
};

std::optional<uint64_t> parse(std::string_view text, std::span<const Unit> units) {
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{}) return std::nullopt;
  text.remove_prefix(static_cast<size_t>(end - text.data()));
  for (const Unit& unit : units) {
    if (text != unit.name) continue;
    if (number > std::numeric_limits<uint64_t>::max() / unit.factor) return std::nullopt;
    return number * unit.factor;
  }
  return std::nullopt;
}

std::string print(uint64_t value, std::span<const Unit> units) {
  for (const Unit& unit : units) {
    if (value != 0 && value % unit.factor == 0) {
      return std::to_string(value / unit.factor).append(unit.name);
    }
  }
  return std::string("0").append(units.back().name);
}

}  // namespace

std::optional<std::chrono::milliseconds> parse_duration(std::string_view text) {
  const std::optional<uint64_t> ms = parse(text, kDurations);
  if (!ms || *ms > static_cast<uint64_t>(std::chrono::milliseconds::max().count())) return std::nullopt;
  return std::chrono::milliseconds(*ms);
}

std::optional<uint64_t> parse_size(std::string_view text) {
  return parse(text, kSizes);
}

std::string duration_text(std::chrono::milliseconds duration) {
  return print(static_cast<uint64_t>(duration.count()), kDurations);
}

std::string size_text(uint64_t bytes) {
  return print(bytes, kSizes);
}

}  // namespace penstock
