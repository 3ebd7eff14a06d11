// SPDX-License-Identifier: Apache-2.0
// support/wait.h: for what announces itself by no event (a counter, a file that goes away).
#pragma once
#include <chrono>
#include <thread>

namespace penstock::test {

using namespace std::chrono_literals;
using std::chrono::milliseconds;

// How long anything that should happen at once may take on a busy machine before a test calls it hung: 20 s,
// more under a sanitizer, and PENSTOCK_PATIENCE_S seconds where that is set (for an emulated machine).
extern const milliseconds kPatience;

// Asks `predicate` until it says yes; its last answer when `limit` has passed.
template <typename Predicate>
bool wait_until(Predicate predicate, milliseconds limit = kPatience) {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  while (std::chrono::steady_clock::now() < deadline) {
    if (predicate()) return true;
    std::this_thread::sleep_for(2ms);
  }
  return predicate();
}

}  // namespace penstock::test
