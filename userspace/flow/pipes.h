// SPDX-License-Identifier: Apache-2.0
// flow/pipes.h: one thread's pipes for relayed directions. Making one costs as much as a short flow, growing
// one more, so empty ones are kept. kReserved are made at the start: when sockets have taken every
// descriptor, a direction can still move its bytes, and with them its flow ends some day. The memory they may
// pin is counted in totals.pipe_bytes; an empty one that is kept pins none.
#pragma once
#include <cstdint>
#include <vector>

#include "flow/statistics.h"

namespace penstock::flow {

struct Pipe {
  int in = -1, out = -1;
  uint32_t capacity_bytes = 0;
};

class Pipes {
 public:
  static constexpr uint32_t kCapacityBytes = 64 << 10;  // of a new one, the kernel's default
  static constexpr size_t kKeptMax = 256, kGrownMax = 16, kReserved = 2;

  explicit Pipes(Statistics* statistics);
  ~Pipes();
  // Of `bytes` if one is kept or can be made, else of what there is. False: no descriptors left.
  bool take(uint32_t bytes, Pipe* out);
  // To `bytes`, or as near as the kernel allows (fs.pipe-user-pages-soft); returns the capacity then.
  uint32_t grow(Pipe* pipe, uint32_t bytes);
  void give_back(const Pipe& pipe, bool empty);
  void let_go();  // of those kept beyond the reserve

 private:
  Statistics* statistics_;
  std::vector<Pipe> kept_, grown_;
};

}  // namespace penstock::flow
