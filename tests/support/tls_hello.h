// SPDX-License-Identifier: Apache-2.0
// support/tls_hello.h: ClientHellos built field by field (RFC 8446 4.1.2), in shapes OpenSSL does not make.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace penstock::test {

struct TlsHello {
  std::string sni;  // empty: no server_name extension
  std::vector<std::string> alpn;
  size_t handshake_bytes = 0;           // padded (RFC 7685) to this handshake body; 0: no padding
  bool sni_last = false;                // server_name after the padding
  size_t record_payload_bytes = 16384;  // each record carries at most this
  std::string bytes() const;            // as on the wire
};

}  // namespace penstock::test
