// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "base/log.h"
#include "client.h"
#include "commands.h"
#include "fields.h"

namespace penstock::command {
namespace {

constexpr size_t kCookiesPerRequest = 1000;  // some 23 KB of a request's 64 KiB

}  // namespace

int kill(const Daemon& daemon, const std::vector<std::string>& cookies) {
  Json all = {{"killed", Json::array()}, {"not_found", Json::array()}};
  for (size_t at = 0; at < cookies.size(); at += kCookiesPerRequest) {
    auto from = cookies.begin() + static_cast<ptrdiff_t>(at);
    auto to = from + static_cast<ptrdiff_t>(std::min(kCookiesPerRequest, cookies.size() - at));
    auto answer = ask(daemon.socket, {{"command", "kill"}, {"cookies", std::vector(from, to)}});
    if (!answer) return fail(answer.error().message);
    for (const char* name : {"killed", "not_found"})
      for (const auto& cookie : member(*answer, name)) all[name].push_back(cookie);
  }
  if (daemon.json) {
    print(json_line(all) + "\n");
  } else {
    for (const auto& cookie : all["killed"])
      print("killed " + log::escaped(cookie.get<std::string>()) + "\n");
  }
  if (all["not_found"].empty()) return kDone;
  return fail("no live flow has this cookie: " + list(all, "not_found"));
}

}  // namespace penstock::command
