// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include "client.h"
#include "commands.h"
#include "fields.h"
#include "table.h"

namespace penstock::command {
namespace {

// The longest examination: a name that is not answered, four dials that are not either, three pauses.
constexpr std::chrono::seconds kPatience{60};

std::string dials_text(const Json& dials) {
  Table table({"PROXY_PROTOCOL", "ADDRESS", "FROM", ">MS", "RESULT", "SERVER SAYS"});
  for (const Json& d : dials) {
    const bool local = member(d, "local").is_boolean() && member(d, "local").get<bool>();
    const bool ok = member(d, "ok").is_boolean() && member(d, "ok").get<bool>();
    table.add({text(d, "proxy_protocol") + (local ? ", LOCAL" : ""), text(d, "address"), text(d, "source"),
               text(d, "took_ms"),
               !ok                              ? sentence(d, "reason")
               : text(d, "stage") == "greeting" ? "silence"
                                                : "ok",
               sentence(d, "said")});
  }
  return table.empty() ? "" : table.text() + "\n";
}

}  // namespace

int doctor(const Daemon& daemon, const Examined& whom) {
  Json request = {{"command", "doctor"}, {"upstream", whom.upstream}, {"server", whom.server}};
  if (whom.port) request["port"] = *whom.port;
  auto answer = ask(daemon.socket, request, kPatience);
  if (!answer) return fail(answer.error().message);
  const int code = text(*answer, "verdict") == "as_configured" ? kDone : kFailed;
  if (daemon.json) {
    print(json_line(*answer) + "\n");
    return code;
  }
  print(fmt::format("upstream {}, server {}, port {}: proxy_protocol = \"{}\", seen by {}\n\n",
                    text(*answer, "upstream"), text(*answer, "server"), text(*answer, "port"),
                    text(*answer, "configured"), text(*answer, "type")));
  print(dials_text(member(*answer, "dials")));
  print(fmt::format("{}: {}\n", text(*answer, "verdict"), sentence(*answer, "says")));
  if (const std::string advice = sentence(*answer, "advice"); !advice.empty())
    print("change: " + advice + "\n");
  if (const std::string trusted = text(*answer, "trusted"); trusted != kUnknown)
    print(fmt::format("the server sees the edge as {}: that is whom it must trust to send PROXY headers\n",
                      trusted));
  return code;
}

}  // namespace penstock::command
