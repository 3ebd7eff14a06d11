// SPDX-License-Identifier: Apache-2.0
// torture/dice.h: the one source of chance. splitmix64: every 64-bit state gives a good sequence, so a seed
// needs no warming up.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

namespace penstock::torture {

class Dice {
 public:
  explicit Dice(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  uint64_t below(uint64_t n) { return next() % n; }
  uint64_t between(uint64_t low, uint64_t high) { return low + below(high - low + 1); }
  // REQUIRES: 1 <= low <= high.
  uint64_t log_uniform(uint64_t low, uint64_t high) {
    const double ratio = static_cast<double>(high + 1) / static_cast<double>(low);
    return std::clamp(static_cast<uint64_t>(static_cast<double>(low) * std::pow(ratio, unit())), low, high);
  }
  bool chance(double percent) { return unit() * 100 < percent; }

 private:
  double unit() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  uint64_t state_;
};

}  // namespace penstock::torture
