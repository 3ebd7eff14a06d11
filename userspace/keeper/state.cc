// SPDX-License-Identifier: Apache-2.0
#include "keeper/state.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "keeper/desk.h"

namespace penstock::keeper {
namespace {

constexpr uint64_t kMagic = 0x7265'7065'656b'7370;  // "pskeeper"

void wake(const State& state) {
  const uint64_t one = 1;
  // EAGAIN: the counter is full, so the keeper has been woken.
  [[maybe_unused]] ssize_t n = write(state.descriptors[kWake].load(), &one, sizeof one);
}

}  // namespace

void beat(State& state) {
  state.heartbeat.fetch_add(1, std::memory_order_relaxed);
}

void say_reloading(State& state) {
  state.readiness = Readiness::reloading;
  state.reloads++;
  wake(state);
}

void say_ready(State& state) {
#if PENSTOCK_LAYOUT_STEP
  state.ready_said++;
#endif
  state.readiness = Readiness::ready;
  wake(state);
}

bool ask_upgrade(State& state, std::string_view program, uint32_t patience_ms) {
  if (state.step != UpgradeStep::none || program.size() >= sizeof state.upgrade_program) return false;
  *std::copy(program.begin(), program.end(), state.upgrade_program) = 0;
  state.upgrade_asked_patience_ms = patience_ms;
  state.upgrade_asks++;
  wake(state);
  return true;
}

int hear_of_keepers_end(const State& state) {
  return state.descriptors[kKeeperEnd];
}

bool is_keepers(const State& state, int fd) {
  return fd >= 0 && std::ranges::any_of(state.descriptors, [fd](const auto& own) { return own == fd; });
}

void pass_trial(State& state) {
  state.trial_passed = state.trials.load();
}

std::string_view name(Phase phase) {
  switch (phase) {
    case Phase::starting:
      return "starting";
    case Phase::serving:
      return "serving";
    case Phase::backing_off:
      return "backing_off";
    case Phase::stopping:
      return "stopping";
    case Phase::upgrading:
      return "upgrading";
    case Phase::given_up:
      return "given_up";
  }
  return "unknown";
}

std::string_view name(UpgradeResult result) {
  switch (result) {
    case UpgradeResult::none:
      return "none";
    case UpgradeResult::done:
      return "done";
    case UpgradeResult::not_now:
      return "not_now";
    case UpgradeResult::missing:
      return "missing";
    case UpgradeResult::not_trusted:
      return "not_trusted";
    case UpgradeResult::not_executable:
      return "not_executable";
    case UpgradeResult::trial_failed:
      return "trial_failed";
    case UpgradeResult::trial_killed:
      return "trial_killed";
    case UpgradeResult::trial_timed_out:
      return "trial_timed_out";
    case UpgradeResult::not_quiesced:
      return "not_quiesced";
    case UpgradeResult::worker_died:
      return "worker_died";
    case UpgradeResult::exec_failed:
      return "exec_failed";
    case UpgradeResult::unknown_layout:
      return "unknown_layout";
    case UpgradeResult::start_failed:
      return "start_failed";
    case UpgradeResult::start_timed_out:
      return "start_timed_out";
    case UpgradeResult::back_failed:
      return "back_failed";
  }
  return "unknown";
}

Result<State*> map_page(int fd) {
  struct stat is {};
  if (fstat(fd, &is) || is.st_size != static_cast<off_t>(kStateBytes))
    return Error{fmt::format("descriptor {} holds no keeper's state", fd)};
  void* page = mmap(nullptr, kStateBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (page == MAP_FAILED) return Error{fmt::format("cannot map the keeper's state: {}", strerror(errno))};
  return static_cast<State*>(page);
}

bool is_state(const State& state) {
  return state.magic == kMagic;
}

bool knows(const State& state, uint32_t layout) {
  return is_state(state) && can_take_over(state.layout, layout) && state.bytes <= kStateBytes;
}

void begin(State& state, int fd, uint32_t layout) {
  state.magic = kMagic;
  state.layout = layout;
  state.bytes = sizeof(State);
  for (auto& own : state.descriptors) own = -1;
  state.descriptors[kStateFd] = fd;
}

Result<State*> map_state(int fd, uint32_t layout) {
  Result<State*> state = map_page(fd);
  if (!state || knows(**state, layout)) return state;
  Error unknown{
      fmt::format("the keeper's state has layout {}; this program has {}", (*state)->layout, layout)};
  munmap(*state, kStateBytes);
  return unknown;
}

}  // namespace penstock::keeper
