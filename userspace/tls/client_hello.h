// SPDX-License-Identifier: Apache-2.0
// tls/client_hello.h: reads SNI and ALPN out of the first bytes of a TLS connection (RFC 8446 4.1.2, RFC 6066
// 3, RFC 7301). Pure: bytes in, verdict out; no fd, clock, allocation or log. Any bytes are safe. The
// handshake message may span any number of records (RFC 8446 5.1) and TCP segments. What counts as malformed,
// and where we differ from OpenSSL, is in README.md; tests/unit/client_hello_test.cc holds us to it.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace penstock::tls {

inline constexpr size_t kHandshakeBytesMax = 65536;  // longest ClientHello body we follow; Go's limit too
inline constexpr size_t kRecordsMax = 1024;          // a hello cut finer than this is malformed
// Most bytes a caller may have to show us: the handshake with its 4-byte header, and 5 bytes a record.
inline constexpr size_t kPeekBytesMax = kHandshakeBytesMax + 4 + 5 * kRecordsMax;
inline constexpr size_t kNameBytesMax = 255;  // RFC 1035 2.3.4
inline constexpr size_t kAlpnBytesMax = 256;

enum class Verdict {
  need_more,  // a prefix of a possible hello: show at least `need_bytes` from the start
  hello,      // complete; sni/alpn are valid
  not_tls,    // the first bytes cannot be a TLS handshake record of version 3.0 to 3.4
  malformed,  // TLS, but broken or beyond the limits above
};

struct ClientHello {
  Verdict verdict = Verdict::not_tls;
  // When need_more: > the size shown, <= kPeekBytesMax, and with fewer no verdict but malformed is possible.
  // A caller may sleep until that many are there (SO_RCVLOWAT): a hello takes a handful of rounds however it
  // is cut.
  size_t need_bytes = 0;
  std::array<char, kNameBytesMax + 1> sni_bytes{};
  uint8_t sni_size =
      0;  // 0: no SNI. Lower-cased, without a trailing dot: labels of letters, digits, '-' and '_'.
  // ProtocolNameList body: length-prefixed names (RFC 7301 3.1), cut at a whole name.
  std::array<uint8_t, kAlpnBytesMax> alpn_bytes{};
  uint16_t alpn_size = 0;
  bool has_ech = false;  // encrypted_client_hello was present: the SNI is the outer name
  std::string_view sni() const { return {sni_bytes.data(), sni_size}; }
  std::span<const uint8_t> alpn() const { return {alpn_bytes.data(), alpn_size}; }
};

// `bytes`: the stream from its first byte. What follows the hello (early data, more records) is not looked
// at.
void parse_client_hello(std::span<const uint8_t> bytes, ClientHello* out);

// Walks an alpn() list: returns the next name and advances `list`; empty when done.
std::string_view next_alpn(std::span<const uint8_t>* list);

}  // namespace penstock::tls
