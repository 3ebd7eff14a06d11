// SPDX-License-Identifier: Apache-2.0
// The starter: the keeper's first thread. It sleeps until the supervisor asks for something, and is what a
// new worker is a copy of, so nothing here may be confined.
#include "keeper/keeper.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

#include "base/fd.h"
#include "base/log.h"
#include "keeper/desk.h"

namespace penstock::keeper {
namespace {

// The kernel tells of the supervisor's end (set_tid_address(2)): ThreadSanitizer does not see it.
#if defined(__SANITIZE_THREAD__)
void end_happens_before(void* what) {
  __tsan_release(what);
}
void end_has_happened(void* what) {
  __tsan_acquire(what);
}
#else
void end_happens_before(void*) {}
void end_has_happened(void*) {}
#endif

constexpr int kPassedOn[] = {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2};
constexpr int kExecFailed = 126;

sigset_t passed_on() {
  sigset_t set;
  sigemptyset(&set);
  for (int signal : kPassedOn) sigaddset(&set, signal);
  return set;
}

long futex(std::atomic<uint32_t>& word, int operation, uint32_t value, const timespec* timeout = nullptr) {
  return syscall(SYS_futex, &word, operation, value, timeout);
}

// fork(2) as clone(2) does it with `flags`; no pthread_atfork(3) handler runs. The child's pidfd goes to
// `end`.
pid_t clone_process(unsigned long flags, int& end) {
  // Where the C library keeps the thread's number: without it the child's pthread_kill() would reach nobody.
  int* thread_number = nullptr;
  if (prctl(PR_GET_TID_ADDRESS, &thread_number) == 0 && thread_number)
    flags |= CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID;
  flags |= CLONE_PIDFD | SIGCHLD;
#if defined(__x86_64__)
  return static_cast<pid_t>(syscall(SYS_clone, flags, nullptr, &end, thread_number, nullptr));
#elif defined(__aarch64__)
  return static_cast<pid_t>(syscall(SYS_clone, flags, nullptr, &end, nullptr, thread_number));
#endif
}

void set_close_on_exec(int fd, bool on) {
  fcntl(fd, F_SETFD, on ? FD_CLOEXEC : 0);
}

void close_and_forget(std::atomic<int32_t>& fd) {
  if (fd >= 0) close(fd.exchange(-1));
}

// Which file a descriptor was opened on. A worker shares the table and may be another user: it could put a
// file of its own in the place of a program that we execute.
struct FileIdentity {
  dev_t device = 0;
  ino_t number = 0;
  bool operator==(const FileIdentity&) const = default;
};

FileIdentity identity(int fd) {
  struct stat is {};
  return fstat(fd, &is) ? FileIdentity{} : FileIdentity{is.st_dev, is.st_ino};
}

class Keeper {
 public:
  Keeper(const Worker& worker, const CleanUp& clean_up, const Timing& timing, const Program& program)
      : worker_(worker), clean_up_(clean_up), program_(program) {
    desk_.timing = timing;
  }
  int run();

 private:
  Status open();
  Status open_state();
  void open_oom_score();
  void set_oom_score(const char* value);
  int execute(int program, const char* path, const char* option);

  bool supervise_once();
  static void* supervisor_thread(void* desk);
  void serve_requests();
  void start_worker();
  [[noreturn]] void be_worker(uint32_t start);
  void start_trial();
  Fd open_program(const char* path);
  void tidy();
  void upgrade();
  void go_back();
  void answer_upgrade(UpgradeResult result, int detail);
  void end_orphan();
  int finish();

  std::atomic<int32_t>& own(Descriptor which) { return desk_.state->descriptors[which]; }

