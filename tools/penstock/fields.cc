// SPDX-License-Identifier: Apache-2.0
#include "fields.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <ctime>

#include "base/log.h"

namespace penstock::command {
namespace {

constexpr double kSecondsMax = 253402300799;  // the end of the year 9999

std::string scalar_text(const Json& value) {
  if (value.is_string()) {
    auto text = log::escaped(value.get_ref<const std::string&>());
    return text.empty() ? kUnknown : text;
  }
  return value.is_number() || value.is_boolean() ? value.dump() : kUnknown;
}

}  // namespace

const Json& member(const Json& object, const char* key) {
  static const Json nothing;
  if (!object.is_object()) return nothing;
  auto found = object.find(key);
  return found == object.end() ? nothing : *found;
}

std::string text(const Json& object, const char* key) {
  return scalar_text(member(object, key));
}

std::string sentence(const Json& value) {
  std::string printable = value.is_string() ? value.get<std::string>() : "";
  for (char& c : printable)
    if (c < ' ' || c > '~') c = '?';
  return printable;
}

std::string sentence(const Json& object, const char* key) {
  return sentence(member(object, key));
}

std::string list(const Json& object, const char* key) {
  const Json& values = member(object, key);
  if (!values.is_array() || values.empty()) return kUnknown;
  std::string all;
  for (const auto& value : values) all += (all.empty() ? "" : ", ") + scalar_text(value);
  return all;
}

std::optional<uint64_t> number(const Json& object, const char* key) {
  const Json& value = member(object, key);
  if (!value.is_number_unsigned()) return std::nullopt;
  return value.get<uint64_t>();
}

std::string size(const Json& object, const char* key) {
  auto bytes = number(object, key);
  return bytes ? size_text(*bytes) : kUnknown;
}

std::string duration(const Json& object, const char* key) {
  auto ms = number(object, key);
  return ms ? duration_text(*ms) : kUnknown;
}

std::string moment(const Json& object, const char* key) {
  const Json& value = member(object, key);
  if (!value.is_number()) return kUnknown;
  const double seconds = value.get<double>();
  if (!(seconds >= 0 && seconds <= kSecondsMax)) return kUnknown;
  const auto at = static_cast<std::time_t>(seconds);
  tm parts{};
  char text[sizeof "2026-11-21T02:14:09Z"];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", ::gmtime_r(&at, &parts));
  return text;
}

std::string age(const Json& object, const char* key) {
  if (moment(object, key) == kUnknown) return kUnknown;
  const double now =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  const double seconds = std::max(0.0, now - member(object, key).get<double>());
  return seconds < 1 ? "0s" : duration_text(static_cast<uint64_t>(seconds) * 1000);
}

std::string size_text(uint64_t bytes) {
  static constexpr std::array kUnits = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (bytes < 1024) return fmt::format("{} B", bytes);
  double value = static_cast<double>(bytes) / 1024;
  size_t unit = 0;
  while (value >= 1023.95 && unit + 1 < kUnits.size()) {  // what would print as 1024.0
    value /= 1024;
    ++unit;
  }
  return fmt::format("{:.1f} {}", value, kUnits[unit]);
}

std::string duration_text(uint64_t ms) {
  if (ms < 1000) return fmt::format("{}ms", ms);
  uint64_t s = ms / 1000;
  if (s < 60) return fmt::format("{}s", s);
  if (s < 3600) return fmt::format("{}m{:02}s", s / 60, s % 60);
  if (s < 86400) return fmt::format("{}h{:02}m", s / 3600, s / 60 % 60);
  return fmt::format("{}d{:02}h", s / 86400, s / 3600 % 24);
}

}  // namespace penstock::command
