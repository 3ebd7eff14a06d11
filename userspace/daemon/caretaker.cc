// SPDX-License-Identifier: Apache-2.0
#include "daemon/caretaker.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace penstock::daemon {

Status Caretaker::start(const std::function<void()>& remove) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC)) return Error{std::string("pipe: ") + strerror(errno)};
  Fd child_end(ends[0]);
  alive_.reset(ends[1]);
  child_ = fork();
  if (child_ < 0) return Error{std::string("fork: ") + strerror(errno)};
  if (child_ > 0) return Nothing{};
  prctl(PR_SET_NAME, "caretaker");
  const int kWait = 3;
  dup2(child_end.release(), kWait);
  close_range(kWait + 1, ~0u, 0);
  char none;
  while (read(kWait, &none, 1) < 0 && errno == EINTR) {
  }
  remove();
  _exit(0);
}

Caretaker::~Caretaker() {
  alive_.reset();
  if (child_ > 0) waitpid(child_, nullptr, 0);
}

}  // namespace penstock::daemon
