// SPDX-License-Identifier: Apache-2.0
// daemon/caretaker.h: with [daemon].user, what was made as root (pins, cgroup, admin socket) only root can
// remove. So a child stays root, holds no descriptor, and waits for our end, however that comes.
#pragma once
#include <sys/types.h>

#include <functional>

#include "base/fd.h"
#include "base/result.h"

namespace penstock::daemon {

class Caretaker {
 public:
  Caretaker() = default;
  // `remove` runs in the child, on its copy of our memory as it is now; no thread of ours is there.
  Status start(const std::function<void()>& remove);
  ~Caretaker();  // returns when it has removed everything

 private:
  Fd alive_;  // the child sees it close
  pid_t child_ = -1;
};

}  // namespace penstock::daemon
