// SPDX-License-Identifier: Apache-2.0
// proxy_protocol/wire.h: the numbers of version 2 (2.2), for encode.cc and parse.cc.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>

namespace penstock::proxy_protocol {

inline constexpr std::array<uint8_t, 12> kV2Signature = {0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d,
                                                         0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a};
inline constexpr size_t kV2LengthOffset = 14;
inline constexpr size_t kV2FixedBytes = 16;  // signature, version and command, family, length
inline constexpr uint8_t kV2Version = 2;

inline constexpr uint8_t kCommandLocal = 0;
inline constexpr uint8_t kCommandProxy = 1;

// Family and transport in one byte. Their datagram twins (0x12, 0x22, 0x32) cannot describe a TCP connection.
inline constexpr uint8_t kUnspecified = 0x00;
inline constexpr uint8_t kTcp4 = 0x11;
inline constexpr uint8_t kTcp6 = 0x21;
inline constexpr uint8_t kUnixStream = 0x31;
inline constexpr size_t kTcp4Bytes = 12;
inline constexpr size_t kTcp6Bytes = 36;
inline constexpr size_t kUnixBytes = 216;

inline constexpr uint8_t kTlvAlpn = 0x01;
inline constexpr uint8_t kTlvAuthority = 0x02;
inline constexpr uint8_t kTlvCrc32c = 0x03;
inline constexpr size_t kTlvHeaderBytes = 3;
inline constexpr size_t kCrc32cBytes = 4;

}  // namespace penstock::proxy_protocol
