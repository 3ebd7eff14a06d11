// SPDX-License-Identifier: Apache-2.0
#include "client.h"
#include "commands.h"

namespace penstock::command {

int lane(const Daemon& daemon, const std::string& cookie, const std::string& direction,
         const std::string& to) {
  auto answer =
      ask(daemon.socket, {{"command", "lane"}, {"cookie", cookie}, {"direction", direction}, {"to", to}});
  if (!answer) return fail(answer.error().message);
  print((daemon.json ? json_line(*answer) : "ok") + "\n");
  return kDone;
}

}  // namespace penstock::command
