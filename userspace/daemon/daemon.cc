// SPDX-License-Identifier: Apache-2.0
#include "daemon/daemon.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>

#include "base/log.h"
#include "config/config.h"
#include "daemon/audit.h"
#include "daemon/kept.h"
#include "daemon/run.h"
#include "io/io.h"
#include "keeper/keeper.h"

namespace penstock::daemon {

namespace {

// Before the worker's memory is known: for a program that is executed.
void pass_on(const keeper::State& state, keeper::Exec what) {
  const auto pass = [](int fd) {
    if (const int flags = fcntl(fd, F_GETFD); flags >= 0) fcntl(fd, F_SETFD, flags & ~FD_CLOEXEC);
  };
  if (what == keeper::Exec::upgrade) {
    for (const int fd : open_descriptors())
      if (!keeper::is_keepers(state, fd)) pass(fd);  // it makes its own anew
    return;
  }
  Manifest m;
  if (pread(state.memory, &m, sizeof m, 0) != sizeof m) return;
  for (const int fd : {state.memory.load(), m.table, m.plans}) pass(fd);
}

bool is_orphaned(const keeper::State& state) {
  pollfd end{keeper::hear_of_keepers_end(state), POLLIN, 0};
  return poll(&end, 1, 0) == 1;
}

// In the place of another program, with all it had. Nothing that may fail comes before the worker: then the
// other program is back.
int go_on(const Arguments& arguments) {
  close_range(3, ~0u, CLOSE_RANGE_CLOEXEC);
  const uint64_t run = io::now_ns();
  return keeper::keep(
      [&](keeper::State& state) {
        Kept kept;
        if (auto s = reopen_kept(state, run, &kept); !s) {
          log::error("{}", s.error().message);
          return 1;
        }
        const config::Source source = kept.plans->start();
        config::Parsed parsed = config::load(source, arguments.config);
        if (!parsed.config) parsed = config::load(kept.plans->all().back().source, arguments.config);
        if (!parsed.config) {
          log::error("the configuration cannot be read again");
          return 1;
        }
        const int code = run_worker(arguments, *parsed.config, source, kept, state);
        log::stop();
        if (is_orphaned(state)) remove_kept(kept);
        return code;
      },
      [](const keeper::State& state) { remove_kept(state.memory); }, {},
      {.arguments = arguments.after_name, .kept = arguments.kept, .inherit = pass_on});
}

}  // namespace

int serve(const Arguments& arguments) {
  signal(SIGPIPE, SIG_IGN);
  if (arguments.kept >= 0) return go_on(arguments);
  config::Source source;
  config::Parsed parsed = config::load(arguments.config, arguments.env_file, &source);
  for (const auto& d : parsed.diagnostics) fprintf(stderr, "%s\n", d.text.c_str());
  if (!parsed.config) return 2;
  Kept kept;
  if (auto made = make_kept(*parsed.config, source, &kept); !made) {
    remove_kept(kept);
    log::error("{}", made.error().message);
    return 1;
  }
  const int code = keeper::keep(
      [&](keeper::State& state) {
        const int own_code = run_worker(arguments, *parsed.config, source, kept, state);
        log::stop();
        if (is_orphaned(state)) remove_kept(kept);  // nobody else does it
        return own_code;
      },
      [&](const keeper::State&) { remove_kept(kept); }, {},
      {.arguments = arguments.after_name, .memory = kept.memory_file.get(), .inherit = pass_on});
  remove_kept(kept);  // again nothing, or it has started none
  return code;
}

}  // namespace penstock::daemon
