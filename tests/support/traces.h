// SPDX-License-Identifier: Apache-2.0
// support/traces.h: what a daemon that has ended may not leave behind.
#pragma once
#include <string>

#include "support/daemon.h"

namespace penstock::test {

// The cgroup a daemon with this pid made for itself, below ours.
bool has_cgroup_leaf(pid_t pid);

// No admin socket, no pin, no cgroup. REQUIRES: it has ended.
void expect_no_trace(Daemon& daemon);

// The last line of the log: accepted = active + closed, with nothing active.
void expect_log_adds_up(const std::string& log);

}  // namespace penstock::test
