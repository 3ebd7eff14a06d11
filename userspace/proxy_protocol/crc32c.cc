// SPDX-License-Identifier: Apache-2.0
#include <array>

#include "proxy_protocol/proxy_protocol.h"

namespace penstock::proxy_protocol {
namespace {

constexpr uint32_t kPolynomialReflected = 0x82f63b78;

constexpr std::array<uint32_t, 256> kTable = [] {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < table.size(); ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? kPolynomialReflected : 0);
    table[i] = crc;
  }
  return table;
}();

}  // namespace

uint32_t crc32c(std::span<const uint8_t> bytes, uint32_t before) {
  uint32_t crc = ~before;
  for (const uint8_t byte : bytes) crc = crc >> 8 ^ kTable[(crc ^ byte) & 0xff];
  return ~crc;
}

}  // namespace penstock::proxy_protocol