  const Worker& worker_;
  const CleanUp& clean_up_;
  const Program& program_;
  Desk desk_;
  pid_t pid_ = getpid(), worker_pid_ = -1;
  FileIdentity old_program_, new_program_;
  int oom_score_ = -1;
  bool orphaned_ = false;  // by the supervisor's thread
  char oom_worker_[16] = "", oom_keeper_[16] = "";
  std::vector<char*> argv_;  // of a program that we execute: path, option, descriptor, arguments
  char descriptor_text_[16] = "";
};

int Keeper::run() {
  fflush(nullptr);
  if (Status opened = open(); !opened) {
    log::error("{}", opened.error().message);
    if (program_.kept >= 0 && desk_.state && desk_.state->step == UpgradeStep::trying) {
      desk_.state->result_detail = errno;
      desk_.state->result = UpgradeResult::exec_failed;
      go_back();
    }
    return 1;
  }
  for (;;) {
    if (!supervise_once()) {
      end_orphan();
      break;
    }
    if (desk_.outcome == Outcome::end) break;
    // Of this process, not of a thread: it stays pending across execve(2) until the next supervisor reads it.
    if (std::exchange(desk_.reload_due, false)) kill(pid_, SIGHUP);
    desk_.outcome == Outcome::upgrade ? upgrade() : go_back();
  }
  return finish();
}

Status Keeper::open() {
  const sigset_t signals = passed_on();
  sigset_t blocked = signals;
  sigaddset(&blocked, SIGCHLD);
  pthread_sigmask(SIG_BLOCK, &blocked, nullptr);
  signal(SIGCHLD, SIG_DFL);
  prctl(PR_SET_NAME, "penstock-keeper");
  for (char* const* a = program_.arguments; a && *a; a++) {
    if (!strcmp(*a, "--kept") && a[1])
      a++;
    else
      argv_.push_back(*a);
  }
  argv_.insert(argv_.begin(), 3, nullptr);
  argv_.push_back(nullptr);
  if (Status state = open_state(); !state) return state;

  desk_.notify.open();
  desk_.doors = {signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK), eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
                 desk_.notify.fd()};
  own(kSignals) = desk_.doors.signals;
  own(kWake) = desk_.doors.wake;
  own(kNotify) = desk_.doors.notify;
  own(kKeeperEnd) = static_cast<int>(syscall(SYS_pidfd_open, pid_, 0));
  if (desk_.doors.signals < 0 || desk_.doors.wake < 0 || own(kKeeperEnd) < 0)
    return Error{std::string("keeper: ") + strerror(errno)};
  open_oom_score();
  return Nothing{};
}

Status Keeper::open_state() {
  if (readlink("/proc/self/exe", desk_.own_program, sizeof desk_.own_program - 1) < 0)
    return Error{std::string("keeper: /proc/self/exe: ") + strerror(errno)};
  // Of a program whose file was replaced the path is still where the next one is found.
  if (char* deleted = strstr(desk_.own_program, " (deleted)")) *deleted = 0;
  const bool kept = program_.kept >= 0;
  Fd fd(kept ? program_.kept : memfd_create("penstock-keeper", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!kept && (fd.get() < 0 || ftruncate(fd.get(), kStateBytes) ||
                fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)))
    return Error{std::string("keeper: memfd: ") + strerror(errno)};
  Result<State*> state = map_page(fd.get());
  if (!state) return state.error();
  desk_.state = *state;
  snprintf(descriptor_text_, sizeof descriptor_text_, "%d", fd.get());
  if (!kept) {
    begin(*desk_.state, fd.get(), program_.layout);
    desk_.state->memory = program_.memory;
    memcpy(desk_.state->program, desk_.own_program, sizeof desk_.own_program);
    fd.release();
    return Nothing{};
  }
  if (!is_state(*desk_.state)) return Error{"--kept: not the keeper's state"};
  set_close_on_exec(fd.release(), true);
  if (!knows(*desk_.state, program_.layout)) {
    desk_.state->result_detail = static_cast<int32_t>(program_.layout);
    desk_.state->result = UpgradeResult::unknown_layout;
    old_program_ = identity(own(kOldProgram));
    go_back();
    return Error{"--kept: the state has another layout, and the old program cannot be executed"};
  }
  desk_.state->layout = program_.layout;
  const bool back = desk_.state->step == UpgradeStep::back;
  for (int other = 0; other < kDescriptors; other++)  // execve(2) has closed them
    if (other != kStateFd && (other != kOldProgram || back)) desk_.state->descriptors[other] = -1;
  if (back) {
    desk_.state->step = UpgradeStep::none;
    desk_.state->upgrades_answered++;
  } else {
    set_close_on_exec(own(kOldProgram), true);
    old_program_ = identity(own(kOldProgram));  // no worker lives
  }
  return Nothing{};
}

// The OOM killer is to take the worker. One descriptor for ever: none may come and go while a worker audits
// the table.
void Keeper::open_oom_score() {
  constexpr int kLower = 500;
  Fd fd(::open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC));
  char text[16] = "";
  if (!fd.valid() || read(fd.get(), text, sizeof text - 1) <= 0) return;
  std::atomic<int32_t>& workers = desk_.state->worker_oom_score_adj;
  if (program_.kept < 0) workers = atoi(text);
  snprintf(oom_keeper_, sizeof oom_keeper_, "%d", std::max(workers - kLower, -1000));
  if (pwrite(fd.get(), oom_keeper_, strlen(oom_keeper_), 0) < 0) {  // without CAP_SYS_RESOURCE
    snprintf(oom_keeper_, sizeof oom_keeper_, "%d", workers.load());
    workers = std::min(workers + kLower, 1000);
  }
  snprintf(oom_worker_, sizeof oom_worker_, "%d", workers.load());
  own(kOomScore) = oom_score_ = fd.release();
}

