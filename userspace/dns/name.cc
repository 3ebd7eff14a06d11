// SPDX-License-Identifier: Apache-2.0
#include "dns/name.h"

#include <span>
#include <utility>

namespace penstock::dns {
namespace {

constexpr size_t kNameBytesMax = 253;
constexpr size_t kLabelBytesMax = 63;

bool is_label_byte(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
}

}  // namespace

std::optional<std::string> canonical(std::string_view text) {
  std::string name(text.substr(0, kNameBytesMax + 2));
  size_t end = name.ends_with('.') ? name.size() - 1 : name.size();
  if (end == 0 || end > kNameBytesMax) return std::nullopt;
  size_t label_bytes = 0;
  for (char& c : std::span(name).first(end)) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    if (c == '.' ? label_bytes == 0 : !is_label_byte(c)) return std::nullopt;
    label_bytes = c == '.' ? 0 : label_bytes + 1;
    if (label_bytes > kLabelBytesMax) return std::nullopt;
  }
  return label_bytes == 0 ? std::nullopt : std::optional(std::move(name));
}

}  // namespace penstock::dns
