// SPDX-License-Identifier: Apache-2.0
#include "pattern.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace penstock::torture {
namespace {

using Period = std::array<uint8_t, Pattern::kPeriodBytes>;

const Period& period() {
  static const Period bytes = [] {
    Period fill;
    Dice dice(0x70656e73746f636b);
    for (uint8_t& b : fill) b = static_cast<uint8_t>(dice.next() >> 32);
    return fill;
  }();
  return bytes;
}

}  // namespace

Pattern::Pattern(uint64_t life_seed, Side sender, std::string_view opening)
    : start_(Dice(life_seed + index_of(sender)).next() % kPeriodBytes), opening_(opening) {}

int Pattern::gather(uint64_t offset, size_t length, iovec* out) const {
  int count = 0;
  if (offset < opening_.size()) {
    const std::string_view piece = opening_.substr(offset, length);
    out[count++] = {const_cast<char*>(piece.data()), piece.size()};
    offset += piece.size();
    length -= piece.size();
  }
  size_t at = (start_ + offset) % kPeriodBytes;
  while (length > 0) {
    const size_t piece = std::min(length, kPeriodBytes - at);
    out[count++] = {const_cast<uint8_t*>(period().data() + at), piece};
    length -= piece;
    at = 0;
  }
  return count;
}

size_t Pattern::count_right(uint64_t offset, std::span<const uint8_t> bytes) const {
  size_t right = 0;
  if (offset < opening_.size()) {
    const std::string_view want = opening_.substr(offset, bytes.size());
    right = static_cast<size_t>(std::mismatch(want.begin(), want.end(), bytes.begin(),
                                              [](char a, uint8_t b) { return static_cast<uint8_t>(a) == b; })
                                    .first -
                                want.begin());
    if (right < want.size()) return right;
  }
  while (right < bytes.size()) {
    const size_t at = (start_ + offset + right) % kPeriodBytes;
    const size_t piece = std::min(bytes.size() - right, kPeriodBytes - at);
    const uint8_t* want = period().data() + at;
    const uint8_t* got = bytes.data() + right;
    if (std::memcmp(want, got, piece) != 0) {
      return right + static_cast<size_t>(std::mismatch(want, want + piece, got).first - want);
    }
    right += piece;
  }
  return right;
}

std::optional<int64_t> Pattern::displacement(uint64_t offset, std::span<const uint8_t> bytes) const {
  constexpr size_t kTelling = 16;
  if (bytes.size() < kTelling) return std::nullopt;
  const auto expected = static_cast<int64_t>((start_ + offset) % kPeriodBytes);
  constexpr auto kPeriod = static_cast<int64_t>(kPeriodBytes);
  const void* found = memmem(period().data(), period().size(), bytes.data(), kTelling);
  if (found == nullptr) return std::nullopt;
  const int64_t moved = static_cast<const uint8_t*>(found) - period().data() - expected;
  return (moved + kPeriod + kPeriod / 2) % kPeriod - kPeriod / 2;
}

}  // namespace penstock::torture
