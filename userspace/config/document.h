// SPDX-License-Identifier: Apache-2.0
// config/document.h: TOML text as a tree of values that know where they stand. toml++ is included in
// document.cc and nowhere else.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "config/config.h"
#include "config/diagnostics.h"

namespace penstock::config {

struct Member;

struct Node {
  enum class Kind { string, integer, floating, boolean, date_or_time, array, table };
  Kind kind = Kind::table;
  Position at;
  std::string string;  // after ${NAME}
  int64_t integer = 0;
  bool boolean = false;
  std::vector<Node> items;      // of an array
  std::vector<Member> members;  // of a table, in the order of the file
  const Member* find(std::string_view key) const;
};

struct Member {
  std::string key;
  Position at;
  Node value;
};

// Depth is bounded whatever the text is, so that walking the tree cannot exhaust the stack: 32 brackets
// within each other, 8 dots in one key. Outside comments and values it is ASCII, as TOML 1.0 has it; so is a
// string with neither white space, a comma nor its line's equals sign before it (or before its brackets).
// None when the text is not TOML or too large; the reason is then in `diagnostics`.
std::optional<Node> read_document(std::string_view text, const Lookup& environment, Diagnostics* diagnostics);

}  // namespace penstock::config
