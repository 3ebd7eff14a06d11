// SPDX-License-Identifier: Apache-2.0
// bpf/backlog_oracle.h: what really waits in a target's queue, by walking it in the kernel: independent of
// the verdict's estimate.
#pragma once
#include <cstdint>

struct backlog_oracle_bpf;

namespace penstock::sockmap {

struct Backlog {
  uint64_t segments = 0;
  uint64_t bytes = 0;           // payload
  uint64_t truesize_bytes = 0;  // as the kernel counts
  uint64_t linear_bytes = 0;    // allocated for segments without fragments, at least
  uint64_t first_bytes = 0;     // memory of the first one, part of which may have been sent
};

class BacklogOracle {
 public:
  explicit BacklogOracle(int target_fd);  // throws without CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON
  ~BacklogOracle();
  BacklogOracle(const BacklogOracle&) = delete;
  BacklogOracle& operator=(const BacklogOracle&) = delete;
  Backlog measure() const;  // REQUIRES: the target is blocked, or the result is a guess

 private:
  backlog_oracle_bpf* skeleton_;
};

}  // namespace penstock::sockmap
