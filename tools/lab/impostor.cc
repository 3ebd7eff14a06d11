// SPDX-License-Identifier: Apache-2.0
// lab-impostor: an upgrade to it fails as its file name says: trial- or start-, then exits, is-silent,
// crashes or hangs. One that fails at its start passes the trial as penstockd does, a file of that name
// beside it.
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "keeper/keeper.h"

namespace {

int fail(const std::string& how) {
  if (how == "crashes") raise(SIGSEGV);
  if (how == "hangs")
    for (;;) pause();
  return how == "is-silent" ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace penstock::keeper;
  const rlimit no_core{0, 0};
  setrlimit(RLIMIT_CORE, &no_core);
  const std::filesystem::path path = argv[0];
  const std::string name = path.filename(), how = name.substr(name.find('-') + 1);
  const std::string option = argc > 2 ? argv[1] : "";
  if (option == "--trial" && name.starts_with("start-"))
    return execv((path.parent_path() / "penstockd").c_str(), argv);
  if (option == "--trial") return fail(how);
  if (option != "--kept") return 2;
  // Every descriptor is still open across execve(2), also the one that goes back: nothing here closes any.
  return keep([&](State&) { return fail(how); }, nullptr, {}, {.arguments = argv + 1, .kept = atoi(argv[2])});
}
