// SPDX-License-Identifier: Apache-2.0
#include "crash/signals.h"

#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <ctime>
#include <initializer_list>

#include "base/assert.h"
#include "crash/backtrace.h"
#include "crash/directory.h"

namespace penstock::crash {
namespace {

constexpr std::initializer_list<int> kSignals = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGSYS, SIGTRAP};
constexpr unsigned kPatienceS = 2;
constexpr int kStderrPatienceMs = 100;
constexpr size_t kStackBytes = 64 << 10, kGuardBytes = 64 << 10;  // a page, however large it is

Options g_options;
Text g_out;
std::atomic<pid_t> g_reporter = 0;  // the thread that crashed first
std::atomic<int> g_signal = 0;      // of it
std::atomic<int> g_file = -1;
int64_t g_now_s = 0;

class SignalStack {
 public:
  Status use() {
    if (at_) return Nothing{};
    void* at = mmap(nullptr, kGuardBytes + kStackBytes, PROT_NONE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (at == MAP_FAILED) return Error{std::string("stack for signals: ") + strerror(errno)};
    at_ = static_cast<char*>(at);
    const stack_t stack{at_ + kGuardBytes, 0, kStackBytes};
    if (mprotect(stack.ss_sp, kStackBytes, PROT_READ | PROT_WRITE) || sigaltstack(&stack, nullptr))
      return Error{std::string("stack for signals: ") + strerror(errno)};
    return Nothing{};
  }
  ~SignalStack() {
    if (!at_) return;
    const stack_t none{nullptr, SS_DISABLE, 0};
    sigaltstack(&none, nullptr);
    munmap(at_, kGuardBytes + kStackBytes);
  }

 private:
  char* at_ = nullptr;
};

thread_local SignalStack t_stack;
thread_local const InHand* t_own = nullptr;

void handle(int signal_number, void (*handler)(int, siginfo_t*, void*), int flags) {
  struct sigaction action {};
  action.sa_sigaction = handler;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | flags;
  sigaction(signal_number, &action, nullptr);
}

void unblock(std::initializer_list<int> signals) {
  sigset_t set;
  sigemptyset(&set);
  for (const int s : signals) sigaddset(&set, s);
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

[[noreturn]] void die(int signal_number) {
  signal(signal_number, SIG_DFL);
  unblock({signal_number});
  raise(signal_number);
  _exit(128 + signal_number);  // the first process of a PID namespace does not die of its own signals
}

// A table of descriptors that outlives us must not keep it.
void close_file() {
  if (const int file = g_file.exchange(-1); file >= 0) close(file);
}

// Not through g_out, which the thread that stands still may be about to change.
void on_patience_over(int, siginfo_t*, void*) {
  constexpr std::string_view kSaid = "\nnot complete: it took longer than 2 s\n";
  [[maybe_unused]] const ssize_t n = ::write(g_file, kSaid.data(), kSaid.size());
  close_file();
  die(g_signal);
}

void say_on_stderr(const siginfo_t& info, std::string_view before, std::string_view what) {
  pollfd ready{STDERR_FILENO, POLLOUT, 0};
  if (poll(&ready, 1, kStderrPatienceMs) != 1) return;
  Text out(STDERR_FILENO, 1024);
  out.time(g_now_s) << " error process " << getpid() << " crashed: ";
  put_cause(out, info);
  out << before << what << "\n";
  out.flush();
}

void report(const siginfo_t& info, const ucontext_t& context) {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  g_now_s = now.tv_sec;
  g_file = open_report(g_options, getpid(), g_now_s);
  if (g_file < 0) return say_on_stderr(info, "; no report: ", strerrordesc_np(errno));
  g_options.shared->reported_s = g_now_s;
  g_options.shared->reported = getpid();
  say_on_stderr(info, "; report ", file_name(g_now_s, getpid()).text);
  g_out = Text(g_file, kReportBytesMax);
  const Dying dying{info, context, t_own};
  put_report(g_out, g_options, g_now_s, {getpid(), {}}, &dying);
  if (g_out.error()) say_on_stderr(info, "; not all of the report: ", strerrordesc_np(g_out.error()));
  close_file();
}

void on_crash(int signal_number, siginfo_t* info, void* context) {
  pid_t first = 0;
  if (!g_reporter.compare_exchange_strong(first, gettid())) {
    if (first != gettid())
      for (;;) pause();  // the first one ends us all
    g_out << "\nnot complete: the report crashed in turn: ";
    put_cause(g_out, *info);
    g_out << "\n";
    g_out.flush();
    close_file();
    die(g_signal);
  }
  g_signal = signal_number;
  const bool sent = info->si_code <= 0 && info->si_pid != getpid();  // abort(3) sends it to itself
  if (t_own && !sent) g_options.shared->guilty = static_cast<uint32_t>(1 + (t_own - g_options.shared->hands));
  handle(SIGALRM, on_patience_over, 0);
  unblock({SIGALRM});
  alarm(kPatienceS);
  report(*info, *static_cast<ucontext_t*>(context));
  die(signal_number);
}

}  // namespace

void install(const Options& options) {
  PENSTOCK_ASSERT(options.shared);
  g_options = options;
  prepare_backtrace();
  if (!kHandlesSignals) return;
  for (const int s : kSignals) handle(s, on_crash, SA_NODEFER);
}

Status prepare_thread(const InHand* own) {
  t_own = own;
  if (!kHandlesSignals) return Nothing{};
  unblock(kSignals);  // blocked, they would kill without the handler
  return t_stack.use();
}

}  // namespace penstock::crash
