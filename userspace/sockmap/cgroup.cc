// SPDX-License-Identifier: Apache-2.0
#include "sockmap/cgroup.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

namespace penstock::sockmap {
namespace {

constexpr int kLeavesTried = 16;

// The mount point of the unified hierarchy: /sys/fs/cgroup, or elsewhere on hybrid hosts.
std::string cgroup2_mount() {
  std::ifstream mounts("/proc/self/mounts");
  std::string device, where, type, rest;
  while (mounts >> device >> where >> type && std::getline(mounts, rest))
    if (type == "cgroup2") return where;
  return "";
}

std::string own_path() {
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("0::")) return line.substr(3);
  return "";
}

bool alone_in(const std::string& directory) {
  std::ifstream file(directory + "/cgroup.procs");
  for (long pid; file >> pid;)
    if (pid != getpid()) return false;
  return true;
}

int move_to(const std::string& directory) {
  int fd = ::open((directory + "/cgroup.procs").c_str(), O_WRONLY | O_CLOEXEC);
  if (fd < 0) return errno;
  int error = ::write(fd, "0", 1) > 0 ? 0 : errno;  // ourselves
  ::close(fd);
  return error;
}

// Leaves of daemons that were killed. rmdir() refuses where a process lives.
void remove_dead_leaves(const std::string& parent) {
  DIR* d = opendir(parent.c_str());
  if (!d) return;
  while (dirent* e = readdir(d))
    if (std::string_view(e->d_name).starts_with("penstock-")) rmdir((parent + "/" + e->d_name).c_str());
  closedir(d);
}

}  // namespace

Result<OwnCgroup> OwnCgroup::enter() {
  std::string mount = cgroup2_mount(), own = own_path();
  if (mount.empty() || own.empty()) return Error{"no cgroup v2 is mounted here (mount -t cgroup2 none DIR)"};
  if (own == "/") own.clear();
  OwnCgroup g;
  std::string here = mount + own;
  if (size_t slash = here.rfind("/penstock-"); slash != std::string::npos && alone_in(here)) {
    g.path_ = here;  // a probe in the same process has made it
    g.came_from_ = here.substr(0, slash);
    g.made_ = true;
  } else {
    remove_dead_leaves(here);
    if (!own.empty() && alone_in(here)) {
      g.path_ = here;
    } else if (auto made = g.make_leaf(here); !made) {
      return made.error();
    }
  }
  g.directory_ = Fd(::open(g.path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!g.directory_.valid())
    return Error{fmt::format("cannot open the cgroup {}: {}", g.path_, strerror(errno))};
  return g;
}

Status OwnCgroup::make_leaf(const std::string& parent) {
  // Another daemon may have our pid, in a pid namespace of its own: its leaf is not ours (EEXIST). And one
  // that starts at the same time may take ours for a dead one's before we are in it (ENOENT).
  int error = 0;
  for (int n = 0; n < kLeavesTried; n++) {
    path_ = fmt::format("{}/penstock-{}{}", parent, getpid(), n ? fmt::format(".{}", n) : "");
    if (mkdir(path_.c_str(), 0755)) {
      error = errno;
      if (error == EEXIST) continue;
      return Error{fmt::format("cannot make the cgroup {}: {}", path_, strerror(error))};
    }
    error = move_to(path_);
    if (!error) {
      came_from_ = parent;
      made_ = true;
      return Nothing{};
    }
    rmdir(path_.c_str());
    if (error != ENOENT) break;
  }
  return Error{fmt::format("cannot enter the cgroup {}: {}", path_, strerror(error))};
}

OwnCgroup OwnCgroup::reopen(int fd, std::string path, std::string came_from, bool made) {
  OwnCgroup g;
  g.directory_ = Fd(fd);
  g.path_ = std::move(path);
  g.came_from_ = std::move(came_from);
  g.made_ = made;
  return g;
}

void OwnCgroup::leave() {
  directory_.reset();
  if (made_ && move_to(came_from_) == 0) {
    remove_dead_leaves(path_);  // of programs on trial
    rmdir(path_.c_str());
  }
  made_ = false;
}

void OwnCgroup::forget() {
  (void)directory_.release();
  made_ = false;
}

}  // namespace penstock::sockmap
