// SPDX-License-Identifier: Apache-2.0
// support/fuzz_text.h: what the fuzz harnesses of tests/fuzz share: inputs of lines and words, what is
// printable. None of it calls the code under test.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/assert.h"

namespace penstock::test {

inline std::vector<std::string> split(std::string_view text, char by) {
  std::vector<std::string> out;
  for (;;) {
    const size_t end = text.find(by);
    out.emplace_back(text.substr(0, end));
    if (end == text.npos) return out;
    text.remove_prefix(end + 1);
  }
}

// The first `max` lines of an input, without their ends.
inline std::vector<std::string> lines_of(const uint8_t* data, size_t size, size_t max) {
  std::vector<std::string> lines = split({reinterpret_cast<const char*>(data), size}, '\n');
  if (lines.size() > max) lines.resize(max);
  return lines;
}

inline std::vector<std::string> labels_of(std::string_view name) {
  return split(name, '.');
}

// What a ClientHello's SNI is once it has been read: lower case, labels of 1 to 63 letters, digits, '-', '_'.
inline bool is_name(std::string_view text) {
  for (const std::string& label : labels_of(text)) {
    const auto allowed = [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
    };
    if (label.empty() || label.size() > 63 || !std::all_of(label.begin(), label.end(), allowed)) return false;
  }
  return text.size() <= 255;
}

inline bool is_printable(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c >= ' ' && c <= '~'; });
}

inline void check_printable(std::string_view text) {
  PENSTOCK_ASSERT(is_printable(text));
}

}  // namespace penstock::test
