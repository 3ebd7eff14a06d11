// SPDX-License-Identifier: Apache-2.0
#include "support/tls_hello.h"

#include <algorithm>
#include <cstdint>
#include <stdexcept>

namespace penstock::test {
namespace {

std::string number(size_t value, int bytes) {
  std::string out;
  for (int i = bytes - 1; i >= 0; --i) out += static_cast<char>(value >> (8 * i));
  return out;
}

std::string sized(int length_bytes, const std::string& body) {
  return number(body.size(), length_bytes) + body;
}

std::string extension(uint16_t type, const std::string& body) {
  return number(type, 2) + sized(2, body);
}

}  // namespace

std::string TlsHello::bytes() const {
  const std::string server_name =
      sni.empty() ? "" : extension(0, sized(2, number(0, 1) + sized(2, sni)));  // host_name
  std::string others = extension(43, sized(1, number(0x0304, 2)));              // supported_versions: TLS 1.3
  if (!alpn.empty()) {
    std::string names;
    for (const auto& name : alpn) names += sized(1, name);
    others += extension(16, sized(2, names));
  }
  std::string head = number(0x0303, 2) + std::string(32, 'r');  // legacy_version, random
  head += sized(1, "");                                         // legacy_session_id
  head += sized(2, number(0x1301, 2));                          // TLS_AES_128_GCM_SHA256
  head += sized(1, number(0, 1));                               // no compression

  std::string padding;
  const size_t unpadded = head.size() + 2 + server_name.size() + others.size();
  if (handshake_bytes != 0) {
    if (handshake_bytes < unpadded + 4)
      throw std::invalid_argument("handshake_bytes: too small for the rest");
    padding = extension(21, std::string(handshake_bytes - unpadded - 4, '\0'));
  }
  const std::string extensions = sni_last ? others + padding + server_name : server_name + others + padding;
  const std::string handshake = number(1, 1) + sized(3, head + sized(2, extensions));  // client_hello

  std::string wire;
  for (size_t done = 0; done < handshake.size(); done += record_payload_bytes) {
    wire += number(22, 1) + number(0x0301, 2) + sized(2, handshake.substr(done, record_payload_bytes));
  }
  return wire;
}

}  // namespace penstock::test
