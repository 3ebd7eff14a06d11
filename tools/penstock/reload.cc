// SPDX-License-Identifier: Apache-2.0
#include "client.h"
#include "commands.h"
#include "fields.h"

namespace penstock::command {
namespace {

void print_each(const Json& answer, const char* key, const std::string& before, const std::string& after) {
  for (const auto& line : member(answer, key)) print(before + sentence(line) + after + "\n");
}

}  // namespace

int reload(const Daemon& daemon) {
  auto answer = ask(daemon.socket, {{"command", "reload"}});
  if (!answer) return fail(answer.error().message);
  const bool done = text(*answer, "reloaded") == "true";
  if (daemon.json) {
    print(json_line(*answer) + "\n");
  } else if (done) {
    print("reloaded\n");
    print_each(*answer, "warnings", "", "");
    print_each(*answer, "waiting", "waiting: ", "");
    print_each(*answer, "pending", "pending: ", " is read at a start only");
  } else {
    print_each(*answer, "diagnostics", "", "");
  }
  if (done) return kDone;
  fail("nothing has changed: " + sentence(*answer, "reason"));
  return member(*answer, "diagnostics").empty() ? kFailed : kBadUsage;
}

}  // namespace penstock::command
