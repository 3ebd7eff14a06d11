// SPDX-License-Identifier: Apache-2.0
// tls/client_hello.h: reads SNI and ALPN out of the first bytes of a TLS connection (RFC 8446 4.1.2, RFC 6066 3,
// RFC 7301). Pure: bytes in, verdict out; no fd, clock, allocation or log. Any bytes are safe.
// The handshake message may span any number of records (RFC 8446 5.1) and TCP segments.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace penstock::tls {

inline constexpr size_t kHandshakeBytesMax = 65536;  // longest ClientHello body we follow; OpenSSL's is 131072, Go's 65536
inline constexpr size_t kRecordsMax = 1024;          // a hello cut finer than this is malformed
// Most bytes a caller may have to show us: the handshake with its 4-byte header, and 5 bytes a record.
inline constexpr size_t kPeekBytesMax = kHandshakeBytesMax + 4 + 5 * kRecordsMax;
inline constexpr size_t kNameBytesMax = 255;         // RFC 1035 2.3.4
inline constexpr size_t kAlpnBytesMax = 256;

enum class Verdict {
  need_more,  // a prefix of a possible hello: show at least `need_bytes` from the start
  hello,      // complete; sni/alpn are valid
  not_tls,    // the first bytes cannot be a TLS handshake
  malformed,  // TLS, but broken or beyond the limits above
};

struct ClientHello {
  Verdict verdict = Verdict::not_tls;
  size_t need_bytes = 0;  // when need_more: the least total that can bring news (> size shown)
  std::array<char, kNameBytesMax + 1> sni_bytes{};
  uint8_t sni_size = 0;   // 0: none, or not a host name we route by. Lower-cased, without a trailing dot.
  std::array<uint8_t, kAlpnBytesMax> alpn_bytes{};  // ProtocolNameList body: length-prefixed names (RFC 7301 3.1), cut at a whole name
  uint16_t alpn_size = 0;
  bool has_ech = false;   // encrypted_client_hello was present: the SNI is the outer name
  std::string_view sni() const { return {sni_bytes.data(), sni_size}; }
  std::span<const uint8_t> alpn() const { return {alpn_bytes.data(), alpn_size}; }
};

// `bytes`: the stream from its first byte.
void parse_client_hello(std::span<const uint8_t> bytes, ClientHello* out);

// Walks an alpn() list: returns the next name and advances `list`; empty when done.
std::string_view next_alpn(std::span<const uint8_t>* list);

}  // namespace penstock::tls
