// SPDX-License-Identifier: Apache-2.0
// keeper/state.h: what keeper and worker tell each other: one page of shared memory (a memfd, sealed at its
// size) that outlives both. Every field has one writer. The worker is not trusted: the keeper keeps in memory
// of its own whatever it decides by, and takes from here only what the worker has to say.
#pragma once
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/layout.h"
#include "base/result.h"

namespace penstock::keeper {

inline constexpr uint32_t kLayout = 2 + kLayoutStep;  // base/layout.h; fields are added at the end
inline constexpr size_t kStateBytes = 4096;
inline constexpr int kQuiesced = 75;  // exit code of a worker that has put everything down for an upgrade

// The keeper's. Do not reorder, here and below: an older or newer program reads them.
enum class Phase : uint32_t { starting, serving, backing_off, stopping, upgrading, given_up };
enum class Readiness : uint32_t { none, ready, reloading };
enum class Cause : uint32_t { died, no_heartbeat };  // no_heartbeat: the keeper ended it
enum class UpgradeStep : uint32_t { none, trial, quiescing, trying, back };
enum class UpgradeResult : uint32_t {
  none,             // no upgrade was wanted yet, or one is under way
  done,             // the new program's worker is ready
  not_now,          // not while the daemon is starting, backing off or stopping
  missing,          // detail: errno of open(2)
  not_trusted,      // not owned by root or by us, or another may write to it
  not_executable,   // detail: errno of execve(2)
  trial_failed,     // detail: its exit code
  trial_killed,     // detail: the signal
  trial_timed_out,  //
  not_quiesced,     // the old worker did not put everything down in time
  worker_died,      // the old worker died of something else meanwhile; detail: its signal or exit code
  exec_failed,      // detail: errno
  unknown_layout,   // the new program does not know this State; detail: the layout that it has
  start_failed,     // the new worker died before it was ready; detail: its signal or exit code
  start_timed_out,  //
  back_failed,      // nor could the old program be executed: the new one goes on; detail: errno
};

// The keeper's descriptors, in the table that it shares with the worker. -1: none at the moment.
enum Descriptor {
  kStateFd,
  kSignals,
  kWake,
  kKeeperEnd,
  kWorkerEnd,
  kTrialEnd,
  kNotify,
  kOomScore,
  kNewProgram,
  kOldProgram,
  kDescriptors
};

struct State {
  uint64_t magic;
  uint32_t layout, bytes;
  // In every layout at this place, so that a program which does not know the rest can go back. The keeper's.
  std::atomic<UpgradeStep> step;
  std::atomic<UpgradeResult> result;
  std::atomic<int32_t> result_detail;
  std::atomic<uint32_t> upgrades_answered;  // + 1 with every result
  std::array<std::atomic<int32_t>, 16> descriptors;

  // The keeper's.
  alignas(64) std::atomic<Phase> phase;
  std::atomic<uint32_t> ends_wanted;   // 0, 1 graceful, 2 at once
  std::atomic<uint32_t> quick_deaths;  // in a row: each lived shorter than Timing::steady
  std::atomic<uint32_t> ever_ready;
  std::atomic<int32_t> worker_pid;  // the last that was started
  std::atomic<uint64_t> starts, crashes, upgrades;
  std::atomic<int64_t> started_ns;                                               // CLOCK_MONOTONIC
  std::atomic<int64_t> last_crash_ns;                                            // CLOCK_REALTIME; 0: never
  std::atomic<int32_t> last_crash_pid, last_crash_signal, last_crash_exit_code;  // signal 0: it exited
  std::atomic<Cause> last_crash_cause;
  std::atomic<uint32_t> upgrade_patience_ms;  // what the upgrade under way was granted, also across the exec
  std::atomic<uint32_t> released;             // futex: the start whose worker may begin
  std::atomic<int32_t> exec_errno;            // of the trial, which writes it
  std::atomic<int32_t> worker_oom_score_adj;
  std::atomic<int32_t> memory;   // Program::memory of the first program
  std::atomic<uint32_t> trials;  // begun
  char program[256];             // what the daemon is now, for an upgrade without a path

  // The worker's.
  alignas(64) std::atomic<uint64_t> heartbeat;
  std::atomic<Readiness> readiness;  // the keeper sets it to none before every start
  std::atomic<uint32_t> reloads;     // begun
  std::atomic<uint32_t> upgrade_asks, upgrade_asked_patience_ms;
  char upgrade_program[256];

  // The program's on trial.
  alignas(64) std::atomic<uint32_t> trial_passed;  // == trials: it has said so itself
#if PENSTOCK_LAYOUT_STEP
  std::atomic<uint64_t> ready_said;  // how often, by programs that have this field
#endif
};
static_assert(sizeof(State) <= kStateBytes && kDescriptors <= 16);
static_assert(offsetof(State, step) == 16 && offsetof(State, descriptors) == 32 &&
              offsetof(State, phase) == 128);
static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<Phase>::is_always_lock_free);

// The worker's side. Each is one or two stores; those that want an answer also wake the keeper. Thread-safe,
// but for ask_upgrade().
void beat(State& state);
void say_reloading(State& state);
void say_ready(State& state);  // after the start, and after every reload
// Empty program: the one at the path that the daemon was started from. False: an upgrade is under way, or the
// path has more than 255 bytes. The answer is a new `upgrades_answered`, with `result`.
bool ask_upgrade(State& state, std::string_view program, uint32_t patience_ms);

// Readable (poll(2)) once the keeper has ended, however it did. The keeper's descriptor: not to be closed.
int hear_of_keepers_end(const State& state);
// For whoever audits the descriptor table: only before say_ready() is this complete.
bool is_keepers(const State& state, int fd);

std::string_view name(Phase phase);
std::string_view name(UpgradeResult result);

// For `--trial FD`: whether this program could take over from the one that runs. The mapping stays.
Result<State*> map_state(int fd, uint32_t layout = kLayout);
// Its last word, before it exits with 0: any program may exit with 0.
void pass_trial(State& state);

}  // namespace penstock::keeper