void Keeper::set_oom_score(const char* value) {
  if (oom_score_ < 0) return;
  [[maybe_unused]] ssize_t n = pwrite(oom_score_, value, strlen(value), 0);
}

// False: the thread died instead of saying how it ends.
bool Keeper::supervise_once() {
  desk_.requests = kIdle;
  desk_.outcome = Outcome::none;
  pthread_t thread;
  if (pthread_create(&thread, nullptr, supervisor_thread, &desk_)) {
    desk_.unconfined = "no thread for its supervisor";
    return false;
  }
  pthread_detach(thread);
  serve_requests();
  return desk_.outcome != Outcome::none;
}

void* Keeper::supervisor_thread(void* given) {
  Desk& desk = *static_cast<Desk*>(given);
  syscall(SYS_set_tid_address, &desk.requests);
  Status confined = confine(desk.doors);
  if (confined)
    supervise(desk);
  else
    desk.unconfined = confined.error().message;
  end_happens_before(&desk);
  // Not by return: what the C library does at a thread's end is not allowed here.
  for (;;) syscall(SYS_exit, 0);
}

void Keeper::serve_requests() {
  for (;;) {
    const uint32_t requests = desk_.requests;
    if (requests == 0) return end_has_happened(&desk_);
    if (requests == kIdle) {
      futex(desk_.requests, FUTEX_WAIT, kIdle);
      continue;
    }
    if (requests & kTidy) tidy();
    if (requests & kStartTrial) start_trial();
    if (requests & kStartWorker) start_worker();  // the last: from then on the table stands still
    desk_.requests.fetch_and(~requests | kIdle);  // never sets a bit: 0 stays 0
    const uint64_t one = 1;
    [[maybe_unused]] ssize_t n = write(desk_.doors.wake, &one, sizeof one);
  }
}

void Keeper::start_worker() {
  State& state = *desk_.state;
  close_and_forget(own(kWorkerEnd));
  state.readiness = Readiness::none;
  const auto start = static_cast<uint32_t>(++state.starts);
  state.started_ns = monotonic_ns();
  int end = -1;
  set_oom_score(oom_worker_);
  const pid_t pid = clone_process(CLONE_FILES, end);
  if (pid == 0) be_worker(start);
  set_oom_score(oom_keeper_);
  desk_.start_errno = pid < 0 ? errno : 0;
  desk_.worker_pid = pid;
  desk_.worker = pid < 0 ? -1 : end;
  worker_pid_ = pid;
  own(kWorkerEnd) = desk_.worker;
  state.worker_pid = pid;
  state.released = start;
  futex(state.released, FUTEX_WAKE, 1);
}

