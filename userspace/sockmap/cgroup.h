// SPDX-License-Identifier: Apache-2.0
// sockmap/cgroup.h: a cgroup v2 that holds this process alone, for socket_ops: attached to any other it would
// see strangers' sockets. The unit's own cgroup where we are alone in it, else a leaf made for us.
#pragma once
#include <sys/types.h>

#include <string>

#include "base/fd.h"
#include "base/result.h"

namespace penstock::sockmap {

class OwnCgroup {
 public:
  static Result<OwnCgroup> enter();
  OwnCgroup() = default;
  OwnCgroup(OwnCgroup&&) = default;
  OwnCgroup& operator=(OwnCgroup&&) = default;
  // Back to where we came from, and removes the leaf; `with`: another process that is to leave it too.
  void leave(pid_t with = 0);
  int fd() const { return directory_.get(); }
  const std::string& path() const { return path_; }

 private:
  Status make_leaf(const std::string& parent);
  Fd directory_;
  std::string path_, came_from_;
  bool made_ = false;
};

}  // namespace penstock::sockmap
