// SPDX-License-Identifier: Apache-2.0
// main() of every test program that needs root. Each runs in a mount namespace of its own: a bpffs and, where
// the host has none, a cgroup v2 are mounted there, so nothing has to be undone and no pin meets a real one.
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>

namespace {

constexpr int kSkipped = 77;

// Empty, or why not.
std::string prepare() {
  if (::geteuid() != 0) return "needs root: network namespaces, BPF";
  if (::unshare(CLONE_NEWNS) != 0)
    return std::string("needs a mount namespace of its own: ") + std::strerror(errno);
  if (::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0)
    return "mount --make-rprivate / failed";
  if (::mount("none", "/sys/fs/bpf", "bpf", 0, nullptr) != 0) {
    return std::string("cannot mount a bpffs on /sys/fs/bpf: ") + std::strerror(errno);
  }
  // A verdict remembered by a daemon of this machine is none of ours.
  if (::access("/run/penstock", F_OK) == 0 && ::mount("none", "/run/penstock", "tmpfs", 0, nullptr) != 0)
    return std::string("cannot mount a tmpfs on /run/penstock: ") + std::strerror(errno);
  std::ifstream mounts("/proc/self/mounts");
  std::string device, where, type, rest;
  while (mounts >> device >> where >> type && std::getline(mounts, rest)) {
    if (type == "cgroup2") return "";
  }
  if (::mount("none", "/sys/fs/cgroup", "cgroup2", 0, nullptr) != 0) {
    return std::string("cannot mount a cgroup v2 on /sys/fs/cgroup: ") + std::strerror(errno);
  }
  return "";
}

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (!testing::GTEST_FLAG(list_tests)) {
    if (const std::string why = prepare(); !why.empty()) {
      std::fprintf(stderr, "skipped: %s\n", why.c_str());
      return kSkipped;
    }
  }
  return RUN_ALL_TESTS();
}
