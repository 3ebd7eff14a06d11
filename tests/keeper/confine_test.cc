// SPDX-License-Identifier: Apache-2.0
#include "keeper/confine.h"

#include <gtest/gtest.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <functional>

#include "base/fd.h"

namespace penstock::keeper {
namespace {

class Confined : public testing::Test {
 protected:
  // True: the filter let it pass. `call` runs in a process of its own.
  bool passes(const std::function<void()>& call) {
    const pid_t child = fork();
    if (child == 0) {
      const rlimit no_core{0, 0};
      setrlimit(RLIMIT_CORE, &no_core);
      if (!confine({signals_.get(), wake_.get(), notify_.get()})) _exit(2);
      call();
      for (;;) syscall(SYS_exit, 0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return true;
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS) << "status " << status;
    return false;
  }
  bool passes(long number, long a = -1, long b = -1, long c = -1) {
    return passes([=] { syscall(number, a, b, c, 0L, 0L, 0L); });
  }

  Fd signals_{eventfd(0, EFD_NONBLOCK)}, wake_{eventfd(0, EFD_NONBLOCK)},
      notify_{socket(AF_UNIX, SOCK_DGRAM, 0)};
  Fd other_{socket(AF_UNIX, SOCK_DGRAM, 0)};
};

// uretprobe(2) and uprobe(2) of x86-64: the kernel asks no filter (kernel/seccomp.c), and lets nobody in who
// does not come from a trampoline of its own.
bool is_trap_of_uprobes([[maybe_unused]] long number) {
#if defined(__x86_64__)
  return number == 335 || number == 336;
#else
  return false;
#endif
}

TEST_F(Confined, every_other_system_call_is_the_end) {
  constexpr long kNumberMax = 480;  // there are 462 in Linux 6.10
  int refused = 0;
  for (long number = 0; number < kNumberMax; number++) {
    if (std::ranges::find(kAllowedCalls, number) != kAllowedCalls.end() || is_trap_of_uprobes(number))
      continue;
    EXPECT_FALSE(passes(number)) << "system call " << number;
    refused++;
  }
  EXPECT_EQ(kAllowedCalls.size(), 8u);
  EXPECT_GE(refused, kNumberMax - 8 - 2);
}

TEST_F(Confined, what_it_needs_passes) {
  EXPECT_TRUE(passes(SYS_read, signals_.get(), 0, 0));
  EXPECT_TRUE(passes(SYS_read, wake_.get(), 0, 0));
  EXPECT_TRUE(passes(SYS_sendto, notify_.get(), 0, 0));
  EXPECT_TRUE(passes(SYS_futex, 0, FUTEX_WAKE, 1));
  EXPECT_TRUE(passes(SYS_waitid, P_PID, -1, 0));
  EXPECT_TRUE(passes(SYS_kill, -1, 4711));
  EXPECT_TRUE(passes(SYS_clock_gettime, CLOCK_MONOTONIC, 0));
  EXPECT_TRUE(passes([] {
    const timespec at_once{};
    ppoll(nullptr, 0, &at_once, nullptr);
  }));
}

TEST_F(Confined, the_same_calls_on_anything_else_do_not) {
  EXPECT_FALSE(passes(SYS_read, notify_.get(), 0, 0));
  EXPECT_FALSE(passes(SYS_read, 0, 0, 0));
  EXPECT_FALSE(passes(SYS_sendto, other_.get(), 0, 0));
  EXPECT_FALSE(passes(SYS_futex, 0, FUTEX_WAIT, 1));
  EXPECT_FALSE(passes(SYS_futex, 0, FUTEX_REQUEUE, 1));
  EXPECT_FALSE(passes(SYS_waitid, P_ALL, 0, 0));
  notify_.reset();
  EXPECT_FALSE(passes(SYS_sendto, -1, 0, 0));
}

#if defined(__x86_64__)
TEST_F(Confined, other_ways_into_the_kernel_are_closed) {
  EXPECT_FALSE(passes(SYS_ppoll | 0x4000'0000));  // x32
  EXPECT_FALSE(passes([] {
    long number = 3;  // read(2) of i386; its 168 is poll(2), its 202 nothing of ours
    asm volatile("int $0x80" : "+a"(number) : "b"(0), "c"(0), "d"(0) : "memory");
  }));
}
#endif

}  // namespace
}  // namespace penstock::keeper
