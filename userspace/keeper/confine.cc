// SPDX-License-Identifier: Apache-2.0
#include "keeper/confine.h"

#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <iterator>

namespace penstock::keeper {
namespace {

#if defined(__x86_64__)
constexpr uint32_t kArchitecture = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
constexpr uint32_t kArchitecture = AUDIT_ARCH_AARCH64;
#endif

constexpr uint32_t low_half(size_t argument) {  // both architectures are little-endian
  return static_cast<uint32_t>(offsetof(seccomp_data, args) + argument * sizeof(uint64_t));
}

bool keep_cap_kill_alone() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct sets[2];
  if (syscall(SYS_capget, &header, sets)) return false;
  constexpr uint32_t kKill = 1u << CAP_KILL;
  sets[0] = {sets[0].permitted & kKill, sets[0].permitted & kKill, 0};
  sets[1] = {};
  return syscall(SYS_capset, &header, sets) == 0;
}

}  // namespace

Status confine(const Doors& doors) {
  const auto is = [](long call, uint8_t otherwise) -> sock_filter {
    return BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<uint32_t>(call), 0, otherwise);
  };
  const auto argument = [](size_t n) -> sock_filter {
    return BPF_STMT(BPF_LD | BPF_W | BPF_ABS, low_half(n));
  };
  const auto fd = [](int n) { return static_cast<uint32_t>(n); };
  const sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  const sock_filter kill = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_THREAD);
  const sock_filter program[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, arch)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, kArchitecture, 1, 0),
      kill,
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      is(SYS_ppoll, 1),
      allow,
      is(SYS_clock_gettime, 1),
      allow,
      is(SYS_kill, 1),
      allow,
      is(SYS_exit, 1),
      allow,
      is(SYS_read, 5),
      argument(0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, fd(doors.signals), 1, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, fd(doors.wake), 0, 1),
      allow,
      kill,
      is(SYS_sendto, 5),
      argument(0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, fd(-1), 2, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, fd(doors.notify), 0, 1),
      allow,
      kill,
      is(SYS_futex, 4),
      argument(1),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, FUTEX_WAKE, 0, 1),
      allow,
      kill,
      is(SYS_waitid, 3),
      argument(0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, P_PID, 0, 1),
      allow,
      kill,
  };
#if defined(__SANITIZE_THREAD__)  // it makes calls of its own in every thread
  return Nothing{};
#endif
  const sock_fprog filter{std::size(program), const_cast<sock_filter*>(program)};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return Error{std::string("no_new_privs: ") + strerror(errno)};
  if (!keep_cap_kill_alone()) return Error{std::string("capset: ") + strerror(errno)};
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter))
    return Error{std::string("seccomp: ") + strerror(errno)};
  return Nothing{};
}

}  // namespace penstock::keeper
