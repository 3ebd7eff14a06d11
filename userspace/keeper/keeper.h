// SPDX-License-Identifier: Apache-2.0
// keeper/keeper.h: the process that keeps every descriptor while workers come and go. A worker shares its
// file table (clone(2), CLONE_FILES), so one that dies closes nothing. README.md has the story; tests/keeper
// holds it to it.
#pragma once
#include <chrono>
#include <functional>

#include "keeper/state.h"

namespace penstock::keeper {

struct Timing {
  using ms = std::chrono::milliseconds;
  ms steady{1'000};           // a worker that lived so long starts again at once, and resets the backoff
  ms backoff{100};            // after the first quick death; doubles
  ms backoff_max{5'000};      //
  uint32_t storm = 10;        // quick deaths in a row that STATUS= calls a storm
  ms tick{1'000};             // between two looks at the heartbeat
  uint32_t stuck_ticks = 10;  // without progress: SIGABRT; 0: never
  uint32_t start_ticks = 60;  // the same before the worker is ready
  ms abort_grace{3'000};      // from SIGABRT to SIGKILL: longer than a crash report takes
  ms end_grace{5'000};        // from the second SIGTERM to SIGKILL
  ms quiesce{10'000};         // the most that a worker may take to put everything down for an upgrade
};

// Runs in the worker process, whose exit code it returns. The signals that are passed on (SIGTERM, SIGINT,
// SIGHUP, SIGUSR1, SIGUSR2) are blocked when it begins: none is lost; take them by signalfd(2) or unblock
// them.
//   SIGTERM, SIGINT: look at State::ends_wanted; 0 there (somebody signalled the worker alone) counts as 1
//   SIGUSR2: look at State::step; if quiescing, put everything down and return kQuiesced
// It must not unshare(2) or execve(2): that ends the sharing. Ended code 0, or any code while an end is
// wanted: the daemon ends with that code. Anything else is a crash; before a first say_ready() it is a failed
// start, which ends the daemon with the worker's exit code, or 1 for a signal.
using Worker = std::function<int(State&)>;
// Runs once in the keeper when the last worker is gone: removes what a dying daemon must not leave.
using CleanUp = std::function<void(const State&)>;

enum class Exec { trial, upgrade };

struct Program {
  char* const* arguments = nullptr;  // main's argv + 1, for the new program; "--kept N" in it is skipped
  int memory = -1;  // a descriptor, for State::memory: where workers of other programs look first
  int kept = -1;    // N of `--kept N`: we are the new program, or the old one again
  // Right before execve(2) of a program: clears FD_CLOEXEC of what it must find. For a trial on a copy of the
  // table.
  std::function<void(const State&, Exec)> inherit;
  uint32_t layout = kLayout;  // for tests
};

// Keeps a worker until the daemon is to end; returns the daemon's exit code. Allocates nothing once a worker
// runs. REQUIRES: the calling thread is the process's only one and its first; little memory is in use (each
// worker begins with a copy). Takes SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2; they stay blocked, so that one
// which comes too late does not change how the daemon ends.
int keep(const Worker& worker, const CleanUp& clean_up, const Timing& timing = {},
         const Program& program = {});

}  // namespace penstock::keeper
