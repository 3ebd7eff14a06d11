// SPDX-License-Identifier: Apache-2.0
#include "support/proxy_header.h"

#include <arpa/inet.h>

#include <stdexcept>

namespace penstock::test {
namespace {

constexpr std::string_view kV2Signature("\r\n\r\n\0\r\nQUIT\n", 12);

uint16_t big_endian(const std::string& bytes, size_t at_offset) {
  return static_cast<uint16_t>(static_cast<uint8_t>(bytes[at_offset]) << 8 |
                               static_cast<uint8_t>(bytes[at_offset + 1]));
}

std::string address_text(int family, const char* raw, uint16_t port) {
  char text[INET6_ADDRSTRLEN];
  if (::inet_ntop(family, raw, text, sizeof text) == nullptr) throw std::runtime_error("inet_ntop");
  return family == AF_INET ? std::string(text) + ":" + std::to_string(port)
                           : "[" + std::string(text) + "]:" + std::to_string(port);
}

ProxyHeader read_v1(const TcpStream& stream, std::string first) {
  ProxyHeader h;
  h.version = 1;
  h.bytes = std::move(first) + stream.recv_line() + "\n";
  char family[8], client[64], destination[64];
  unsigned client_port, destination_port;
  if (h.bytes.rfind("PROXY UNKNOWN", 0) == 0) return h;
  if (std::sscanf(h.bytes.c_str(), "PROXY %7s %63s %63s %u %u\r\n", family, client, destination, &client_port,
                  &destination_port) != 5) {
    throw std::runtime_error("not a PROXY v1 line: " + h.bytes);
  }
  const bool v4 = std::string_view(family) == "TCP4";
  const auto with_port = [v4](const char* address, unsigned port) {
    return v4 ? std::string(address) + ":" + std::to_string(port)
              : "[" + std::string(address) + "]:" + std::to_string(port);
  };
  h.client = with_port(client, client_port);
  h.destination = with_port(destination, destination_port);
  return h;
}

ProxyHeader read_v2(const TcpStream& stream, std::string first) {
  ProxyHeader h;
  h.version = 2;
  h.bytes = std::move(first);
  if (h.bytes.compare(0, 12, kV2Signature) != 0) throw std::runtime_error("not a PROXY v2 signature");
  const uint16_t length = big_endian(h.bytes, 14);
  h.bytes += stream.recv_exactly(length);
  const uint8_t version_command = static_cast<uint8_t>(h.bytes[12]),
                family = static_cast<uint8_t>(h.bytes[13]);
  if (version_command == 0x20) return h;
  if (version_command != 0x21) throw std::runtime_error("PROXY v2: unknown version or command");
  size_t next = 16;
  if (family == 0x11) {
    h.client = address_text(AF_INET, &h.bytes[16], big_endian(h.bytes, 24));
    h.destination = address_text(AF_INET, &h.bytes[20], big_endian(h.bytes, 26));
    next += 12;
  } else if (family == 0x21) {
    h.client = address_text(AF_INET6, &h.bytes[16], big_endian(h.bytes, 48));
    h.destination = address_text(AF_INET6, &h.bytes[32], big_endian(h.bytes, 50));
    next += 36;
  } else {
    throw std::runtime_error("PROXY v2: unknown family");
  }
  while (next < h.bytes.size()) {
    const size_t size = big_endian(h.bytes, next + 1);
    h.tlvs[static_cast<uint8_t>(h.bytes[next])] = h.bytes.substr(next + 3, size);
    next += 3 + size;
  }
  if (next != h.bytes.size()) throw std::runtime_error("PROXY v2: TLVs do not fill the header");
  return h;
}

}  // namespace

ProxyHeader read_proxy_header(const TcpStream& stream) {
  std::string first = stream.recv_exactly(6);  // neither version's header is shorter
  if (first == "PROXY ") return read_v1(stream, first);
  if (first != kV2Signature.substr(0, 6)) throw std::runtime_error("no PROXY header: '" + first + "'");
  return read_v2(stream, first + stream.recv_exactly(10));
}

}  // namespace penstock::test
