// SPDX-License-Identifier: Apache-2.0
// daemon/status.h: what the admin socket answers. README.md of this folder lists the requests.
#pragma once
#include <sys/types.h>

#include <cstdint>
#include <string>

#include "check/checker.h"
#include "daemon/json.h"
#include "flow/worker.h"

namespace penstock::keeper {
struct State;
enum class UpgradeResult : uint32_t;
}  // namespace penstock::keeper

namespace penstock::daemon {

struct DrainedNames;
class Http;
class Listeners;
class Reload;

struct Facts {
  std::string engine, engine_reason, io, kernel;
  pid_t pid = 0;  // of the keeper: whom an operator signals
  keeper::State* keeper = nullptr;
  uint64_t started_ns = 0;
  double started_unix_s = 0;
  uint32_t flows_max = 0;
  const Http* http = nullptr;  // null: turned off
  std::string http_address;    // of the start: a reload does not move it
  Reload* reload = nullptr;    // not null once it is ready
  const check::Checker* checker = nullptr;
  Listeners* listeners = nullptr;
  DrainedNames* drained = nullptr;  // null: they are forgotten with the process
};

// Why the old program goes on after an upgrade; empty: it does not.
std::string reason_of(keeper::UpgradeResult result, int detail);

// Thread-safe: asks the workers where only they know.
Json answer(flow::Shared& shared, const Facts& facts, const Json& request);

}  // namespace penstock::daemon
