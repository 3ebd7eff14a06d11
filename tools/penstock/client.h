// SPDX-License-Identifier: Apache-2.0
// tools/penstock/client.h: asks penstockd over its admin socket. The other end is daemon/admin.h.
#pragma once
#include <chrono>
#include <string>

#include "base/result.h"
#include "daemon/json.h"

namespace penstock::command {

inline constexpr std::chrono::seconds kSilenceMax{10};  // of the daemon, before we give up; of most commands

// The daemon's answer. An Error says what to do: also when the daemon answers {"error": ...}.
// `patience`: how long the daemon may say nothing.
Result<Json> ask(const std::string& socket_path, const Json& request,
                 std::chrono::seconds patience = kSilenceMax);

}  // namespace penstock::command
