// SPDX-License-Identifier: Apache-2.0
// crash/signals.h: a process that dies of SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGSYS or SIGTRAP leaves
// a report (report.h) and one line on stderr, then dies of that signal. A crash or 2 s of standing still
// within the report end it with what is written so far, by the same signal. tests/unit/crash_test.cc.
#pragma once
#include "crash/report.h"

namespace penstock::crash {

// Sanitizers have handlers of their own, which say more: there install() leaves the signals alone.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kHandlesSignals = false;
#elif defined(__has_feature)
inline constexpr bool kHandlesSignals =
    !(__has_feature(address_sanitizer) || __has_feature(thread_sanitizer));
#else
inline constexpr bool kHandlesSignals = true;
#endif

// Once in a process, before its threads. No other handler of these signals may be installed later.
// REQUIRES: options.shared
void install(const Options& options);

// In each thread, the first one too, so that it can report that its stack is full: 64 KiB until the thread
// ends. Unblocks these signals, which threads with a mask of all signals block. `own`: what it will have in
// hand, in Shared; or nullptr. Errors: no memory.
Status prepare_thread(const InHand* own);

}  // namespace penstock::crash
