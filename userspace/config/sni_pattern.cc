// SPDX-License-Identifier: Apache-2.0
#include "config/sni_pattern.h"

#include "config/address.h"
#include "config/diagnostics.h"

namespace penstock::config {

Result<std::string> parse_sni_pattern(std::string_view text) {
  std::string pattern(text);
  for (char& c : pattern) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  if (pattern.size() > 1 && pattern.back() == '.' && !pattern.ends_with("*.")) pattern.pop_back();

  std::string_view name = pattern;
  bool valid = name == "*";
  if (name.ends_with('.')) {  // is still there: there were two
    valid = false;
  } else if (name.starts_with("*.")) {
    valid = is_host_name(name.substr(2));
  } else if (name.ends_with(".*")) {
    name.remove_suffix(2);
    // The appended label lets a first label of digits alone pass: it is not the last one of the names it
    // matches.
    valid = name.find('.') == name.npos && is_host_name(std::string(name) + ".x");
  } else if (!valid) {
    valid = is_host_name(name);
  }
  if (valid) return pattern;
  return Error{
      "sni " + quoted(text) +
      " is not a name or a pattern; accepted: \"www.example.net\", \"*.example.net\" (every name below), "
      "\"mta-sts.*\" (that first label), \"*\" (any name)"};
}

bool sni_covers(std::string_view pattern, std::string_view other) {
  if (other.empty()) return false;
  if (pattern == "*" || pattern == other) return true;
  if (pattern.starts_with("*.")) {
    const std::string_view below = pattern.substr(1);  // ".example.net"
    return other.size() > below.size() && other.ends_with(below);
  }
  if (pattern.ends_with(".*")) {
    const std::string_view label = pattern.substr(0, pattern.size() - 1);  // "mta-sts."
    return other.size() > label.size() && other.starts_with(label);
  }
  return false;
}

}  // namespace penstock::config
