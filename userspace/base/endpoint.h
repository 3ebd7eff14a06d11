// SPDX-License-Identifier: Apache-2.0
// base/endpoint.h: an IP address, a prefix, an address with a port. Plain data: they live in shared memory.
// IPv4 is kept as v4-mapped v6 (RFC 4291 2.5.5.2), so one comparison serves both families.
#pragma once
#include <netinet/in.h>
#include <sys/socket.h>

#include <array>
#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace penstock {

struct IpAddress {
  std::array<uint8_t, 16> bytes{};  // network order
  bool is_v4() const;               // v4-mapped
  static IpAddress v4(uint32_t host_order);
  static std::optional<IpAddress> parse(
      std::string_view text);  // "192.0.2.1", "2001:db8::1"; no brackets, no zone
  std::string text() const;    // v4-mapped prints as dotted quad
  auto operator<=>(const IpAddress&) const = default;
};

// A prefix covers its own family alone: "::/0" is every IPv6 address and no IPv4 one.
struct Cidr {
  IpAddress address;          // parse() clears the bits beyond the prefix
  uint8_t prefix_bits = 128;  // of the 128: a v4 /24 is 120
  bool contains(const IpAddress& a) const;
  static std::optional<Cidr> parse(std::string_view text);  // "10.0.0.0/8", "::1" (a full-length prefix)
  std::string text() const;
  auto operator<=>(const Cidr&) const = default;
};

struct Endpoint {
  IpAddress address;
  uint16_t port = 0;      // host order
  uint16_t reserved = 0;  // keeps the layout explicit: this is stored in shared memory
  uint32_t scope_id = 0;  // link-local v6
  static std::optional<Endpoint> from_sockaddr(const sockaddr* a, socklen_t length);
  // Fills a sockaddr_in for v4-mapped, else a sockaddr_in6; returns its length.
  socklen_t to_sockaddr(sockaddr_storage* out) const;
  std::string text() const;  // "192.0.2.1:25", "[2001:db8::1]:25"
  auto operator<=>(const Endpoint&) const = default;
};

}  // namespace penstock
