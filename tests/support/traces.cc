// SPDX-License-Identifier: Apache-2.0
#include "support/traces.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <regex>

namespace penstock::test {
namespace {

std::string own_cgroup() {
  std::ifstream mounts("/proc/self/mounts");
  std::string device, where, type, rest, mount;
  while (mounts >> device >> where >> type && std::getline(mounts, rest))
    if (type == "cgroup2" && mount.empty()) mount = where;
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("0::")) return mount + line.substr(3);
  return mount;
}

}  // namespace

bool has_cgroup_leaf(pid_t pid) {
  return std::filesystem::exists(own_cgroup() + "/penstock-" + std::to_string(pid));
}

void expect_no_trace(Daemon& daemon) {
  EXPECT_FALSE(std::filesystem::exists(daemon.admin_socket()));
  EXPECT_FALSE(std::filesystem::exists(daemon.pin()));
  EXPECT_FALSE(has_cgroup_leaf(daemon.process().pid()));
}

void expect_log_adds_up(const std::string& log) {
  std::smatch m;
  ASSERT_TRUE(
      std::regex_search(log, m, std::regex(R"(stopped: (\d+) accepted = (\d+) active \+ (\d+) closed)")))
      << log;
  EXPECT_EQ(std::stoull(m[1]), std::stoull(m[2]) + std::stoull(m[3])) << m[0];
  EXPECT_EQ(m[2], "0");
}

}  // namespace penstock::test
