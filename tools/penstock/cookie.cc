// SPDX-License-Identifier: Apache-2.0
#include "cookie.h"

#include <charconv>

namespace penstock::command {

std::optional<uint64_t> parse_cookie(std::string_view text) {
  int base = 10;
  for (std::string_view prefix : {"sk:", "0x"}) {
    if (!text.starts_with(prefix)) continue;
    text.remove_prefix(prefix.size());
    base = 16;
    break;
  }
  uint64_t cookie = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), cookie, base);
  if (error != std::errc() || end != text.data() + text.size() || cookie == 0) return std::nullopt;
  return cookie;
}

}  // namespace penstock::command