void Keeper::be_worker(uint32_t start) {
  State& state = *desk_.state;
  // Until the keeper has written down which descriptors are its own.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != pid_) _exit(1);
  while (state.released != start) futex(state.released, FUTEX_WAIT, start - 1);
  prctl(PR_SET_PDEATHSIG, 0);
  prctl(PR_SET_NAME, "penstock-worker");
  for (int signal : kPassedOn) ::signal(signal, SIG_DFL);
  const sigset_t signals = passed_on();
  pthread_sigmask(SIG_SETMASK, &signals, nullptr);
  for (const char* systemds : {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}) unsetenv(systemds);
  exit(worker_(state));
}

// Invalid: desk_ says why. What a worker may name here is executed with our privileges.
Fd Keeper::open_program(const char* path) {
  Fd fd(::open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat is {};
  desk_.refusal_detail = 0;
  if (!fd.valid() || fstat(fd.get(), &is)) {
    desk_.refusal = UpgradeResult::missing;
    desk_.refusal_detail = errno;
  } else if (!S_ISREG(is.st_mode) || !(is.st_mode & 0111)) {
    desk_.refusal = UpgradeResult::not_executable;
    desk_.refusal_detail = EACCES;
  } else if ((is.st_uid != 0 && is.st_uid != geteuid()) || is.st_mode & 022) {
    desk_.refusal = UpgradeResult::not_trusted;
  } else {
    return fd;
  }
  return Fd();
}

void Keeper::start_trial() {
  State& state = *desk_.state;
  desk_.trial = -1;
  static_assert(sizeof state.program == sizeof state.upgrade_program);
  static char path[sizeof state.program];
  memcpy(path, desk_.default_program || !*state.upgrade_program ? state.program : state.upgrade_program,
         sizeof path - 1);
  Fd program = open_program(path);
  if (!program.valid()) return;
  argv_[0] = path;  // also for the exec that may follow: what was tried is what will run
  new_program_ = identity(program.get());
  own(kNewProgram) = program.release();
  int end = -1;
  set_oom_score(oom_worker_);
  desk_.trial_pid = clone_process(0, end);
  if (desk_.trial_pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != pid_) _exit(kExecFailed);
    close_range(3, UINT_MAX, CLOSE_RANGE_CLOEXEC);
    if (program_.inherit) program_.inherit(state, Exec::trial);
    sigset_t blocked = passed_on();
    sigaddset(&blocked, SIGCHLD);
    pthread_sigmask(SIG_UNBLOCK, &blocked, nullptr);
    state.exec_errno = execute(own(kNewProgram), path, "--trial");
    _exit(kExecFailed);
  }
  set_oom_score(oom_keeper_);
  if (desk_.trial_pid < 0) {
    desk_.refusal = UpgradeResult::exec_failed;
    desk_.refusal_detail = errno;
    close_and_forget(own(kNewProgram));
  } else {
    own(kTrialEnd) = desk_.trial = end;
  }
}

// Returns only when it fails, with errno.
int Keeper::execute(int program, const char* path, const char* option) {
  argv_[0] = const_cast<char*>(path);
  argv_[1] = const_cast<char*>(option);
  argv_[2] = descriptor_text_;
  set_close_on_exec(own(kStateFd), false);
  execveat(program, "", argv_.data(), environ, AT_EMPTY_PATH);
  const int failed = errno;
  set_close_on_exec(own(kStateFd), true);
  return failed;
}

void Keeper::tidy() {
  close_and_forget(own(kTrialEnd));
  close_and_forget(own(kNewProgram));
  close_and_forget(own(kOldProgram));
}

