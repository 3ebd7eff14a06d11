// SPDX-License-Identifier: Apache-2.0
// sim/random.h: everything that is left to chance comes out of one 64-bit seed (splitmix64).
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace penstock::sim {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  uint64_t below(uint64_t n) { return n ? next() % n : 0; }
  uint64_t between(uint64_t low, uint64_t high) { return low + below(high - low + 1); }
  bool chance(uint64_t of, uint64_t in) { return below(in) < of; }
  // As likely between 1 and 10 as between 1000 and 10000.
  uint64_t log_between(uint64_t low, uint64_t high) {
    const int low_bits = std::bit_width(low), high_bits = std::bit_width(high);
    const int bits =
        static_cast<int>(between(static_cast<uint64_t>(low_bits), static_cast<uint64_t>(high_bits)));
    const uint64_t least = bits > 1 ? uint64_t{1} << (bits - 1) : 1, most = (uint64_t{1} << bits) - 1;
    const uint64_t n = between(least, most);
    return n < low ? low : n > high ? high : n;
  }
  template <typename T>
  T one_of(std::initializer_list<T> values) {
    return values.begin()[below(values.size())];
  }

 private:
  uint64_t state_;
};

}  // namespace penstock::sim
