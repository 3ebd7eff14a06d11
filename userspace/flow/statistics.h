// SPDX-License-Identifier: Apache-2.0
// flow/statistics.h: the counters, where they are dumped from: the memory of the pinned maps, or our own
// where there are no maps. Every write is one atomic addition.
#pragma once
#include <atomic>
#include <cstdint>

#include "bpf/abi.h"
#include "flow/close_reason.h"

namespace penstock::flow {

inline void count(__u64& counter, uint64_t by = 1) {
  std::atomic_ref(counter).fetch_add(by, std::memory_order_relaxed);
}
inline void uncount(__u64& counter, uint64_t by = 1) {
  std::atomic_ref(counter).fetch_sub(by, std::memory_order_relaxed);
}
inline uint64_t read(__u64& counter) {
  return std::atomic_ref(counter).load(std::memory_order_relaxed);
}

struct Statistics {
  penstock_totals* totals = nullptr;
  penstock_listener* listeners = nullptr;
  penstock_upstream* upstreams = nullptr;

  __u64& closed(CloseReason r) { return reinterpret_cast<__u64*>(&totals->closed)[static_cast<size_t>(r)]; }
  __u64& lane_changes(LaneChange c) {
    return reinterpret_cast<__u64*>(&totals->lane_changes)[static_cast<size_t>(c)];
  }
};

// While it lives, the counters of the law may disagree: whoever copies them meanwhile can tell (bpf/abi.h).
class Update {
 public:
  explicit Update(Statistics& s) : totals_(s.totals) {
    count(totals_->updates_begun);
    std::atomic_thread_fence(std::memory_order_seq_cst);
  }
  ~Update() { std::atomic_ref(totals_->updates_done).fetch_add(1, std::memory_order_release); }
  Update(const Update&) = delete;
  Update& operator=(const Update&) = delete;

 private:
  penstock_totals* totals_;
};

}  // namespace penstock::flow
