// SPDX-License-Identifier: Apache-2.0
// sim/io.h: io::Io over the simulated kernel. Whoever waits in run() makes the world go on: one worker's
// thread at a time runs, the others and the main thread wait for their turn.
#pragma once
#include <functional>

namespace penstock::sim {

// From the main thread: all workers are started, and wait for their first turn. Until the last one's Io is
// gone; `each_step` after everything that happens. False: the process has died (kernel.h, Call); its threads
// are to be joined, then buried.
bool run_workers(int workers, const std::function<void()>& each_step);
void bury_workers();
[[noreturn]] void die();

}  // namespace penstock::sim
