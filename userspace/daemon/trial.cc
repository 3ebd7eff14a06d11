// SPDX-License-Identifier: Apache-2.0
#include "daemon/trial.h"

#include <cstdio>

#include "config/config.h"
#include "daemon/engine.h"
#include "daemon/kept.h"
#include "flow/record.h"
#include "keeper/state.h"

namespace penstock::daemon {
namespace {

Status try_all(const Arguments& arguments, int state_file) {
  auto state = keeper::map_state(state_file);
  if (!state) return state.error();
  Kept kept;
  if (auto s = look_at_kept((*state)->memory, &kept); !s) return s;
  const std::vector<Plans::Kept> plans = needed_plans(kept);
  if (plans.empty()) return Error{"nothing is configured"};
  config::Parsed parsed;
  for (const Plans::Kept& plan : plans) {
    parsed = config::load(plan.source, arguments.config);
    for (const auto& d : parsed.diagnostics)
      if (d.is_error) fprintf(stderr, "%s\n", d.text.c_str());
    if (!parsed.config)
      return Error{plan.id == plans.back().id
                       ? "the configuration that is served has mistakes to this version"
                       : "a configuration that open flows came in under has mistakes to this version"};
  }
  const EngineChoice choice = choose_engine(parsed.config->daemon.engine, true);
  if (kept.engine.splice && !choice.splice) return Error{"flows are in the sockmap, and " + choice.reason};
  keeper::pass_trial(**state);
  return Nothing{};
}

}  // namespace

int try_upgrade(const Arguments& arguments, int state_file) {
  const Status tried = try_all(arguments, state_file);
  if (!tried)
    fprintf(stderr, "penstockd %s: cannot take over: %s\n", PENSTOCK_VERSION, tried.error().message.c_str());
  return tried ? 0 : 1;
}

}  // namespace penstock::daemon
