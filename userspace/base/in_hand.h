// SPDX-License-Identifier: Apache-2.0
// base/in_hand.h: which flow a thread works on at this moment, in memory that outlives its process: for a
// crash report, and for the next worker to tell a flow that kills. Zeros are nothing in hand. Two stores more
// than the words themselves, so cheap enough for every event. tests/unit/crash_test.cc.
#pragma once
#include <atomic>
#include <cstdint>
#include <optional>

namespace penstock {

class InHand {
 public:
  struct Flow {
    uint32_t slot, generation;
    uint32_t phase, event;  // numbers of whoever takes it in hand
  };

  // One thread.
  void take(const Flow& flow) {
    slot_.store(flow.slot, std::memory_order_relaxed);
    generation_.store(flow.generation, std::memory_order_relaxed);
    phase_.store(flow.phase, std::memory_order_relaxed);
    event_.store(flow.event, std::memory_order_relaxed);
    turn_.store((turn_.load(std::memory_order_relaxed) + 1) | 1, std::memory_order_release);
  }
  void let_go() {
    turn_.store((turn_.load(std::memory_order_relaxed) + 1) & ~1u, std::memory_order_release);
    std::atomic_thread_fence(std::memory_order_release);  // before the words of the next one
  }

  // Exact in the thread itself and once it is dead; of another that lives it may be of two flows.
  std::optional<Flow> flow() const {
    if (turn() % 2 == 0) return std::nullopt;
    return Flow{slot_.load(std::memory_order_relaxed), generation_.load(std::memory_order_relaxed),
                phase_.load(std::memory_order_relaxed), event_.load(std::memory_order_relaxed)};
  }
  // Odd while there is a flow in hand; the same odd one a while later: it stands still.
  uint32_t turn() const { return turn_.load(std::memory_order_acquire); }

 private:
  std::atomic<uint32_t> turn_ = 0, slot_ = 0, generation_ = 0, phase_ = 0, event_ = 0;
};

}  // namespace penstock
