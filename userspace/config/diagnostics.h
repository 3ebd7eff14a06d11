// SPDX-License-Identifier: Apache-2.0
// config/diagnostics.h: collects the mistakes of one file and words them.
#pragma once
#include <compare>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "config/config.h"

namespace penstock::config {

struct Position {
  uint32_t line = 1;
  uint32_t column = 1;  // in code points
  auto operator<=>(const Position&) const = default;
};

class Diagnostics {
 public:
  explicit Diagnostics(std::string_view file_name) : file_name_(file_name) {}
  // `what` is shown as it is: bytes of the file go through quoted().
  void error(Position at, std::string what) { found_.push_back({at, true, std::move(what)}); }
  // The value there is not known: what is found wrong with it later is not told.
  void unknown_value(Position at, std::string what) { unknown_[at] = std::move(what); }
  void warning(Position at, std::string what) { found_.push_back({at, false, std::move(what)}); }
  bool has_errors() const;
  std::vector<Diagnostic> by_line() const;

 private:
  struct Found {
    Position at;
    bool is_error;
    std::string what;
  };
  std::string file_name_;
  std::vector<Found> found_;
  std::map<Position, std::string> unknown_;
};

// Bytes of the file between double quotes, printable.
std::string quoted(std::string_view text);

// The candidate a writer of `word` most likely meant: fewest insertions, deletions, substitutions and swaps
// of neighbours; none when all are too far away. The first of equals.
std::optional<std::string_view> nearest(std::string_view word, std::span<const std::string_view> candidates);

}  // namespace penstock::config
