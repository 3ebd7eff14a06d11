// SPDX-License-Identifier: Apache-2.0
// support/lost_time.h: what a machine that stood still has cost, for bounds on how long something may take.
#pragma once
#include <atomic>
#include <thread>

#include "support/wait.h"

namespace penstock::test {

// Counts what a thread that wants to run every 5 ms did not get, where it was more than 50 ms at once.
class LostTime {
 public:
  ~LostTime() {
    over_ = true;
    thread_.join();
  }
  milliseconds so_far() const { return milliseconds(ms_.load()); }

 private:
  void count() {
    for (auto at = std::chrono::steady_clock::now(); !over_;) {
      std::this_thread::sleep_for(5ms);
      const auto now = std::chrono::steady_clock::now();
      if (now - at > 50ms) ms_ += std::chrono::duration_cast<milliseconds>(now - at).count();
      at = now;
    }
  }
  std::atomic<bool> over_ = false;
  std::atomic<milliseconds::rep> ms_ = 0;
  std::thread thread_{[this] { count(); }};
};

}  // namespace penstock::test
