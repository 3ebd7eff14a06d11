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
  if (const Json& worker = member(answer, "worker"); number(worker, "crashes").value_or(0) > 0) {
    const Json& last = member(worker, "last_crash");
    const auto signal = number(last, "signal");
    all += fmt::format("worker  pid {}  {} died before it, the last {} ago of {}\n", text(worker, "pid"),
                       text(worker, "crashes"), age(last, "unix_s"),
                       text(last, "cause") == "no heartbeat" ? "no heartbeat"
                       : signal                              ? fmt::format("signal {}", *signal)
                                                             : "exit code " + text(last, "exit_code"));
  }
  all += fmt::format("engine  {} ({})\n", text(answer, "engine"), sentence(answer, "engine_reason"));
  all += fmt::format("io      {}\n", sentence(answer, "io"));
  all += fmt::format("flows   {} accepted = {} active + {} closed\n", text(totals, "accepted"),
                     text(totals, "active"), closed);
  all += fmt::format("bytes   {} in splice, {} in relay\n", size(bytes, "splice"), size(bytes, "relay"));
  all += fmt::format("memory  {} held, {} in pipes, limit {}\n", size(totals, "held_bytes"),
                     size(totals, "pipe_bytes"), size(totals, "memory_limit_bytes"));
  const Json& http = member(answer, "http");
  const auto address = text(http, "address"), reason = sentence(http, "reason");
  all += fmt::format("http    {}{}{}\n", address == kUnknown ? "" : address + " ", text(http, "state"),
                     reason.empty() ? "" : ": " + reason);
  const Json& configuration = member(answer, "configuration");
  all += fmt::format("config  {}  read {} ago  reloads {}\n", text(configuration, "file"),
                     age(configuration, "loaded_unix_s"), text(configuration, "reloads"));
  if (const auto error = sentence(configuration, "error"); !error.empty())
    all += fmt::format("        the last reload, {} ago, changed nothing: {}\n",
                       age(configuration, "refused_unix_s"), error);
  if (const auto pending = list(configuration, "pending"); pending != kUnknown)
    all += fmt::format("        pending until a restart: {}\n", pending);
  return all;
}

// The addresses of a listener that are waited for. `optional`: those that this host may do without.
std::vector<const Json*> waiting(const Json& listener, bool optional) {
  std::vector<const Json*> all;
  for (const auto& s : member(listener, "sockets")) {
    if (text(s, "state") == "waiting" && (text(s, "optional") == "true") == optional) all.push_back(&s);
  }
  return all;
}

// A row for each listener, and beneath it one for each address that is waited for.
std::string listeners_text(const Json& listeners) {
  Table table({"LISTENER", "BIND", "STATE", ">ACCEPTED", ">ACTIVE", ">CLOSED", "REASON"});
  for (const Json* l : sorted(listeners)) {
    const auto missing = waiting(*l, false), optional = waiting(*l, true);
    const size_t all = member(*l, "sockets").size() - optional.size();
    const bool some = !missing.empty() && all > 1;
    std::string state = text(*l, "state"), reason = sentence(*l, "reason");
    if (some) {
      state += fmt::format(" for {} of {}", missing.size(), all);
      reason.clear();  // stands beneath
    }
    if (reason.empty() && !optional.empty()) reason = "IPv4 only: " + sentence(*optional.front(), "reason");
    table.add({text(*l, "name"), list(*l, "bind"), state, text(*l, "accepted"), text(*l, "active"),
               text(*l, "closed"), reason});
    if (!some) continue;
    for (const Json* s : missing) {
      const auto device = text(*s, "interface");
      table.add({"", "  " + text(*s, "address") + (device == kUnknown ? "" : " on " + device), "  waiting",
                 "", "", "", sentence(*s, "reason")});
    }
  }
  return table.empty() ? "" : "\n" + table.text();
}

std::string certificate_text(const Json& certificate) {
  const Json& days = member(certificate, "days_left");
  if (!days.is_number_integer()) return "";
  const int64_t left = days.get<int64_t>();
  return fmt::format(
      "; certificate {} {}, {}", member(certificate, "self_signed") == true ? "SELF-SIGNED by" : "by",
      sentence(certificate, "issuer"),
      left < 0 ? fmt::format("EXPIRED {} days ago", -left) : fmt::format("{} days left", left));
}

// Since when the server is as it is, and what the last check found.
std::string check_text(const Json& health) {
  if (!health.is_object()) return "";
  const auto state = text(health, "state"), check = text(health, "type") + " check";
  const auto failed = number(health, "failed_in_a_row").value_or(0);
  const bool known = state == "up" || state == "down";
  std::string all =
      known ? fmt::format("{} since {} ({}): ", state, moment(health, "since"), age(health, "since")) : "";
  if (failed > 0) all += sentence(health, "reason") + "; ";
  if (!member(health, "checked").is_number())
    all += check + ": none has ended yet";
  else if (failed > 0)
    all += fmt::format("{} {} ago, {} failed in a row", check, age(health, "checked"), failed);
  else
    all += fmt::format("{} {} ago, passed in {}", check, age(health, "checked"), duration(health, "took_ms"));
  return all + certificate_text(member(health, "certificate"));
}

std::string note(const Json& server) {
  std::string all = check_text(member(server, "health"));
  const auto add = [&](const std::string& more) { all += (all.empty() ? "" : "; ") + more; };
  if (const auto failed = number(server, "failed_dials"); failed.value_or(0) > 0)
    add(fmt::format("failed dials in a row: {}", *failed));
  const auto error = sentence(server, "error");
  if (!error.empty() && list(server, "addresses") != kUnknown)
    add("DNS: " + error + ", an old answer serves");
  return all;
}

// A row for each upstream, and beneath it one for each server.
std::string upstreams_text(const Json& upstreams) {
  Table table({"UPSTREAM, SERVERS", "STATE", ">ACTIVE", ">DIALED", ">FAILED", "ADDRESSES", "CHECK"});
  for (const Json* u : sorted(upstreams)) {
    const bool by_srv = !member(*u, "srv").is_null(), empty = member(*u, "servers").empty();
    const auto error = sentence(*u, "error");
    table.add({text(*u, "name"), by_srv && empty ? "waiting" : "", text(*u, "active"), text(*u, "dialed"),
               text(*u, "dial_failed"), by_srv ? "SRV " + text(*u, "srv") : "",
               error.empty() ? "" : "DNS: " + error + (empty ? "" : ", an old answer serves")});
    for (const auto& s : member(*u, "servers")) {
      auto addresses = list(s, "addresses");
      if (addresses == kUnknown) addresses = sentence(s, "error");              // why there are none
      if (addresses.empty()) addresses = text(member(s, "health"), "address");  // the check has dialled one
      table.add({"  " + text(s, "server"), text(s, "state"), text(s, "flows"), "", "", addresses, note(s)});
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
