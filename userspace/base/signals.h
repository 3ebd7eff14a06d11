// SPDX-License-Identifier: Apache-2.0
// base/signals.h: which signals a thread beside the main one takes.
#pragma once
#include <pthread.h>
#include <signal.h>

#include <initializer_list>

namespace penstock {

// All but those that a crash of this very thread raises: to them a report is due. `before`: the mask it had.
inline void block_daemons_signals(sigset_t* before) {
  sigset_t all;
  sigfillset(&all);
  for (const int s : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGSYS, SIGTRAP}) sigdelset(&all, s);
  pthread_sigmask(SIG_SETMASK, &all, before);
}

}  // namespace penstock
