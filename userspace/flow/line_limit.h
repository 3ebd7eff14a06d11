// SPDX-License-Identifier: Apache-2.0
// flow/line_limit.h: how many lines a second one kind of event may put into the log, and how many it did not.
// Of one thread. tests/unit/line_limit_test.cc.
#pragma once
#include <cstdint>
#include <utility>

namespace penstock::flow {

class LineLimit {
 public:
  static constexpr uint64_t kNever = UINT64_MAX;

  explicit LineLimit(uint32_t lines_per_s) : lines_max_(lines_per_s) {}

  // False: leave the line out; it is counted.
  bool allow(uint64_t now_ns) {
    if (now_ns >= end_ns_ && left_out_ == 0) {
      end_ns_ = now_ns + kWindowNs;
      lines_ = 0;
    }
    if (lines_ < lines_max_) return ++lines_;
    left_out_++;
    return false;
  }
  // When take_left_out() has something to say; kNever: nothing was left out.
  uint64_t due_ns() const { return left_out_ ? end_ns_ : kNever; }
  // What was left out until now. REQUIRES: now_ns >= due_ns()
  uint64_t take_left_out() { return std::exchange(left_out_, 0); }

 private:
  static constexpr uint64_t kWindowNs = 1'000'000'000;
  const uint32_t lines_max_;
  uint32_t lines_ = 0;  // in this window
  uint64_t end_ns_ = 0;
  uint64_t left_out_ = 0;
};

}  // namespace penstock::flow
