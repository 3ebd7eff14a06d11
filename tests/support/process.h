// SPDX-License-Identifier: Apache-2.0
// support/process.h: a program under test, its output kept. It starts in the network namespace of the calling
// thread and is killed with its process group when the object, or the thread that made it, goes.
#pragma once
#include <sys/types.h>

#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "support/wait.h"

namespace penstock::test {

struct ProcessOptions {
  std::map<std::string, std::string> environment;  // added to our own
  std::optional<uid_t> uid;                        // also the gid; no capabilities remain
  std::optional<unsigned> nofile;                  // RLIMIT_NOFILE, soft and hard
  int io_uring_refused = 0;                        // the errno that io_uring_setup(2) answers, by seccomp
  int connect_refused = 0;                         // likewise connect(2)
  std::string input;                               // on stdin, at most a pipe's 64 KiB; then end of file
  bool keep_stdin_open = false;                    // instead of end of file
};

class Process {
 public:
  explicit Process(const std::vector<std::string>& argv, const ProcessOptions& options = {});
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  pid_t pid() const { return pid_; }
  std::string output() const;  // stdout and stderr, in the order written
  // True once `needle` stands in the output; false when the program ended or `limit` passed without it.
  bool wait_for(std::string_view needle, milliseconds limit = kPatience) const;
  void signal(int number) const;
  // Whatever it writes stays in the pipe, until that is full.
  void stop_reading() { reading_ = false; }
  void go_on_reading();
  void close_stdin() { stdin_.reset(); }
  // The exit code, or 128 + the signal that killed it. Throws when it has not ended within `limit`.
  int wait_exit(milliseconds limit = kPatience);
  bool running();

 private:
  void collect(int fd);

  pid_t pid_ = -1;
  std::optional<int> exit_code_;
  Fd stdin_, pidfd_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::string output_;  // guarded by mutex_
  bool ended_ = false;  // guarded by mutex_: no more output will come
  std::atomic<bool> reading_ = true;
  std::thread reader_;
};

}  // namespace penstock::test
