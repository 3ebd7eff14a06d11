// SPDX-License-Identifier: Apache-2.0
// torture/own_daemon.h: a penstockd of the run's own, on free loopback ports, with every kind of entrance.
// Gone when this is.
#pragma once
#include <sys/types.h>

#include <string>

#include "base/fd.h"
#include "options.h"

namespace penstock::torture {

class OwnDaemon {
 public:
  // Starts options.penstockd, sets to, serve, preamble and admin. Throws std::runtime_error with what the
  // daemon said if it does not start.
  explicit OwnDaemon(Options& options);  // REQUIRES: no other thread runs
  ~OwnDaemon();
  Fd take_log() { return std::move(log_); }  // what it writes from now on
  pid_t pid() const { return pid_; }
  int stop();  // its exit code; -1 if it had to be killed, or died of a signal

 private:
  void start(const std::string& program, const std::string& config);
  void await_ready();

  struct Directory {
    std::string path;
    ~Directory();
  };
  Directory directory_;
  pid_t pid_ = -1;
  Fd log_;
};

}  // namespace penstock::torture
