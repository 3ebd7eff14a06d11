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
  // One that another program entered, and whose descriptor is here.
  static OwnCgroup reopen(int fd, std::string path, std::string came_from, bool made);
  void leave();   // back to where we came from, and removes the leaf
  void forget();  // nothing of that, and its descriptor stays open
  int fd() const { return directory_.get(); }
  const std::string& path() const { return path_; }
  const std::string& came_from() const { return came_from_; }
  bool made() const { return made_; }

 private:
  Status make_leaf(const std::string& parent);
  Fd directory_;
  std::string path_, came_from_;
  bool made_ = false;
};

}  // namespace penstock::sockmap
