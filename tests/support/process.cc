// SPDX-License-Identifier: Apache-2.0
#include "support/process.h"

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <system_error>

#include "support/seccomp.h"

namespace penstock::test {
namespace {

[[noreturn]] void fail(const char* what) {
  throw std::system_error(errno, std::generic_category(), what);
}

// Between fork and exec: only what a forked child of a threaded program may do, plus setenv (no thread of a
// test touches the environment).
[[noreturn]] void become(const std::vector<char*>& argv, const ProcessOptions& options, int in, int out) {
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::dup2(in, STDIN_FILENO);
  ::dup2(out, STDOUT_FILENO);
  ::dup2(out, STDERR_FILENO);
  for (const auto& [name, value] : options.environment) ::setenv(name.c_str(), value.c_str(), 1);
  if (options.nofile) {
    const rlimit limit{*options.nofile, *options.nofile};
    if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) ::_exit(126);
  }
  if (options.io_uring_refused != 0 && !refuse_call(SYS_io_uring_setup, options.io_uring_refused))
    ::_exit(126);
  if (options.connect_refused != 0 && !refuse_call(SYS_connect, options.connect_refused)) ::_exit(126);
  int program = -1;  // opened before: another user may not enter the directory it lies in
  if (options.uid) {
    program = ::open(argv[0], O_PATH | O_CLOEXEC);
    const uid_t id = *options.uid;
    if (::setgroups(0, nullptr) != 0 || ::setresgid(id, id, id) != 0 || ::setresuid(id, id, id) != 0)
      ::_exit(126);
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  }
  if (program >= 0) ::execveat(program, "", argv.data(), environ, AT_EMPTY_PATH);
  ::execvp(argv[0], argv.data());
  ::dprintf(STDERR_FILENO, "%s: %s\n", argv[0], ::strerrordesc_np(errno));
  ::_exit(127);
}

}  // namespace

Process::Process(const std::vector<std::string>& argv, const ProcessOptions& options) {
  int in[2], out[2];
  if (::pipe2(in, O_CLOEXEC) != 0 || ::pipe2(out, O_CLOEXEC) != 0) fail("pipe2");
  Fd in_read(in[0]), out_write(out[1]);
  stdin_ = Fd(in[1]);
  Fd out_read(out[0]);
  std::vector<char*> arguments;
  for (const auto& word : argv) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);

  pid_ = ::fork();
  if (pid_ < 0) fail("fork");
  if (pid_ == 0) become(arguments, options, in[0], out[1]);
  ::setpgid(pid_, pid_);  // also here: whoever comes first, signal() may be called at once
  pidfd_ = Fd(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));

  if (!options.input.empty() && ::write(in[1], options.input.data(), options.input.size()) < 0) fail("write");
  if (!options.keep_stdin_open) stdin_.reset();
  reader_ = std::thread([this, fd = std::move(out_read)] { collect(fd.get()); });
}

void Process::go_on_reading() {
  reading_ = true;
  reading_.notify_all();
}

Process::~Process() {
  go_on_reading();
  ::kill(-pid_, SIGKILL);
  if (!exit_code_) ::waitpid(pid_, nullptr, 0);
  reader_.join();
}

// Until the pipe ends, or the program has and nothing more comes: descendants may keep the pipe open for
// ever.
void Process::collect(int fd) {
  constexpr int kDescendantsQuietMs = 1000;
  char bytes[4096];
  pollfd watched[] = {{fd, POLLIN, 0}, {pidfd_.get(), POLLIN, 0}};
  for (;;) {
    reading_.wait(false);
    const bool alive = watched[1].fd >= 0;
    const int ready = ::poll(watched, 2, alive ? -1 : kDescendantsQuietMs);
    if (ready < 0 && errno == EINTR) continue;
    if (watched[1].revents != 0) watched[1].fd = -1;
    ssize_t n = 0;
    if (watched[0].revents != 0)
      n = ::read(fd, bytes, sizeof bytes);
    else if (ready > 0)
      continue;
    const std::lock_guard lock(mutex_);
    if (n > 0) output_.append(bytes, static_cast<size_t>(n));
    if (n <= 0) ended_ = true;
    changed_.notify_all();
    if (n <= 0) return;
  }
}

std::string Process::output() const {
  const std::lock_guard lock(mutex_);
  return output_;
}

bool Process::wait_for(std::string_view needle, milliseconds limit) const {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, limit, [&] { return ended_ || output_.find(needle) != std::string::npos; });
  return output_.find(needle) != std::string::npos;
}

void Process::signal(int number) const {
  ::kill(pid_, number);
}

int Process::wait_exit(milliseconds limit) {
  if (exit_code_) return *exit_code_;
  pollfd ended{pidfd_.get(), POLLIN, 0};
  if (::poll(&ended, 1, static_cast<int>(limit.count())) <= 0) {
    throw std::runtime_error("still running after " + std::to_string(limit.count()) + " ms; it said:\n" +
                             output());
  }
  int status = 0;
  if (::waitpid(pid_, &status, 0) != pid_) fail("waitpid");
  exit_code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  std::unique_lock lock(mutex_);  // what it wrote last may still be in the pipe
  changed_.wait(lock, [&] { return ended_; });
  return *exit_code_;
}

bool Process::running() {
  if (exit_code_) return false;
  pollfd ended{pidfd_.get(), POLLIN, 0};
  return ::poll(&ended, 1, 0) == 0;
}

}  // namespace penstock::test
