// SPDX-License-Identifier: Apache-2.0
// daemon/daemon.h: penstockd from its arguments to its exit code.
#pragma once
#include <optional>
#include <string>

namespace penstock::daemon {

struct Arguments {
  std::string config = "/etc/penstock/penstock.toml";
  std::optional<std::string> env_file;
  int trial = -1, kept = -1;  // of a keeper's State: this program is tried, or goes on (userspace/keeper)
  char* const* after_name = nullptr;  // main's argv + 1, for the program that comes after us
};

// Serves until SIGTERM or SIGINT. 0: ended as asked; 1: failed at run time; 2: bad configuration.
int serve(const Arguments& arguments);

}  // namespace penstock::daemon
