// SPDX-License-Identifier: Apache-2.0
#include "daemon/daemon.h"

#include <poll.h>
#include <signal.h>

#include <cstdio>

#include "base/log.h"
#include "config/config.h"
#include "daemon/kept.h"
#include "daemon/run.h"
#include "keeper/keeper.h"

namespace penstock::daemon {

int serve(const Arguments& arguments) {
  config::Source source;
  config::Parsed parsed = config::load(arguments.config, arguments.env_file, &source);
  for (const auto& d : parsed.diagnostics) fprintf(stderr, "%s\n", d.text.c_str());
  if (!parsed.config) return 2;
  signal(SIGPIPE, SIG_IGN);
  Kept kept;
  if (auto made = make_kept(*parsed.config, &kept); !made) {
    remove_kept(kept);
    log::error("{}", made.error().message);
    return 1;
  }
  const int code = keeper::keep(
      [&](keeper::State& state) {
        const int own_code = run_worker(arguments, *parsed.config, source, kept, state);
        log::stop();
        // The keeper is dead, so nobody else does it.
        pollfd orphaned{keeper::hear_of_keepers_end(state), POLLIN, 0};
        if (poll(&orphaned, 1, 0) == 1) remove_kept(kept);
        return own_code;
      },
      nullptr);
  remove_kept(kept);
  return code;
}

}  // namespace penstock::daemon
