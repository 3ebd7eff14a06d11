// SPDX-License-Identifier: Apache-2.0
#include "base/endpoint.h"

#include <arpa/inet.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <type_traits>

namespace penstock {

static_assert(std::is_trivially_copyable_v<Endpoint> && sizeof(Endpoint) == 24);

namespace {

constexpr std::array<uint8_t, 12> kMappedPrefix = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
constexpr uint8_t kMappedBits = 96;

void clear_host_bits(IpAddress* address, uint8_t prefix_bits) {
  for (size_t i = 0; i < address->bytes.size(); ++i) {
    const int kept = std::clamp(prefix_bits - static_cast<int>(8 * i), 0, 8);
    address->bytes[i] &= static_cast<uint8_t>(0xff00 >> kept);
  }
}

}  // namespace

bool IpAddress::is_v4() const {
  return std::equal(kMappedPrefix.begin(), kMappedPrefix.end(), bytes.begin());
}

IpAddress IpAddress::v4(uint32_t host_order) {
  IpAddress a;
  std::copy(kMappedPrefix.begin(), kMappedPrefix.end(), a.bytes.begin());
  const uint32_t network_order = htonl(host_order);
  std::memcpy(&a.bytes[12], &network_order, sizeof network_order);
  return a;
}

std::optional<IpAddress> IpAddress::parse(std::string_view text) {
  char terminated[INET6_ADDRSTRLEN] = {};
  if (text.size() >= sizeof terminated || text.find('\0') != text.npos) return std::nullopt;
  text.copy(terminated, text.size());
  in_addr four;
  if (inet_pton(AF_INET, terminated, &four) == 1) return v4(ntohl(four.s_addr));
  IpAddress a;
  if (inet_pton(AF_INET6, terminated, a.bytes.data()) == 1) return a;
  return std::nullopt;
}

std::string IpAddress::text() const {
  char out[INET6_ADDRSTRLEN];
  if (is_v4()) {
    inet_ntop(AF_INET, &bytes[12], out, sizeof out);
  } else {
    inet_ntop(AF_INET6, bytes.data(), out, sizeof out);
  }
  return out;
}

bool Cidr::contains(const IpAddress& a) const {
  if (prefix_bits < kMappedBits && a.is_v4()) return false;
  IpAddress network = a;
  clear_host_bits(&network, prefix_bits);
  IpAddress own = address;
  clear_host_bits(&own, prefix_bits);
  return network == own;
}

std::optional<Cidr> Cidr::parse(std::string_view text) {
  const size_t slash = text.find('/');
  const std::optional<IpAddress> address = IpAddress::parse(text.substr(0, slash));
  if (!address) return std::nullopt;
  Cidr cidr{*address, 128};
  if (slash == text.npos) return cidr;

  // Not is_v4(): the bits of "::ffff:10.0.0.0/104" are counted in 128 as its notation is.
  const bool dotted_quad = text.find(':') == text.npos;
  const std::string_view digits = text.substr(slash + 1);
  unsigned bits = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), bits);
  if (error != std::errc{} || end != digits.data() + digits.size()) return std::nullopt;
  if (bits > (dotted_quad ? 32u : 128u)) return std::nullopt;
  cidr.prefix_bits = static_cast<uint8_t>(dotted_quad ? kMappedBits + bits : bits);
  clear_host_bits(&cidr.address, cidr.prefix_bits);
  return cidr;
}

std::string Cidr::text() const {
  const bool v4 = prefix_bits >= kMappedBits && address.is_v4();
  return address.text() + "/" + std::to_string(v4 ? prefix_bits - kMappedBits : prefix_bits);
}

std::optional<Endpoint> Endpoint::from_sockaddr(const sockaddr* a, socklen_t length) {
  Endpoint e;
  if (length >= sizeof(sockaddr_in) && a->sa_family == AF_INET) {
    sockaddr_in in;
    std::memcpy(&in, a, sizeof in);
    e.address = IpAddress::v4(ntohl(in.sin_addr.s_addr));
    e.port = ntohs(in.sin_port);
    return e;
  }
  if (length >= sizeof(sockaddr_in6) && a->sa_family == AF_INET6) {
    sockaddr_in6 in6;
    std::memcpy(&in6, a, sizeof in6);
    std::memcpy(e.address.bytes.data(), &in6.sin6_addr, e.address.bytes.size());
    e.port = ntohs(in6.sin6_port);
    e.scope_id = in6.sin6_scope_id;
    return e;
  }
  return std::nullopt;
}

socklen_t Endpoint::to_sockaddr(sockaddr_storage* out) const {
  *out = {};
  if (address.is_v4()) {
    sockaddr_in in{};
    in.sin_family = AF_INET;
    in.sin_port = htons(port);
    std::memcpy(&in.sin_addr, &address.bytes[12], sizeof in.sin_addr);
    std::memcpy(out, &in, sizeof in);
    return sizeof in;
  }
  sockaddr_in6 in6{};
  in6.sin6_family = AF_INET6;
  in6.sin6_port = htons(port);
  in6.sin6_scope_id = scope_id;
  std::memcpy(&in6.sin6_addr, address.bytes.data(), address.bytes.size());
  std::memcpy(out, &in6, sizeof in6);
  return sizeof in6;
}

std::string Endpoint::text() const {
  const std::string host = address.text();
  return (address.is_v4() ? host : "[" + host + "]") + ":" + std::to_string(port);
}

}  // namespace penstock
