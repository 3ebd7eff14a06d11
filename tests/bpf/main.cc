// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  std::signal(SIGPIPE, SIG_IGN);
  if (geteuid() != 0 && !GTEST_FLAG_GET(list_tests)) {
    std::fprintf(stderr, "needs root: not run\n");
    return 77;
  }
  return RUN_ALL_TESTS();
}
