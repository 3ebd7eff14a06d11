// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include "client.h"
#include "commands.h"
#include "fields.h"

namespace penstock::command {
namespace {

int ask_and_print(const Daemon& daemon, const char* command, const char* done, const std::string& name) {
  auto answer = ask(daemon.socket, {{"command", command}, {"name", name}});
  if (!answer) return fail(answer.error().message);
  if (daemon.json) print(json_line(*answer) + "\n");
  for (const auto& server : member(*answer, done))
    if (!daemon.json)
      print(fmt::format("{} {}  {} flows\n", done, text(server, "server"), text(server, "flows")));
  return kDone;
}

}  // namespace

int drain(const Daemon& daemon, const std::string& name) {
  return ask_and_print(daemon, "drain", "drained", name);
}
int resume(const Daemon& daemon, const std::string& name) {
  return ask_and_print(daemon, "resume", "resumed", name);
}

}  // namespace penstock::command
