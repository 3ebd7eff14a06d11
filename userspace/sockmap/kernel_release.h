// SPDX-License-Identifier: Apache-2.0
// sockmap/kernel_release.h: the one thing that is judged by a kernel's version: whether trying would take the
// machine down. Linux 4cd12c6065df (net/core/skmsg.c, "Fix NULL pointer dereference in
// sk_psock_verdict_data_ready", 2024) mends a race between the verdict and the removal of a source; a kernel
// without it panics in the self-test (tests/kernels: 6.5.0-45 of Ubuntu did, each time).
#pragma once
#include <string>
#include <string_view>

namespace penstock::sockmap {

// `release` and `version` as of uname(2). Why not to try, or empty. A release whose patch level is the
// distribution's own ("6.1.0-56-amd64") is judged by the one in `version` where there is one ("Debian
// 6.1.192-2"), else tried where its series has the fix.
std::string panics(std::string_view release, std::string_view version);
std::string this_kernel_panics();

}  // namespace penstock::sockmap
