// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <cerrno>
#include <chrono>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "client.h"
#include "commands.h"
#include "fields.h"

namespace penstock::command {
namespace {

constexpr std::chrono::milliseconds kLookAgain{20};
constexpr std::chrono::seconds kBeyondPatience{30};  // what the keeper may need to be back

const Json& upgrade_of(const Json& status) {
  return member(member(status, "worker"), "upgrade");
}

}  // namespace

// The worker that is asked puts itself down, so the answer is the next one's.
int upgrade(const Daemon& daemon, const std::string& program, unsigned patience_s) {
  char path[PATH_MAX] = "";
  if (!program.empty() && !realpath(program.c_str(), path)) return fail(program + ": " + strerror(errno));
  auto before = ask(daemon.socket, {{"command", "status"}});
  if (!before) return fail(before.error().message);
  const auto answered = number(upgrade_of(*before), "answered");
  const auto asked =
      ask(daemon.socket, {{"command", "upgrade"}, {"program", path}, {"patience_s", patience_s}});
  if (!asked) return fail(asked.error().message);
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(2 * patience_s) + kBeyondPatience;
  while (std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(kLookAgain);
    auto now = ask(daemon.socket, {{"command", "status"}});
    if (!now) continue;  // the one we asked is gone, the next one begins
    const Json& upgrade = upgrade_of(*now);
    if (upgrade.empty() || number(upgrade, "answered") == answered) continue;
    const bool done = text(upgrade, "result") == "done";
    if (daemon.json)
      print(json_line(upgrade) + "\n");
    else if (done)
      print(fmt::format("upgraded: penstockd {}, {} flows went on\n", text(*now, "version"),
                        text(member(*now, "totals"), "active")));
    return done ? kDone : fail("penstockd is as it was: " + sentence(upgrade, "reason"));
  }
  return fail("no answer to the upgrade; see penstock status and the log");
}

}  // namespace penstock::command
