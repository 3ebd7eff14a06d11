// SPDX-License-Identifier: Apache-2.0
#include <linux/futex.h>
#include <poll.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <iterator>
#include <utility>

#include "keeper/desk.h"

namespace penstock::keeper {
namespace {

int64_t clock_ns(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return now.tv_sec * int64_t{1'000'000'000} + now.tv_nsec;
}

int64_t ns(Timing::ms duration) {
  return std::chrono::nanoseconds(duration).count();
}

constexpr Timing::ms kDefaultPatience{10'000};  // for each step of an upgrade

Timing::ms patience(uint32_t asked_ms) {
  return Timing::ms(std::clamp(asked_ms, 1u, 600'000u));
}

struct Death {
  bool exited;
  int what;  // exit code or signal
  bool is(int code) const { return exited && what == code; }
};

// One thread: no member is shared. Times are CLOCK_MONOTONIC in ns, 0 is never.
class Supervisor {
 public:
  explicit Supervisor(Desk& desk) : desk_(desk), state_(*desk.state), timing_(desk.timing) {}
  void run();

 private:
  bool wait();
  void run_timers();
  void ask(Request request);
  void send(const int& child, int signal);
  pid_t pid_of(const int& child) const;
  template <typename... A>
  void notify(const char* format, A... arguments);
  void end(int exit_code);
  void enter(Phase phase) { state_.phase = phase_ = phase; }

  void read_signals();
  void want_end(int signal);
  void listen_to_worker();
  void take_answers();
  void on_ready();
  void on_tick();
  void on_worker_death(Death death);
  void start_worker(int64_t delay_ns);

  void look_for_upgrade();
  void begin_upgrade(bool default_program);
  void on_trial_end(Death death);
  void quiesce();
  void on_upgrade_timeout();
  void end_upgrade(UpgradeResult result, int detail);

  Desk& desk_;
  State& state_;
  const Timing& timing_;
  uint32_t asked_ = 0;  // requests that the starter has not answered yet
  int worker_ = -1, trial_ = -1;
  uint32_t ends_wanted_ = 0, quick_deaths_ = 0;
  bool ever_ready_ = false;
  bool announced_ = false;    // that this worker is ready
  bool reload_due_ = false;   // a SIGHUP came; no worker has begun
  bool usr1_due_ = false;     // a SIGUSR1 came, and there was no worker
  bool upgrade_due_ = false;  // SIGUSR2
  uint32_t reloads_ = 0, upgrade_asks_ = 0;
  Cause cause_ = Cause::died;
  bool timed_out_ = false;  // the step of the upgrade
  UpgradeStep step_ = UpgradeStep::none;
  Phase phase_ = Phase::starting;
  uint64_t heartbeat_ = 0;
  uint32_t ticks_missed_ = 0;
  int64_t started_ = 0, tick_at_ = 0, start_at_ = 0, kill_at_ = 0, upgrade_until_ = 0;
  int64_t tick_ns_ = 0;
};

void Supervisor::run() {
  ends_wanted_ = std::min(state_.ends_wanted.load(), 2u);
  ever_ready_ = state_.ever_ready != 0;
  reloads_ = state_.reloads;
  upgrade_asks_ = state_.upgrade_asks;
  step_ = state_.step;
  tick_ns_ = ns(timing_.tick);
  if (desk_.notify.watchdog_ns() > 0) tick_ns_ = std::min(tick_ns_, desk_.notify.watchdog_ns() / 2);
  tick_at_ = monotonic_ns();
  if (step_ == UpgradeStep::trying) upgrade_until_ = tick_at_ + ns(patience(state_.upgrade_patience_ms));
  start_worker(0);
  while (desk_.outcome == Outcome::none) {
    run_timers();
    if (desk_.outcome == Outcome::none && !wait()) return;
  }
}

// False: a descriptor of ours is gone.
bool Supervisor::wait() {
  int64_t until = tick_at_;
  for (int64_t at : {start_at_, kill_at_, upgrade_until_})
    if (at) until = std::min(until, at);
  const int64_t left = std::max<int64_t>(until - monotonic_ns(), 0);
  const timespec timeout{left / 1'000'000'000, left % 1'000'000'000};
  // A worker that has just begun looks through the table: until it is ready nothing is closed there.
  const bool trial_may_end = worker_ < 0 ? !(asked_ & kStartWorker) : announced_;
  pollfd watched[] = {{desk_.doors.signals, POLLIN, 0},
                      {desk_.doors.wake, POLLIN, 0},
                      {worker_, POLLIN, 0},
                      {trial_may_end ? trial_ : -1, POLLIN, 0}};
  if (ppoll(watched, std::size(watched), &timeout, nullptr) <= 0) return true;
  for (const pollfd& p : watched)
    if (p.revents & POLLNVAL) return false;
  if (watched[0].revents) read_signals();
  if (watched[1].revents) {
    uint64_t count;
    [[maybe_unused]] ssize_t n = read(desk_.doors.wake, &count, sizeof count);
    take_answers();
    listen_to_worker();
  }
  for (int* child : {&worker_, &trial_}) {
    if (*child < 0 || *child != watched[child == &worker_ ? 2 : 3].fd) continue;
    siginfo_t died{};
    if (waitid(P_PID, static_cast<id_t>(pid_of(*child)), &died, WEXITED | WNOHANG) || died.si_pid == 0)
      continue;
    const Death death{died.si_code == CLD_EXITED, died.si_status};
    if (child == &worker_) {
      on_worker_death(death);
    } else {
      desk_.trial_pid = -1;
      on_trial_end(death);
    }
  }
  return true;
}

void Supervisor::run_timers() {
  const int64_t now = monotonic_ns();
  if (kill_at_ && now >= kill_at_) {
    kill_at_ = 0;
    send(worker_, SIGKILL);
  }
  if (upgrade_until_ && now >= upgrade_until_) on_upgrade_timeout();
  if (start_at_ && now >= start_at_) {
    start_at_ = 0;
    ask(kStartWorker);
  }
  if (now >= tick_at_) {
    tick_at_ = now + tick_ns_;  // not tick_at_ + …: a host that stood still has missed one tick, not many
    on_tick();
  }
}

void Supervisor::ask(Request request) {
  asked_ |= request;
  desk_.requests.fetch_or(request);
  syscall(SYS_futex, &desk_.requests, FUTEX_WAKE, 1);
}

void Supervisor::send(const int& child, int signal) {
  if (child >= 0) kill(pid_of(child), signal);
}

pid_t Supervisor::pid_of(const int& child) const {
  return &child == &worker_ ? desk_.worker_pid : desk_.trial_pid;
}

template <typename... A>
void Supervisor::notify(const char* format, A... arguments) {
  char text[256];
  snprintf(text, sizeof text, format, arguments...);
  desk_.notify.send(text);
}

void Supervisor::end(int exit_code) {
  desk_.exit_code = exit_code;
  desk_.outcome = Outcome::end;
}

void Supervisor::read_signals() {
  signalfd_siginfo info{};
  if (read(desk_.doors.signals, &info, sizeof info) != sizeof info) return;
  const int signal = static_cast<int>(info.ssi_signo);
  if (signal == SIGTERM || signal == SIGINT) {
    want_end(signal);
  } else if (signal == SIGUSR2) {
    upgrade_due_ = true;
    listen_to_worker();  // it may have become ready just before
  } else {
    if (signal == SIGHUP) reload_due_ = true;
    if (signal == SIGUSR1) usr1_due_ = worker_ < 0;
    send(worker_, signal);
  }
}

void Supervisor::want_end(int signal) {
  if (ends_wanted_ == 0) desk_.notify.send("STOPPING=1");
  ends_wanted_ = std::min(ends_wanted_ + 1, 2u);
  state_.ends_wanted = ends_wanted_;
  enter(Phase::stopping);
  if (step_ == UpgradeStep::trial) send(trial_, SIGKILL);
  if (worker_ >= 0 || asked_ & kStartWorker) {
    send(worker_, signal);
    if (ends_wanted_ == 2 && !kill_at_) kill_at_ = monotonic_ns() + ns(timing_.end_grace);
  } else if (ends_wanted_ == 2 || quick_deaths_ >= timing_.storm) {
    end(1);
  } else {
    start_worker(0);
  }
}

void Supervisor::take_answers() {
  const uint32_t done = asked_ & ~desk_.requests.load(std::memory_order_acquire);
  asked_ &= ~done;
  if (done & kStartWorker) {
    worker_ = desk_.worker;
    started_ = monotonic_ns();
    heartbeat_ = state_.heartbeat;
    ticks_missed_ = 0;
    if (worker_ < 0)
      on_worker_death({true, 1});
    else if (ends_wanted_)  // maybe since it was started
      send(worker_, SIGTERM);
    // It goes on with the configuration that the last one had.
    if (reload_due_) send(worker_, SIGHUP);
    if (std::exchange(usr1_due_, worker_ < 0 && usr1_due_)) send(worker_, SIGUSR1);
    if (ends_wanted_ == 2) kill_at_ = started_ + ns(timing_.end_grace);
    if (timed_out_ && step_ == UpgradeStep::trying) send(worker_, SIGKILL);
  }
  if (done & kStartTrial) {
    trial_ = desk_.trial;
    if (trial_ < 0)
      end_upgrade(desk_.refusal, desk_.refusal_detail);
    else if (timed_out_ || ends_wanted_)  // before it was there to be killed
      send(trial_, SIGKILL);
  }
}

void Supervisor::listen_to_worker() {
  if (worker_ < 0) return;
  const uint32_t reloads = state_.reloads;
  if (reloads != reloads_) {
    reloads_ = reloads;
    reload_due_ = announced_ = false;
    notify("RELOADING=1\nMONOTONIC_USEC=%" PRId64, monotonic_ns() / 1000);
  }
  if (!announced_ && state_.readiness == Readiness::ready) on_ready();
  look_for_upgrade();
}

void Supervisor::on_ready() {
  announced_ = true;
  ever_ready_ = true;
  state_.ever_ready = 1;
  ticks_missed_ = 0;
  if (!ends_wanted_ && step_ != UpgradeStep::quiescing) enter(Phase::serving);
  desk_.notify.send(ends_wanted_ ? "READY=1" : "READY=1\nSTATUS=serving");
  if (step_ == UpgradeStep::trying) {
    state_.upgrades++;
    memcpy(state_.program, desk_.own_program, sizeof state_.program);
    end_upgrade(UpgradeResult::done, 0);
  }
}

void Supervisor::on_tick() {
  if (desk_.notify.watchdog_ns() > 0) desk_.notify.send("WATCHDOG=1");
  if (worker_ < 0) return;
  const uint64_t heartbeat = state_.heartbeat.load(std::memory_order_relaxed);
  ticks_missed_ = heartbeat == heartbeat_ ? ticks_missed_ + 1 : 0;
  heartbeat_ = heartbeat;
  const uint32_t patience = announced_ ? timing_.stuck_ticks : timing_.start_ticks;
  if (ticks_missed_ != patience || patience == 0 || kill_at_) return;
  cause_ = Cause::no_heartbeat;
  kill_at_ = monotonic_ns() + ns(timing_.abort_grace);
  desk_.notify.send("STATUS=the worker has no heartbeat and is ended");
  send(worker_, SIGABRT);
}

void Supervisor::on_worker_death(Death death) {
  listen_to_worker();  // what it said last
  const bool was_ready = announced_;
  const int64_t lived = monotonic_ns() - started_;
  worker_ = -1;
  kill_at_ = 0;
  const bool put_down = step_ == UpgradeStep::quiescing && death.is(kQuiesced);
  if (put_down && !ends_wanted_) {
    desk_.reload_due = reload_due_;
    desk_.outcome = Outcome::upgrade;
    return;
  }
  if (put_down && ends_wanted_ == 1) {  // what was put down still has to be ended gracefully
    end_upgrade(UpgradeResult::not_now, 0);
    return start_worker(0);
  }
  // One that could not even start has not ended what is open.
  if (death.exited && ends_wanted_ && (was_ready || death.is(0) || put_down))
    return end(put_down ? 0 : death.what);
  if (ends_wanted_ == 2) return end(1);
  if (step_ == UpgradeStep::trying) {
    state_.result = timed_out_ ? UpgradeResult::start_timed_out : UpgradeResult::start_failed;
    state_.result_detail = death.what;
    desk_.reload_due = reload_due_;
    desk_.outcome = Outcome::back;
    return;
  }
  if (death.is(0)) return end(0);
  if (!ever_ready_) {
    if (!death.exited) desk_.killed_at_start = death.what;
    enter(Phase::given_up);
    return end(death.exited ? death.what : 1);
  }
  if (step_ == UpgradeStep::quiescing) {
    end_upgrade(timed_out_ ? UpgradeResult::not_quiesced : UpgradeResult::worker_died, death.what);
    if (timed_out_) return start_worker(0);
  }
  state_.crashes++;
  state_.last_crash_pid = state_.worker_pid.load();
  state_.last_crash_signal = death.exited ? 0 : death.what;
  state_.last_crash_exit_code = death.exited ? death.what : 0;
  state_.last_crash_cause = cause_;
  state_.last_crash_ns = clock_ns(CLOCK_REALTIME);
  // One that is to end what is open and cannot even take it over is a quick death, however long it tried.
  const bool in_vain = ends_wanted_ && !was_ready;
  quick_deaths_ = in_vain || lived < ns(timing_.steady) ? quick_deaths_ + 1 : 0;
  state_.quick_deaths = quick_deaths_;
  if (ends_wanted_ && quick_deaths_ >= timing_.storm) return end(1);
  int64_t delay = 0;
  if (quick_deaths_)
    delay = std::min(ns(timing_.backoff) << std::min(quick_deaths_ - 1, 20u), ns(timing_.backoff_max));
  if (!ends_wanted_) enter(Phase::backing_off);
  notify("STATUS=%sthe worker %s %d%s; the next one starts in %" PRId64 " ms",
         quick_deaths_ >= timing_.storm ? "restart storm: " : "",
         death.exited ? "exited with code" : "was killed by signal", death.what,
         was_ready ? "" : " before it was ready", delay / 1'000'000);
  start_worker(delay);
}

void Supervisor::start_worker(int64_t delay_ns) {
  announced_ = false;
  cause_ = Cause::died;
  start_at_ = monotonic_ns() + delay_ns;
}

// While the starter tidies up after the last one, whoever asks waits; its answer leads here again.
void Supervisor::look_for_upgrade() {
  if (asked_ & kTidy) return;
  const uint32_t asks = state_.upgrade_asks;
  if (asks != upgrade_asks_) {
    upgrade_asks_ = asks;
    begin_upgrade(false);
  } else if (upgrade_due_) {
    upgrade_due_ = false;
    begin_upgrade(true);
  }
}

void Supervisor::begin_upgrade(bool default_program) {
  if (step_ != UpgradeStep::none) return;
  state_.result = UpgradeResult::none;
  if (phase_ != Phase::serving) return end_upgrade(UpgradeResult::not_now, 0);
  const Timing::ms granted = default_program ? kDefaultPatience : patience(state_.upgrade_asked_patience_ms);
  state_.upgrade_patience_ms = static_cast<uint32_t>(granted.count());
  state_.exec_errno = 0;
  state_.step = step_ = UpgradeStep::trial;
  state_.trials++;
  timed_out_ = false;
  upgrade_until_ = monotonic_ns() + ns(granted);
  desk_.default_program = default_program;
  desk_.notify.send("STATUS=upgrade: the new program is tried");
  ask(kStartTrial);
}

void Supervisor::on_trial_end(Death death) {
  trial_ = -1;
  upgrade_until_ = 0;
  if (ends_wanted_) return end_upgrade(UpgradeResult::not_now, 0);
  if (state_.exec_errno) return end_upgrade(UpgradeResult::not_executable, state_.exec_errno);
  if (timed_out_) return end_upgrade(UpgradeResult::trial_timed_out, 0);
  if (!death.exited) return end_upgrade(UpgradeResult::trial_killed, death.what);
  if (death.what != 0 || state_.trial_passed != state_.trials)
    return end_upgrade(UpgradeResult::trial_failed, death.what);
  if (worker_ < 0 || !announced_) return end_upgrade(UpgradeResult::not_now, 0);
  quiesce();
}

void Supervisor::quiesce() {
  state_.step = step_ = UpgradeStep::quiescing;
  timed_out_ = false;
  enter(Phase::upgrading);
  upgrade_until_ = monotonic_ns() + ns(timing_.quiesce);
  desk_.notify.send("STATUS=upgrade: the old worker puts everything down");
  send(worker_, SIGUSR2);
}

void Supervisor::on_upgrade_timeout() {
  upgrade_until_ = 0;
  timed_out_ = true;
  if (step_ == UpgradeStep::trial)
    send(trial_, SIGKILL);
  else
    send(worker_, SIGKILL);
}

void Supervisor::end_upgrade(UpgradeResult result, int detail) {
  upgrade_until_ = 0;
  if (result != UpgradeResult::done)
    notify("STATUS=upgrade refused, reason %u: the old program goes on", static_cast<unsigned>(result));
  state_.result_detail = detail;
  state_.result = result;
  state_.step = step_ = UpgradeStep::none;
  state_.upgrades_answered++;
  ask(kTidy);
}

}  // namespace

int64_t monotonic_ns() {
  return clock_ns(CLOCK_MONOTONIC);
}

void supervise(Desk& desk) {
  Supervisor(desk).run();
}

}  // namespace penstock::keeper
