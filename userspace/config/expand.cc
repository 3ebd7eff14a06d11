// SPDX-License-Identifier: Apache-2.0
#include "config/expand.h"

#include <algorithm>

#include "config/diagnostics.h"

namespace penstock::config {

bool is_variable_name(std::string_view name) {
  const auto letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; };
  const auto digit = [](char c) { return c >= '0' && c <= '9'; };
  return !name.empty() && letter(name[0]) &&
         std::all_of(name.begin(), name.end(), [&](char c) { return letter(c) || digit(c); });
}

Result<std::string> expand(std::string_view text, const Lookup& environment) {
  std::string out;
  for (;;) {
    const size_t open = text.find("${");
    out += text.substr(0, open);
    if (open == text.npos) return out;
    const size_t close = text.find('}', open);
    const std::string_view inside = text.substr(open + 2, close == text.npos ? close : close - open - 2);
    const size_t colon = inside.find(":-");
    const std::string_view name = inside.substr(0, colon);
    if (close == text.npos || !is_variable_name(name)) {
      return Error{
          quoted(text.substr(open, close == text.npos ? close : close - open + 1)) +
          " does not name a variable; accepted: ${NAME} or ${NAME:-default}, NAME of letters, digits and _"};
    }
    const std::optional<std::string> value = environment(name);
    if (colon != inside.npos && (!value || value->empty())) {
      out += inside.substr(colon + 2);
    } else if (value) {
      out += *value;
    } else {
      return Error{fmt::format(
          "{0} is not set, neither in the environment nor in the env file; accepted: {0}=value in "
          "either, or ${{{0}:-default}} here",
          name)};
    }
    text.remove_prefix(close + 1);
  }
}

}  // namespace penstock::config
