// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
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

std::string flows_text(const Json& answer) {
  Table table({">COOKIE", "CLIENT", "SNI", "UPSTREAM", "SERVER", "PHASE", "UP", ">BYTES", "DOWN", ">BYTES",
               ">AGE", ">IDLE"});
  for (const Json* flow : sorted(member(answer, "flows"))) {
    const Json& directions = member(*flow, "directions");
    const Json& up = member(directions, "up");
    const Json& down = member(directions, "down");
    table.add({text(*flow, "cookie"), text(*flow, "client"), text(*flow, "sni"), text(*flow, "upstream"),
               text(*flow, "server"), text(*flow, "phase"), text(up, "lane"), size(up, "bytes"),
               text(down, "lane"), size(down, "bytes"), duration(*flow, "age_ms"),
               duration(*flow, "idle_ms")});
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
