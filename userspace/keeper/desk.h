// SPDX-License-Identifier: Apache-2.0
// keeper/desk.h: what the keeper's two threads share, in memory that no worker can reach. The supervisor
// (confined) decides, the starter (privileged) acts.
#pragma once
#include <atomic>
#include <cstdint>
#include <string>

#include "keeper/confine.h"
#include "keeper/keeper.h"
#include "keeper/notify.h"

namespace penstock::keeper {

// Bits of Desk::requests. kIdle is always set while the supervisor lives: its thread's death writes 0 there
// and wakes the starter (set_tid_address(2)).
enum Request : uint32_t {
  kIdle = 1,
  kStartWorker = 2,
  kStartTrial = 4,
  kTidy = 8,  // close what the upgrade that is over has left
};

enum class Outcome { none, end, upgrade, back };  // of the supervisor's thread; none: it died

struct Desk {
  std::atomic<uint32_t> requests;  // futex; a bit is cleared, and the supervisor woken, when it is done
  // The starter's answers.
  // A child's number is its own until it is reaped, and only the supervisor reaps. Its pidfd, which a worker
  // could put another's in the place of, is only to wake up by.
  pid_t worker_pid = -1, trial_pid = -1;
  int worker = -1;  // pidfd; < 0: clone(2) failed with start_errno
  int start_errno = 0;
  int trial = -1;  // < 0: refused, as these two say
  UpgradeResult refusal = UpgradeResult::none;
  int refusal_detail = 0;
  // The supervisor's, read once its thread is gone.
  bool default_program = false;
  Outcome outcome = Outcome::none;
  int exit_code = 0;
  int killed_at_start = 0;  // the signal of a worker that was never ready
  bool reload_due = false;  // a SIGHUP that no worker has taken
  std::string unconfined;   // why it is not

  State* state = nullptr;
  char own_program[sizeof State::program] = "";
  Timing timing;
  Notify notify;
  Doors doors{};
};

// The supervisor's thread, already confined. Returns when the outcome stands, or with none when a worker has
// closed a descriptor of the keeper's.
void supervise(Desk& desk);

int64_t monotonic_ns();

// state.cc
Result<State*> map_page(int fd);
bool is_state(const State& state);
bool knows(const State& state, uint32_t layout);
void begin(State& state, int fd, uint32_t layout);

}  // namespace penstock::keeper
