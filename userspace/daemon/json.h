// SPDX-License-Identifier: Apache-2.0
// daemon/json.h: the only door to nlohmann-json, and what both ends of the admin socket agree on: one value a
// line.
#pragma once
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace penstock {

using Json = nlohmann::json;

inline constexpr int kJsonDepthMax = 16;  // deeper is refused: printing and some readers recurse

// Does `text` open more brackets than kJsonDepthMax, those within strings aside? Looked at before parsing:
// nlohmann's own way, a parser callback, takes quadratic time in the length of an array.
inline bool is_too_deep(std::string_view text) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kJsonDepthMax) return true;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return false;
}

// Nothing when `text` is not JSON or too deep. Never throws.
inline std::optional<Json> parse_json(std::string_view text) {
  if (is_too_deep(text)) return std::nullopt;
  Json value = Json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (value.is_discarded()) return std::nullopt;
  return value;
}

// Printable ASCII and no line feed, whatever the strings hold; what is not UTF-8 becomes U+FFFD.
inline std::string json_line(const Json& value) {
  return value.dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace);
}

}  // namespace penstock
