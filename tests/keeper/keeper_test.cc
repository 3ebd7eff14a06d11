// SPDX-License-Identifier: Apache-2.0
#include "keeper/keeper.h"

#include <gtest/gtest.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>

#include "keeper/kept.h"

namespace penstock::keeper::test {
namespace {

using std::to_string;

const std::vector<std::string> kAtOnce = {"steady=0"};  // no death is a quick one
const std::vector<std::string> kFastTicks = {"steady=0", "tick=20", "abort_grace=50"};

TEST(Keeper, a_thousand_dead_workers_leave_nothing_behind) {
  constexpr uint64_t kDeaths = 1'000;
  Kept kept("ready", kAtOnce);
  ASSERT_TRUE(kept.ready(1));
  kept.kill_worker();
  ASSERT_TRUE(kept.ready(2));
  const pid_t keeper = kept.process().pid();
  const auto descriptors_before = descriptors(keeper);
  const auto threads_before = threads(keeper);
  const std::string memory_before = status_line(to_string(keeper), "VmData");
  EXPECT_EQ(descriptors(kept.state().worker_pid), descriptors_before);
  for (uint64_t start = 3; start < 3 + kDeaths; start++) {
    kept.kill_worker();
    ASSERT_TRUE(kept.ready(start));
  }
  EXPECT_EQ(descriptors(keeper), descriptors_before);
  EXPECT_EQ(descriptors(kept.state().worker_pid), descriptors_before);
  EXPECT_EQ(threads(keeper), threads_before);
  EXPECT_EQ(status_line(to_string(keeper), "VmData"), memory_before);
  EXPECT_EQ(kept.state().crashes, kDeaths + 1);
  EXPECT_EQ(kept.state().last_crash_signal, SIGKILL);
#ifdef SCENE_COUNTS_ALLOCATIONS
  EXPECT_TRUE(kept.says("allocations before 1\n"));  // it counts
  kept.command("allocations");
  EXPECT_TRUE(kept.says("allocations 0\n")) << kept.process().output();
#endif
  kept.process().signal(SIGTERM);
  EXPECT_EQ(kept.exit_code(), 0);
}

TEST(Keeper, the_file_table_is_shared_and_a_worker_gets_no_other_privilege) {
  Kept kept("ready");
  ASSERT_TRUE(kept.ready(1));
  const std::string keeper = to_string(kept.process().pid()), worker = to_string(kept.state().worker_pid);
  EXPECT_EQ(syscall(SYS_kcmp, kept.process().pid(), kept.state().worker_pid.load(), 2 /* KCMP_FILES */, 0, 0),
            0);
  EXPECT_EQ(status_line(keeper, "Name"), "penstock-keeper");
  EXPECT_EQ(status_line(worker, "Name"), "penstock-worker");
  for (const char* key : {"Seccomp", "NoNewPrivs", "CapEff", "CapPrm"}) {
    EXPECT_EQ(status_line(worker, key), status_line("self", key)) << key;
    EXPECT_EQ(status_line(keeper, key), status_line("self", key)) << key;
  }
}

TEST(Keeper, holds_the_signals_that_it_passes_on_until_a_worker_takes_them) {
  Kept kept("hang");
  ASSERT_TRUE(kept.says("worker 1"));
  EXPECT_EQ(status_line(to_string(kept.state().worker_pid), "SigBlk"), "0000000000004a03");
}

pid_t supervisor_of(const Kept&, pid_t keeper) {
  std::set<pid_t> all = threads(keeper);
  all.erase(keeper);
  return all.size() == 1 ? *all.begin() : -1;
}

TEST(Keeper, its_supervisor_is_confined) {
  Kept kept("ready");
  ASSERT_TRUE(kept.ready(1));
  const pid_t keeper = kept.process().pid(), supervisor = supervisor_of(kept, keeper);
  const std::string task = to_string(keeper) + "/task/" + to_string(supervisor);
  EXPECT_EQ(status_line(task, "Seccomp"), "2");
  EXPECT_EQ(status_line(task, "NoNewPrivs"), "1");
  const std::string kill_alone = geteuid() == 0 ? "0000000000000020" : "0000000000000000";
  EXPECT_EQ(status_line(task, "CapEff"), kill_alone);
  EXPECT_EQ(status_line(task, "CapPrm"), kill_alone);
}

#if defined(__x86_64__)
TEST(Keeper, that_makes_a_call_it_may_not_ends_the_daemon_in_order) {
  Kept kept("ready");
  ASSERT_TRUE(kept.ready(1));
  const pid_t keeper = kept.process().pid(), supervisor = supervisor_of(kept, keeper);
  const std::string call = "/proc/" + to_string(keeper) + "/task/" + to_string(supervisor) + "/syscall";
  ASSERT_TRUE(wait_until([&] {
    long number = -1;
    std::ifstream(call) >> number;
    return number == SYS_ppoll;
  }));
  ASSERT_EQ(ptrace(PTRACE_SEIZE, supervisor, nullptr, nullptr), 0);
  ASSERT_EQ(ptrace(PTRACE_INTERRUPT, supervisor, nullptr, nullptr), 0);
  ASSERT_EQ(waitpid(supervisor, nullptr, __WALL), supervisor);
  user_regs_struct registers{};
  ASSERT_EQ(ptrace(PTRACE_GETREGS, supervisor, nullptr, &registers), 0);
  ASSERT_EQ(registers.orig_rax, static_cast<unsigned long long>(SYS_ppoll));
  registers.rip -= 2;  // it waits in ppoll(2): again the instruction, with another number
  registers.rax = SYS_getpid;
  registers.orig_rax = ~0ull;
  ASSERT_EQ(ptrace(PTRACE_SETREGS, supervisor, nullptr, &registers), 0);
  ASSERT_EQ(ptrace(PTRACE_DETACH, supervisor, nullptr, nullptr), 0);
  EXPECT_EQ(kept.exit_code(), 1);
  EXPECT_TRUE(kept.says("the keeper lost its supervisor"));
  EXPECT_TRUE(kept.says("signal 15 ends_wanted 1"));
  EXPECT_TRUE(kept.says("cleaned up stopping"));
}
#endif

TEST(Keeper, whose_descriptor_a_worker_closed_ends_the_daemon_in_order) {
  Kept kept("ready");
  ASSERT_TRUE(kept.ready(1));
  kept.command("close " + to_string(kSignals));
  EXPECT_TRUE(kept.says("obeyed close"));
  kill(kept.process().pid(), SIGHUP);  // nobody reads it; the next tick finds the descriptor gone
  EXPECT_EQ(kept.exit_code(), 1);
  EXPECT_TRUE(kept.says("the keeper lost its supervisor"));
  EXPECT_TRUE(kept.says("cleaned up stopping"));
}

TEST(Keeper, restarts_a_worker_that_crashes) {
  Kept kept("ready", kAtOnce);
  uint64_t start = 1;
  for (const int signal : {SIGSEGV, SIGABRT, SIGBUS, SIGILL}) {
    ASSERT_TRUE(kept.ready(start));
    kept.command("signal " + to_string(signal));
    ASSERT_TRUE(kept.ready(++start));
    EXPECT_EQ(kept.state().last_crash_signal, signal);
  }
  kept.command("exit 3");
  ASSERT_TRUE(kept.ready(++start));
  EXPECT_EQ(kept.state().last_crash_signal, 0);
  EXPECT_EQ(kept.state().last_crash_exit_code, 3);
  EXPECT_EQ(kept.state().last_crash_cause, Cause::died);
}

TEST(Keeper, aborts_a_worker_without_heartbeat) {
  Kept kept("ready", kFastTicks);
  ASSERT_TRUE(kept.ready(1));
  kept.command("mute");
  ASSERT_TRUE(kept.ready(2));
  EXPECT_EQ(kept.state().last_crash_signal, SIGABRT);
  EXPECT_EQ(kept.state().last_crash_cause, Cause::no_heartbeat);
}

TEST(Keeper, kills_a_stopped_worker) {
  Kept kept("ready", kFastTicks);
  ASSERT_TRUE(kept.ready(1));
  kept.kill_worker(SIGSTOP);
  ASSERT_TRUE(kept.ready(2));
  EXPECT_EQ(kept.state().last_crash_signal, SIGKILL);
  EXPECT_EQ(kept.state().last_crash_cause, Cause::no_heartbeat);
}

TEST(Keeper, that_was_stopped_itself_blames_no_worker) {
  Kept kept("ready", {"tick=20", "stuck_ticks=10"});
  ASSERT_TRUE(kept.ready(1));
  for (int i = 0; i < 5; i++) {
    const uint64_t beats = kept.state().heartbeat;
    kept.process().signal(SIGSTOP);
    ASSERT_TRUE(wait_until([&] { return kept.state().heartbeat > beats + 50; }));
    kept.process().signal(SIGCONT);
  }
  kept.process().signal(SIGTERM);
  EXPECT_EQ(kept.exit_code(), 0);
  EXPECT_FALSE(kept.says("worker 2"));
}

TEST(Keeper, ends_with_the_exit_code_of_a_worker_that_never_was_ready) {
  for (const int code : {1, 2, 0}) {
    Kept kept("exit" + to_string(code));
    EXPECT_EQ(kept.exit_code(), code);
    EXPECT_TRUE(kept.says(code ? "cleaned up given_up" : "cleaned up"));
    EXPECT_FALSE(kept.says("worker 2"));
  }
}

TEST(Keeper, says_which_signal_killed_a_worker_that_never_was_ready) {
  Kept kept("signal11");
  EXPECT_EQ(kept.exit_code(), 1);
  EXPECT_TRUE(kept.says("the worker was killed by signal 11 (Segmentation fault) before it was ready"));
  EXPECT_TRUE(kept.says("cleaned up given_up"));
}

TEST(Keeper, ends_a_start_that_hangs) {
  Kept kept("hang", {"tick=20", "start_ticks=5"});
  EXPECT_EQ(kept.exit_code(), 1);
  EXPECT_TRUE(kept.says("killed by signal 6"));
}

TEST(Keeper, never_gives_up_once_a_worker_was_ready) {
  // The first dies as soon as it is told; each of the next twelve dies at its start.
  Kept kept("ready,exit1,exit1,exit1,exit1,exit1,exit1,exit1,exit1,exit1,exit1,exit1,exit1,ready",
            {"backoff=1", "backoff_max=8", "storm=10", "steady=60000"});
  ASSERT_TRUE(kept.ready(1));
  kept.kill_worker();
  ASSERT_TRUE(kept.ready(14));
  EXPECT_EQ(kept.state().quick_deaths, 13u);
  EXPECT_TRUE(wait_until([&] { return kept.state().phase == Phase::serving; }));
}

TEST(Keeper, waits_longer_after_each_quick_death_but_not_after_a_steady_life) {
  Kept kept("ready", {"steady=300", "backoff=60000", "backoff_max=60000"});
  ASSERT_TRUE(kept.ready(1));
  const auto steady = [&] {
    const uint64_t beats = kept.state().heartbeat;
    return wait_until([&] { return kept.state().heartbeat > beats + 60; });  // 10 ms each
  };
  ASSERT_TRUE(steady());
  kept.kill_worker();
  ASSERT_TRUE(kept.ready(2));  // at once, or the test's patience were over
  kept.kill_worker();
  ASSERT_TRUE(
      wait_until([&] { return kept.state().phase == Phase::backing_off && kept.state().quick_deaths == 1; }));
  EXPECT_EQ(kept.state().starts, 2u);
  kept.process().signal(SIGTERM);  // one starts all the same, to end what is open
  EXPECT_TRUE(kept.says("worker 3 ends_wanted 1"));
}

TEST(Keeper, passes_signals_on) {
  Kept kept("ready");
  ASSERT_TRUE(kept.says("ready 1"));
  kept.process().signal(SIGHUP);
  EXPECT_TRUE(kept.says("signal 1 "));
  kept.process().signal(SIGUSR1);
  EXPECT_TRUE(kept.says("signal 10 "));
  kept.process().signal(SIGTERM);
  EXPECT_TRUE(kept.says("signal 15 ends_wanted 1"));
  EXPECT_EQ(kept.exit_code(), 0);
  EXPECT_TRUE(kept.says("cleaned up stopping"));
}

TEST(Keeper, passes_signals_on_to_the_next_worker_where_none_is_alive) {
  Kept kept("ready", {"steady=60000", "backoff=500"});
  ASSERT_TRUE(kept.says("ready 1"));
  kept.kill_worker();
  ASSERT_TRUE(wait_until([&] { return kept.state().phase == Phase::backing_off; }));
  kept.process().signal(SIGHUP);
  kept.process().signal(SIGUSR1);
  EXPECT_TRUE(kept.says("signal 1 "));
  EXPECT_TRUE(kept.says("signal 10 "));
  EXPECT_TRUE(kept.says("ready 2"));
}

TEST(Keeper, passes_a_reload_on_to_the_next_worker_where_one_dies_before_it_begins) {
  Kept kept("ready", kAtOnce);
  ASSERT_TRUE(kept.says("ready 1"));
  kept.kill_worker(SIGSTOP);
  kept.process().signal(SIGHUP);
  ASSERT_TRUE(wait_until([&] {  // it has been passed on
    return status_line(to_string(kept.state().worker_pid), "ShdPnd") == "0000000000000001";
  }));
  kept.kill_worker();
  EXPECT_TRUE(kept.says("signal 1 "));
  EXPECT_TRUE(kept.says("ready 2"));
  EXPECT_TRUE(wait_until([&] { return kept.state().reloads == 1; }));
}

TEST(Keeper, ends_at_once_on_the_second_signal) {
  Kept kept("ready");
  ASSERT_TRUE(kept.ready(1));
  kept.command("drains");
  ASSERT_TRUE(kept.says("obeyed drains"));
  kept.process().signal(SIGINT);
  ASSERT_TRUE(kept.says("draining"));
  EXPECT_EQ(kept.state().phase, Phase::stopping);
  kept.process().signal(SIGTERM);
  EXPECT_EQ(kept.exit_code(), 0);
}

TEST(Keeper, kills_a_worker_that_does_not_end_at_once) {
  Kept kept("ready", {"end_grace=50"});
  ASSERT_TRUE(kept.ready(1));
  kept.command("deaf");
  ASSERT_TRUE(kept.says("obeyed deaf"));
  kept.process().signal(SIGTERM);
  ASSERT_TRUE(kept.says("signal 15 ends_wanted 1"));
  kept.process().signal(SIGTERM);
  EXPECT_EQ(kept.exit_code(), 1);
  EXPECT_TRUE(kept.says("cleaned up stopping"));
}

TEST(Keeper, starts_another_where_one_dies_while_it_ends) {
  Kept kept("ready", kAtOnce);
  ASSERT_TRUE(kept.ready(1));
  kept.command("drains");
  ASSERT_TRUE(kept.says("obeyed drains"));
  kept.process().signal(SIGTERM);
  ASSERT_TRUE(kept.says("draining"));
  kept.kill_worker();
  EXPECT_TRUE(kept.says("worker 2 ends_wanted 1"));  // and hears SIGTERM once more, and ends
  EXPECT_EQ(kept.exit_code(), 0);
}

TEST(Keeper, goes_on_ending_where_the_next_one_cannot_start) {
  Kept kept("ready,exit1,ready", kAtOnce);
  ASSERT_TRUE(kept.ready(1));
  kept.command("drains");
  ASSERT_TRUE(kept.says("obeyed drains"));
  kept.process().signal(SIGTERM);
  ASSERT_TRUE(kept.says("draining"));
  kept.kill_worker();
  EXPECT_TRUE(kept.says("worker 3 ends_wanted 1"));
  EXPECT_EQ(kept.exit_code(), 0);
}

TEST(Keeper, gives_up_ending_where_no_worker_takes_over_however_long_each_tries) {
  Kept kept("ready,exit1", {"backoff=1", "backoff_max=1", "storm=5", "steady=0"});
  ASSERT_TRUE(kept.ready(1));
  kept.command("drains");
  ASSERT_TRUE(kept.says("obeyed drains"));
  kept.process().signal(SIGTERM);
  ASSERT_TRUE(kept.says("draining"));
  kept.kill_worker();
  EXPECT_EQ(kept.exit_code(), 1);
  EXPECT_TRUE(kept.says("cleaned up stopping"));
}

TEST(Keeper, gives_up_ending_where_each_worker_dies_of_it) {
  Kept kept("ready,signal9", {"backoff=1", "backoff_max=1", "storm=5", "steady=60000"});
  ASSERT_TRUE(kept.ready(1));
  kept.command("drains");
  ASSERT_TRUE(kept.says("obeyed drains"));
  kept.process().signal(SIGTERM);
  ASSERT_TRUE(kept.says("draining"));
  kept.kill_worker();
  EXPECT_EQ(kept.exit_code(), 1);
  EXPECT_TRUE(kept.says("worker 5 "));
  EXPECT_TRUE(kept.says("cleaned up stopping"));
}

TEST(Keeper, that_is_killed_is_missed_by_the_worker) {
  Kept kept("ready");
  ASSERT_TRUE(kept.ready(1));
  const pid_t worker = kept.state().worker_pid;
  kept.process().signal(SIGKILL);
  EXPECT_EQ(kept.exit_code(), 128 + SIGKILL);
  EXPECT_TRUE(kept.says("keeper gone"));
  EXPECT_TRUE(wait_until([&] { return kill(worker, 0) != 0; }));
}

int oom_score(const std::string& pid) {
  int value = 0;
  std::ifstream("/proc/" + pid + "/oom_score_adj") >> value;
  return value;
}

TEST(Keeper, leaves_the_worker_to_the_oom_killer) {
  const int before = oom_score("self");
  std::ofstream("/proc/self/oom_score_adj") << 700;  // from here it may be lowered without CAP_SYS_RESOURCE
  Kept kept("ready", kAtOnce);
  for (uint64_t start = 1; start < 4; start++) {
    ASSERT_TRUE(kept.ready(start));
    EXPECT_EQ(oom_score(to_string(kept.state().worker_pid)), 700);
    EXPECT_TRUE(wait_until([&] { return oom_score(to_string(kept.process().pid())) == 200; }));
    kept.kill_worker();
  }
  std::ofstream("/proc/self/oom_score_adj") << before;
}

TEST(Keeper, stays_behind_the_worker_for_the_oom_killer_whatever_it_may) {
  Kept kept("ready", kAtOnce);
  for (uint64_t start = 1; start < 4; start++) {
    ASSERT_TRUE(kept.ready(start));
    const int workers = oom_score(to_string(kept.state().worker_pid));
    EXPECT_TRUE(wait_until([&] { return oom_score(to_string(kept.process().pid())) == workers - 500; }));
    kept.kill_worker();
  }
}

TEST(Keeper, knows_its_own_descriptors) {
  Kept kept("ready");
  ASSERT_TRUE(kept.ready(1));
  std::set<int> own;
  for (const auto& [fd, what] : descriptors(kept.process().pid()))
    if (is_keepers(kept.state(), fd)) own.insert(fd);
  for (Descriptor d : {kStateFd, kSignals, kWake, kKeeperEnd, kWorkerEnd})
    EXPECT_EQ(own.erase(kept.state().descriptors[d]), 1u) << d;
  own.erase(kept.state().descriptors[kOomScore]);
  EXPECT_TRUE(own.empty());
  EXPECT_FALSE(is_keepers(kept.state(), STDERR_FILENO));
  EXPECT_FALSE(is_keepers(kept.state(), -1));
}

}  // namespace
}  // namespace penstock::keeper::test
