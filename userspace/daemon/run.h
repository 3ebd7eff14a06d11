// SPDX-License-Identifier: Apache-2.0
// daemon/run.h: a worker, from its first instruction to its exit code.
#pragma once
#include "config/config.h"
#include "daemon/daemon.h"
#include "daemon/kept.h"
#include "keeper/state.h"

namespace penstock::daemon {

// The first of a daemon begins with `started_with`, which was read from `source`; every other one goes on
// with what the one before it left. An exit code that is not 0 is a crash to the keeper, after which another
// one begins.
int run_worker(const Arguments& arguments, const config::Config& started_with, const config::Source& source,
               Kept& kept, keeper::State& state);

}  // namespace penstock::daemon
