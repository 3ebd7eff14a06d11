// SPDX-License-Identifier: Apache-2.0
// proxy_protocol/proxy_protocol.h: the PROXY protocol, versions 1 and 2 (haproxy/doc/proxy-protocol.txt, 2.1
// and 2.2), encode and parse. Pure, no allocation. Any bytes are safe to parse. Where the specification
// leaves a choice, README.md says which we took; tests/unit/proxy_protocol_test.cc holds us to it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "base/endpoint.h"

namespace penstock::proxy_protocol {

inline constexpr size_t kV1BytesMax = 107;         // 2.1, with CRLF
inline constexpr size_t kHeaderBytesMax = 1536;    // most that encode() writes
inline constexpr size_t kUniqueIdBytesMax = 128;   // 2.2.5
inline constexpr size_t kOwnUniqueIdBytes = 32;    // of one that we make: flow/prime.cc
inline constexpr size_t kPassedOnBytesMax = 576;   // of Outgoing::passed_on
inline constexpr size_t kIncomingBytesMax = 4096;  // most that parse() takes; the format would allow 65551

enum class Version { v1, v2 };

// What we say of a client. Addresses of two families cannot be told in one header: v4-mapped becomes v4 only
// when both are; else both are written as v6.
struct Outgoing {
  Version version = Version::v2;
  Endpoint client, destination;
  // The TLVs; v1 has none.
  std::string_view authority;  // PP2_TYPE_AUTHORITY (0x02), at most 255 bytes; empty: left out
  std::string_view alpn;       // PP2_TYPE_ALPN (0x01), the first name offered, at most 255; empty: left out
  std::span<const uint8_t>
      unique_id;        // PP2_TYPE_UNIQUE_ID (0x05), at most kUniqueIdBytesMax; empty: left out
  bool crc32c = false;  // PP2_TYPE_CRC32C (0x03)
  // TLVs of the proxy in front (Incoming::tlvs, or some of them), as they came. One that is also said above
  // is left out, PP2_TYPE_NOOP (0x04) too; CRC32C is never copied: it is made anew when it is among them.
  std::span<const uint8_t> passed_on;
  bool local = false;  // LOCAL (v2) or UNKNOWN (v1): health checks; the addresses are left out
};

// Returns the header's length. REQUIRES: out.size() >= kHeaderBytesMax, and the bounds above.
size_t encode(const Outgoing& what, std::span<uint8_t> out);

enum class Verdict {
  need_more,  // a prefix of a possible header: show at least `need_bytes` from the start
  header,     // complete, and valid to the last TLV
  not_proxy,  // the first bytes are neither signature
  malformed,  // a signature, then something the specification forbids or we do not take
};

struct Incoming {
  Verdict verdict = Verdict::not_proxy;
  // When need_more: > the size shown, <= kIncomingBytesMax, and with fewer no verdict but malformed is
  // possible. Within a signature it is one more byte: a client that is no proxy is told apart at once.
  size_t need_bytes = 0;
  size_t header_bytes = 0;  // when header: discard exactly these
  Version version = Version::v2;
  bool local = false;  // LOCAL, UNKNOWN, AF_UNSPEC or AF_UNIX: the connection's own addresses stand
  Endpoint client, destination;
  std::span<const uint8_t> tlvs;  // v2: into the bytes parsed; empty for LOCAL and AF_UNSPEC
};

void parse(std::span<const uint8_t> bytes, Incoming* out);

// Is this what a header of either version begins with? For those who are not believed, whatever follows.
enum class Signature { absent, prefix, whole };  // prefix: so far; of nothing, too
Signature signature(std::span<const uint8_t> bytes);

// One TLV of Incoming::tlvs. `bytes`: all of it, type and length included.
struct Tlv {
  uint8_t type = 0;
  std::span<const uint8_t> value, bytes;
};
// Takes the first one off; nullopt at the end. REQUIRES: TLVs that parse() found sound.
std::optional<Tlv> next_tlv(std::span<const uint8_t>* tlvs);

inline constexpr uint8_t kTlvNoop = 0x04;      // 2.2.4: padding
inline constexpr uint8_t kTlvUniqueId = 0x05;  // 2.2.5

// RFC 3720 B.4. `before` is the crc32c of what stands in front of `bytes`.
uint32_t crc32c(std::span<const uint8_t> bytes, uint32_t before = 0);

}  // namespace penstock::proxy_protocol
