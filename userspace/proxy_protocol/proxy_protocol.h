// SPDX-License-Identifier: Apache-2.0
// proxy_protocol/proxy_protocol.h: the PROXY protocol, versions 1 and 2 (haproxy/doc/proxy-protocol.txt, 2.1 and 2.2),
// encode and parse. Pure, no allocation. Any bytes are safe to parse.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "base/endpoint.h"

namespace penstock::proxy_protocol {

inline constexpr size_t kV1BytesMax = 107;   // 2.1, with CRLF
inline constexpr size_t kHeaderBytesMax = 1024;  // most that encode() writes

enum class Version { v1, v2 };

// What we say of a client. Addresses of two families cannot be told in one header: v4-mapped becomes v4 only when
// both are; else both are written as v6.
struct Outgoing {
  Version version = Version::v2;
  Endpoint client, destination;
  std::string_view authority;            // PP2_TYPE_AUTHORITY (0x02); empty: left out
  std::string_view alpn;                 // PP2_TYPE_ALPN (0x01), the first name offered; empty: left out
  std::span<const uint8_t> unique_id;    // PP2_TYPE_UNIQUE_ID (0x05), at most 128 bytes; empty: left out
  bool crc32c = false;                   // PP2_TYPE_CRC32C (0x03)
  bool local = false;                    // LOCAL (v2) or UNKNOWN (v1): health checks
};

// Returns the header's length. REQUIRES: out.size() >= kHeaderBytesMax.
size_t encode(const Outgoing& what, std::span<uint8_t> out);

enum class Verdict { need_more, header, not_proxy, malformed };

struct Incoming {
  Verdict verdict = Verdict::not_proxy;
  size_t need_bytes = 0;    // when need_more: the least total that can bring news
  size_t header_bytes = 0;  // when header: discard exactly these
  Version version = Version::v2;
  bool local = false;       // LOCAL, UNKNOWN or AF_UNSPEC: the connection's own addresses stand
  Endpoint client, destination;
  std::span<const uint8_t> tlvs;  // v2: into the bytes parsed
};

void parse(std::span<const uint8_t> bytes, Incoming* out);

uint32_t crc32c(std::span<const uint8_t> bytes);  // RFC 3720 B.4

}  // namespace penstock::proxy_protocol
