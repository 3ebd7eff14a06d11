// SPDX-License-Identifier: Apache-2.0
// Any bytes as penstock.env, and as a string with ${NAME} in it: no more values than lines, each one line of
// the file, and what was read can be written and read again. Line by line is the same as at once.
#include <string>

#include "config/config.h"
#include "config/expand.h"
#include "support/fuzz_text.h"

namespace {

using namespace penstock;

void check_written_again(const config::EnvFile& env) {
  std::string text;
  for (const auto& [name, value] : env.values) {
    PENSTOCK_ASSERT(config::is_variable_name(name) && value.find('\n') == value.npos);
    const char quote = value.find('"') == value.npos ? '"' : '\'';
    if (value.find(quote) != value.npos) return;  // there are no escapes: only unquoted can it be said
    text += "export " + name + " = " + quote + value + quote + " # as it was\n";
  }
  const config::EnvFile again = config::parse_env(text, "again.env");
  PENSTOCK_ASSERT(again.diagnostics.empty() && again.values == env.values);
}

void check_expanded(std::string_view text, const config::EnvFile& env) {
  size_t asked = 0, longest = 0;
  const auto expanded = config::expand(text, [&](std::string_view name) -> std::optional<std::string> {
    PENSTOCK_ASSERT(config::is_variable_name(name));
    ++asked;
    const auto found = env.values.find(name);
    if (found == env.values.end()) return std::nullopt;
    longest = std::max(longest, found->second.size());
    return found->second;
  });
  if (!expanded) return test::check_printable(expanded.error().message);
  PENSTOCK_ASSERT(asked <= text.size() / 4 && expanded.value().size() <= text.size() + asked * longest);
  if (text.find("${") == text.npos) PENSTOCK_ASSERT(expanded.value() == text);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const config::EnvFile env = config::parse_env(text, "penstock.env");
  const std::vector<std::string> lines = test::split(text, '\n');
  PENSTOCK_ASSERT(env.values.size() + env.diagnostics.size() <= lines.size());
  for (const config::Diagnostic& d : env.diagnostics) {
    test::check_printable(d.text);
    PENSTOCK_ASSERT(d.is_error && d.text.starts_with("penstock.env:"));
  }
  config::EnvFile one_by_one;
  size_t mistakes = 0;
  for (const std::string& line : lines) {
    const config::EnvFile one = config::parse_env(line, "penstock.env");
    mistakes += one.diagnostics.size();
    for (const auto& [name, value] : one.values) one_by_one.values.insert_or_assign(name, value);
  }
  PENSTOCK_ASSERT(one_by_one.values == env.values && mistakes == env.diagnostics.size());
  check_written_again(env);
  check_expanded(text, env);
  return 0;
}
