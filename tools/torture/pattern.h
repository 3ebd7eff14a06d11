// SPDX-License-Identifier: Apache-2.0
// torture/pattern.h: which byte stands at which offset of which stream. One period of random bytes, small
// enough to stay in the cache, is read from a place that the stream's seed gives: sending is scatter-gather,
// checking memcmp. The period is prime, so no page, pipe or buffer size lost or repeated falls on itself.
#pragma once
#include <sys/uio.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "dice.h"
#include "life.h"

namespace penstock::torture {

class Pattern {
 public:
  static constexpr size_t kPeriodBytes = 65'521;
  static constexpr size_t kIovMax = 19;  // for 1 MiB

  // `opening` stands at the stream's beginning instead; must outlive this.
  Pattern(uint64_t life_seed, Side sender, std::string_view opening = {});
  // Describes bytes [offset, offset + length) and returns how many entries of `out` it took, at most kIovMax.
  // REQUIRES: length <= 1 MiB.
  int gather(uint64_t offset, size_t length, iovec* out) const;
  // How many of `bytes` are what stands at `offset`; bytes.size() if all.
  size_t count_right(uint64_t offset, std::span<const uint8_t> bytes) const;
  // Where in the stream wrong bytes come from, relative to where they were expected: +4096 means 4096 were
  // lost, -4096 repeated. None if they are of no stream place nearby (half a period), or too few (16) to
  // tell.
  std::optional<int64_t> displacement(uint64_t offset, std::span<const uint8_t> bytes) const;

 private:
  size_t start_;
  std::string_view opening_;
};

}  // namespace penstock::torture