// No worker lives, so what the descriptors mean stands still.
void Keeper::upgrade() {
  State& state = *desk_.state;
  unshare(CLONE_FILES);  // a process that a worker has left cannot change the table from here on
  const int program = own(kNewProgram);
  if (identity(program) != new_program_) return answer_upgrade(UpgradeResult::not_trusted, 0);
  own(kOldProgram) = ::open("/proc/self/exe", O_RDONLY);
  int failed = errno;
  if (own(kOldProgram) >= 0) {
    if (program_.inherit) program_.inherit(state, Exec::upgrade);
    state.step = UpgradeStep::trying;
    failed = execute(program, argv_[0], "--kept");
  }
  answer_upgrade(UpgradeResult::exec_failed, failed);
}

// The result stands already, unless this fails too.
void Keeper::go_back() {
  State& state = *desk_.state;
  unshare(CLONE_FILES);
  const int program = own(kOldProgram);
  if (identity(program) != old_program_) return answer_upgrade(UpgradeResult::back_failed, EPERM);
  state.step = UpgradeStep::back;
  set_close_on_exec(program, true);
  if (program_.inherit) program_.inherit(state, Exec::upgrade);
  answer_upgrade(UpgradeResult::back_failed, execute(program, state.program, "--kept"));
}

void Keeper::answer_upgrade(UpgradeResult result, int detail) {
  State& state = *desk_.state;
  state.result_detail = detail;
  state.result = result;
  state.step = UpgradeStep::none;
  state.upgrades_answered++;
  tidy();
}

// The supervisor's thread is dead: a call that the filter refuses, or a descriptor that a worker closed. The
// worker ends as by SIGTERM; nobody starts another.
void Keeper::end_orphan() {
  State& state = *desk_.state;
  orphaned_ = true;
  desk_.exit_code = 1;
  state.phase = Phase::stopping;
  state.ends_wanted = std::max(state.ends_wanted.load(), 1u);
  sigset_t signals;
  sigemptyset(&signals);
  for (int signal : {SIGTERM, SIGINT, SIGCHLD}) sigaddset(&signals, signal);
  const int64_t grace_ns = std::chrono::nanoseconds(desk_.timing.end_grace).count();
  const timespec grace{grace_ns / 1'000'000'000, grace_ns % 1'000'000'000};
  int next = SIGTERM;
  for (siginfo_t died{}; worker_pid_ > 0;) {
    if (waitid(P_PID, static_cast<id_t>(worker_pid_), &died, WEXITED | WNOHANG) || died.si_pid) return;
    if (next) kill(worker_pid_, next);
    const int signal = sigtimedwait(&signals, nullptr, state.ends_wanted == 2 ? &grace : nullptr);
    if (signal == SIGTERM || signal == SIGINT) state.ends_wanted = 2;
    next = signal == SIGCHLD ? 0 : signal < 0 ? SIGKILL : signal;
  }
}

int Keeper::finish() {
  State& state = *desk_.state;
  if (desk_.trial_pid > 0) {
    kill(desk_.trial_pid, SIGKILL);
    waitid(P_PID, static_cast<id_t>(desk_.trial_pid), nullptr, WEXITED);
  }
  if (clean_up_) clean_up_(state);
  for (auto& fd : state.descriptors)
    if (&fd != &own(kStateFd)) close_and_forget(fd);
  close_and_forget(own(kStateFd));
  munmap(desk_.state, kStateBytes);
  // Only now: where nobody reads them, each of these lines waits for a second.
  if (orphaned_)
    log::error("the keeper {}; the daemon has ended",
               desk_.unconfined.empty() ? "lost its supervisor" : "is not confined: " + desk_.unconfined);
  if (desk_.start_errno) log::error("cannot start a worker: {}", strerror(desk_.start_errno));
  if (desk_.killed_at_start)
    log::error("the worker was killed by signal {} ({}) before it was ready", desk_.killed_at_start,
               strsignal(desk_.killed_at_start));
  return desk_.exit_code;
}

}  // namespace

int keep(const Worker& worker, const CleanUp& clean_up, const Timing& timing, const Program& program) {
  return Keeper(worker, clean_up, timing, program).run();
}

}  // namespace penstock::keeper
