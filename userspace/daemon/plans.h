// SPDX-License-Identifier: Apache-2.0
// daemon/plans.h: the configurations that flows came in under, in memory that outlives the worker: its text,
// and which entry of the statistics each name has. The next worker makes the same plans of them. One writer;
// a text that was not written whole is not there. tests/unit/plans_test.cc.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "config/config.h"
#include "flow/plan.h"

namespace penstock::daemon {

class Plans {
 public:
  static constexpr size_t kPlansMax = 32, kPlanBytesMax = 4 << 20;  // pages that are not used cost nothing

  struct Kept {
    uint32_t id = 0;
    config::Source source;
    std::vector<uint32_t> listener_slots, upstream_slots;  // in the order of the configuration
  };

  static Result<Plans> create();
  static Result<Plans> reopen(int memory);  // of another program; the descriptor stays the caller's
  int memory() const { return number_; }
  Plans(Plans&& other) noexcept;
  Plans& operator=(Plans&&) = delete;
  ~Plans();

  // Where kPlansMax are in use the oldest gives way: its flows go on under the newest, if a worker dies.
  void keep(const config::Source& source, const std::shared_ptr<const flow::Plan>& plan);
  std::vector<Kept> all() const;  // the oldest first
  // Forgets the others: of flows that are gone.
  void keep_only(const std::vector<Kept>& needed);
  // What the daemon was started with: its keys that a reload does not change.
  void keep_start(const config::Source& source);
  config::Source start() const;

 private:
  struct Entry;
  static constexpr size_t kBytes = (kPlansMax + 1) * kPlanBytesMax;  // the last one: of the start
  Plans() = default;
  static Result<Plans> map(int memory);
  Entry* entry(size_t i) const;
  static void forget(Entry* e);
  Fd memory_;  // if it was created here
  int number_ = -1;
  uint8_t* bytes_ = nullptr;
  std::vector<std::pair<uint32_t, std::weak_ptr<const flow::Plan>>> used_;  // by id
};

}  // namespace penstock::daemon
