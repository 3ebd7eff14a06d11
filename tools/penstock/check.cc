// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <cstdio>

#include "commands.h"
#include "config/config.h"
#include "daemon/json.h"

namespace penstock::command {

int check(const std::string& file, const std::optional<std::string>& env_file, bool json) {
  auto parsed = config::load(file, env_file);
  const bool ok = parsed.config.has_value();
  if (json) {
    Json report = {{"file", file}, {"ok", ok}, {"diagnostics", Json::array()}};
    for (const auto& d : parsed.diagnostics) {
      report["diagnostics"].push_back({{"is_error", d.is_error}, {"text", d.text}});
    }
    if (ok) {
      report["listeners"] = parsed.config->listeners.size();
      report["upstreams"] = parsed.config->upstreams.size();
    }
    print(json_line(report) + "\n");
    return ok ? kDone : kBadUsage;
  }
  for (const auto& d : parsed.diagnostics) std::fputs((d.text + "\n").c_str(), stderr);
  if (!ok) return kBadUsage;
  auto counted = [](size_t n, const char* what) {
    return fmt::format("{} {}{}", n, what, n == 1 ? "" : "s");
  };
  print(fmt::format("{}: ok ({}, {})\n", file, counted(parsed.config->listeners.size(), "listener"),
                    counted(parsed.config->upstreams.size(), "upstream")));
  return kDone;
}

}  // namespace penstock::command
