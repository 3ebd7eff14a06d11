// SPDX-License-Identifier: Apache-2.0
// What the kernel allows is found by trying, with the daemon's own code and libraries: so the daemon does it.
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <vector>

#include "commands.h"

namespace penstock::command {

int probe(bool json) {
  std::string name = "penstockd", option = "--probe", json_option = "--json";
  std::vector<char*> argv = {name.data(), option.data()};
  if (json) argv.push_back(json_option.data());
  argv.push_back(nullptr);
  std::error_code error;
  auto self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!error) ::execv((self.parent_path() / name).c_str(), argv.data());
  if (error || errno == ENOENT) ::execvp(name.c_str(), argv.data());
  if (errno == ENOENT)
    return fail("there is no penstockd beside this command or in PATH: install it, or give its path in PATH");
  return fail(std::string("cannot run penstockd: ") + std::strerror(errno));
}

}  // namespace penstock::command
