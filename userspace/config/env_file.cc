// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "base/result.h"
#include "config/config.h"
#include "config/diagnostics.h"
#include "config/expand.h"

namespace penstock::config {
namespace {

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kBlank = " \t\r";
  const size_t first = text.find_first_not_of(kBlank);
  if (first == text.npos) return text.substr(text.size());
  return text.substr(first, text.find_last_not_of(kBlank) - first + 1);
}

// `text` is what follows '=', trimmed. A value is taken literally, there are no escapes; a '#' after a blank
// starts a comment.
Result<std::string> value_of(std::string_view text) {
  const char quote = text.empty() ? '\0' : text[0];
  if (quote != '"' && quote != '\'') {
    if (quote == '#') return std::string();
    return std::string(trimmed(text.substr(0, std::min(text.find(" #"), text.find("\t#")))));
  }
  const size_t close = text.find(quote, 1);
  if (close == text.npos)
    return Error{"a quote is not closed on its line; accepted: NAME=value, NAME=\"value\""};
  const std::string_view rest = trimmed(text.substr(close + 1));
  if (!rest.empty() && rest[0] != '#') {
    return Error{quoted(rest) + " after the closing quote; accepted: a comment or nothing"};
  }
  return std::string(text.substr(1, close - 1));
}

}  // namespace

EnvFile parse_env(std::string_view text, std::string_view file_name) {
  EnvFile file;
  Diagnostics diagnostics(file_name);
  for (uint32_t number = 1; !text.empty(); ++number) {
    const size_t newline = text.find('\n');
    const std::string_view whole = text.substr(0, newline);
    text.remove_prefix(newline == text.npos ? text.size() : newline + 1);

    std::string_view line = trimmed(whole);
    if (line.empty() || line[0] == '#') continue;
    constexpr std::string_view kExport = "export ";
    if (line.starts_with(kExport)) line = trimmed(line.substr(kExport.size()));

    const size_t equals = line.find('=');
    const std::string_view name = trimmed(line.substr(0, equals));
    const auto column = [&](std::string_view part) {
      return static_cast<uint32_t>(1 + part.data() - whole.data());
    };
    if (equals == line.npos || !is_variable_name(name)) {
      diagnostics.error(
          {number, column(line)},
          quoted(name) + " does not set a variable; accepted: NAME=value, NAME of letters, digits and _");
      continue;
    }
    const std::string_view right = trimmed(line.substr(equals + 1));
    Result<std::string> value = value_of(right);
    if (value) {
      file.values.insert_or_assign(std::string(name), std::move(value).value());
    } else {
      diagnostics.error({number, column(right)}, value.error().message);
    }
  }
  file.diagnostics = diagnostics.by_line();
  return file;
}

}  // namespace penstock::config
