// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <utility>
#include <vector>

#include "client.h"
#include "commands.h"
#include "fields.h"
#include "table.h"

namespace penstock::command {
namespace {

// The oldest first, so that what is new is at the end, above the prompt.
std::vector<const Json*> sorted(const Json& flows) {
  std::vector<const Json*> all;
  for (const auto& flow : flows) all.push_back(&flow);
  std::stable_sort(all.begin(), all.end(), [](const Json* a, const Json* b) {
    return number(*a, "age_ms").value_or(0) > number(*b, "age_ms").value_or(0);
  });
  return all;
}

// The proxy in front has a column where one of the flows has one.
std::string flows_text(const Json& answer) {
  const auto flows = sorted(member(answer, "flows"));
  const bool proxied =
      std::any_of(flows.begin(), flows.end(), [](const Json* f) { return text(*f, "proxy") != kUnknown; });
  std::vector<std::string> titles = {">COOKIE", "CLIENT", "SNI",  "UPSTREAM", "SERVER", "PHASE",
                                     "UP",      ">BYTES", "DOWN", ">BYTES",   ">AGE",   ">IDLE"};
  if (proxied) titles.insert(titles.begin() + 2, "BY PROXY");
  Table table(titles);
  for (const Json* flow : flows) {
    const Json& directions = member(*flow, "directions");
    const Json& up = member(directions, "up");
    const Json& down = member(directions, "down");
    std::vector<std::string> row = {
        text(*flow, "cookie"), text(*flow, "client"), text(*flow, "sni"),        text(*flow, "upstream"),
        text(*flow, "server"), text(*flow, "phase"),  text(up, "lane"),          size(up, "bytes"),
        text(down, "lane"),    size(down, "bytes"),   duration(*flow, "age_ms"), duration(*flow, "idle_ms")};
    if (proxied) row.insert(row.begin() + 2, text(*flow, "proxy"));
    table.add(std::move(row));
  }
  return table.empty() ? "no live flows\n" : table.text();
}

}  // namespace

int flows(const Daemon& daemon, const FlowFilter& filter) {
  Json request = {{"command", "flows"}};
  if (filter.listener) request["listener"] = *filter.listener;
  if (filter.client) request["client"] = *filter.client;
  auto answer = ask(daemon.socket, request);
  if (!answer) return fail(answer.error().message);
  if (daemon.json) {
    print(json_line(*answer) + "\n");
  } else {
    print(flows_text(*answer));
  }
  return kDone;
}

}  // namespace penstock::command
