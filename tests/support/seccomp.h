// SPDX-License-Identifier: Apache-2.0
// support/seccomp.h: a host that refuses a system call, as Docker's default profile does.
#pragma once

namespace penstock::test {

// From now on this call answers `error` to the calling thread, and to the threads and programs it starts.
// Allowed between fork and exec. False: it could not be arranged, see errno. REQUIRES: CAP_SYS_ADMIN.
bool refuse_call(int number, int error);

}  // namespace penstock::test
