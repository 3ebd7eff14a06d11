// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "base/log.h"
#include "client.h"
#include "commands.h"
#include "fields.h"
#include "table.h"

namespace penstock::command {
namespace {

// An array's elements by name.
std::vector<const Json*> sorted(const Json& array) {
  std::vector<const Json*> all;
  for (const auto& element : array) all.push_back(&element);
  std::stable_sort(all.begin(), all.end(),
                   [](const Json* a, const Json* b) { return text(*a, "name") < text(*b, "name"); });
  return all;
}

// {"reason": count, ...}: the largest first; what never happened is left out.
std::vector<std::pair<std::string, uint64_t>> counters(const Json& object) {
  std::vector<std::pair<std::string, uint64_t>> all;
  if (!object.is_object()) return all;
  for (const auto& [name, count] : object.items()) {
    if (count.is_number_unsigned() && count != 0) all.emplace_back(log::escaped(name), count.get<uint64_t>());
  }
  std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  return all;
}

std::string counters_text(const char* title, const Json& object) {
  Table table({title, ">COUNT"});
  for (const auto& [name, count] : counters(object)) table.add({name, std::to_string(count)});
  return table.empty() ? "" : "\n" + table.text();
}

std::string daemon_text(const Json& answer) {
  const Json& totals = member(answer, "totals");
  const Json& bytes = member(totals, "bytes");
  uint64_t closed = 0;
  for (const auto& [name, count] : counters(member(totals, "closed"))) closed += count;
  auto uptime_s = number(answer, "uptime_s");
  std::string all;
  all += fmt::format("penstockd {}  pid {}  up {}  threads {}  kernel {}\n", text(answer, "version"),
                     text(answer, "pid"),
                     uptime_s ? (*uptime_s == 0 ? "0s" : duration_text(*uptime_s * 1000)) : kUnknown,
                     text(answer, "threads"), text(answer, "kernel"));
  all += fmt::format("engine  {} ({})\n", text(answer, "engine"), text(answer, "engine_reason"));
  all += fmt::format("io      {}\n", text(answer, "io"));
  all += fmt::format("flows   {} accepted = {} active + {} closed\n", text(totals, "accepted"),
                     text(totals, "active"), closed);
  all += fmt::format("bytes   {} in splice, {} in relay\n", size(bytes, "splice"), size(bytes, "relay"));
  all += fmt::format("memory  {} held, {} in pipes, limit {}\n", size(totals, "held_bytes"),
                     size(totals, "pipe_bytes"), size(totals, "memory_limit_bytes"));
  const Json& http = member(answer, "http");
  auto address = text(http, "address"), reason = text(http, "reason");
  all += fmt::format("http    {}{}{}\n", address == kUnknown ? "" : address + " ", text(http, "state"),
                     reason == kUnknown ? "" : ": " + reason);
  const Json& configuration = member(answer, "configuration");
  all += fmt::format("config  {}, reloaded {} times\n", text(configuration, "file"),
                     text(configuration, "reloads"));
  if (const auto error = text(configuration, "error"); error != kUnknown)
    all += fmt::format("        the last reload changed nothing: {}\n", error);
  if (const auto pending = list(configuration, "pending"); pending != kUnknown)
    all += fmt::format("        pending until a restart: {}\n", pending);
  return all;
}

std::string listeners_text(const Json& listeners) {
  Table table({"LISTENER", "BIND", "STATE", ">ACCEPTED", ">ACTIVE", ">CLOSED", "REASON"});
  for (const Json* l : sorted(listeners)) {
    auto reason = text(*l, "reason");
    table.add({text(*l, "name"), list(*l, "bind"), text(*l, "state"), text(*l, "accepted"),
               text(*l, "active"), text(*l, "closed"), reason == kUnknown ? "" : reason});
  }
  return table.empty() ? "" : "\n" + table.text();
}

// A row for each server. What is counted for the upstream as a whole stands in its first one.
std::string upstreams_text(const Json& upstreams) {
  Table table({"UPSTREAM", "SERVER", "STATE", "ADDRESSES", ">ACTIVE", ">DIALED", ">FAILED"});
  for (const Json* u : sorted(upstreams)) {
    if (member(*u, "servers").empty() && !member(*u, "srv").is_null())
      table.add({text(*u, "name"), text(*u, "srv"), "waiting", text(*u, "error"), text(*u, "active"),
                 text(*u, "dialed"), text(*u, "dial_failed")});
    const Json* whole = u;
    for (const auto& s : member(*u, "servers")) {
      auto count = [&](const char* key) {
        return whole != nullptr && member(s, key).is_null() ? text(*whole, key) : text(s, key);
      };
      auto addresses = list(s, "addresses");
      if (addresses == kUnknown) addresses = text(s, "error");  // why there are none
      table.add({text(*u, "name"), text(s, "server"), text(s, "state"), addresses, count("active"),
                 count("dialed"), count("dial_failed")});
      whole = nullptr;
    }
  }
  return table.empty() ? "" : "\n" + table.text();
}

}  // namespace

int status(const Daemon& daemon) {
  auto answer = ask(daemon.socket, {{"command", "status"}});
  if (!answer) return fail(answer.error().message);
  if (daemon.json) {
    print(json_line(*answer) + "\n");
    return kDone;
  }
  const Json& totals = member(*answer, "totals");
  print(daemon_text(*answer));
  print(listeners_text(member(*answer, "listeners")));
  print(upstreams_text(member(*answer, "upstreams")));
  print(counters_text("CLOSED BY", member(totals, "closed")));
  print(counters_text("LANE CHANGED BY", member(totals, "lane_changes")));
  print(counters_text("FALLBACK", member(totals, "fallbacks")));
  return kDone;
}

}  // namespace penstock::command
