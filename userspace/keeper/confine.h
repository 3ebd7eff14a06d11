// SPDX-License-Identifier: Apache-2.0
// keeper/confine.h: what the keeper's second thread may do, and nothing else. tests/keeper/confine_test.cc
// tries every other system call.
#pragma once
#include <sys/syscall.h>

#include <array>

#include "base/result.h"

namespace penstock::keeper {

inline constexpr std::array kAllowedCalls = {
    SYS_ppoll,          // any descriptor
    SYS_read,           // signals, wake
    SYS_sendto,         // notify
    SYS_futex,          // FUTEX_WAKE
    SYS_waitid,         // P_PID: who shares the table can put another process behind a pidfd
    SYS_kill,           //
    SYS_clock_gettime,  // where the vDSO cannot say
    SYS_exit,           // this thread
};

struct Doors {
  int signals, wake, notify;  // notify -1: sendto() is refused
};

// The calling thread alone, for ever: no new privileges, no capability but CAP_KILL, and any other call than
// those above ends the thread (SECCOMP_RET_KILL_THREAD: the starter hears of it and ends the daemon in
// order). Fails where the kernel has no seccomp filter.
Status confine(const Doors& doors);

}  // namespace penstock::keeper
