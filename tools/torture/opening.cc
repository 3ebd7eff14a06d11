// SPDX-License-Identifier: Apache-2.0
#include "opening.h"

#include <fmt/format.h>

#include <vector>

namespace penstock::torture {
namespace {

using namespace std::string_literals;

std::string u16(uint64_t value) {
  return {static_cast<char>(value >> 8), static_cast<char>(value)};
}
std::string u24(uint64_t value) {
  return static_cast<char>(value >> 16) + u16(value);
}

std::string random_bytes(Dice& dice, uint64_t count) {
  std::string out;
  for (; count > 0; --count) out += static_cast<char>(dice.next() >> 32);
  return out;
}

std::string extension(uint16_t type, const std::string& body) {
  return u16(type) + u16(body.size()) + body;
}

// Case does not matter in a name, so it varies.
std::string draw_server_name(Dice& dice) {
  std::string label;
  for (uint64_t left = dice.log_uniform(1, 40); left > 0; --left) {
    label += static_cast<char>((dice.chance(50) ? 'a' : 'A') + dice.below(26));
  }
  return label + "." + std::string(kServerDomain);
}

std::string server_name_extension(Dice& dice) {
  const std::string name = draw_server_name(dice);
  return extension(0, u16(name.size() + 3) + "\0"s + u16(name.size()) + name);
}

// RFC 8446 5.1: a handshake message may be spread over records of at least one byte.
std::string in_records(Dice& dice, const std::string& message) {
  constexpr uint64_t kRecordsMax = 20;
  const uint64_t least = dice.chance(75) ? message.size() : message.size() / kRecordsMax + 1;
  std::string out;
  for (size_t at = 0; at < message.size();) {
    const size_t piece = std::min<size_t>(message.size() - at, dice.between(least, message.size()));
    out += "\x16\x03\x01"s + u16(piece) + message.substr(at, piece);
    at += piece;
  }
  return out;
}

std::string v1_header(const Proxied& p) {
  return fmt::format("PROXY {} {} {} {} {}\r\n", p.client.address.is_v4() ? "TCP4" : "TCP6",
                     p.client.address.text(), p.destination.address.text(), p.client.port,
                     p.destination.port);
}

std::string v2_address(const IpAddress& a) {
  const std::string bytes(reinterpret_cast<const char*>(a.bytes.data()), a.bytes.size());
  return a.is_v4() ? bytes.substr(12) : bytes;
}

std::string v2_header(Dice& dice, const Proxied& p) {
  constexpr char kNoop = 0x04, kUniqueId = 0x05, kCustom = static_cast<char>(0xe0);
  std::string body = v2_address(p.client.address) + v2_address(p.destination.address) + u16(p.client.port) +
                     u16(p.destination.port);
  for (char type : {kNoop, kUniqueId, kCustom}) {
    if (!dice.chance(20)) continue;
    const uint64_t size = dice.log_uniform(1, 120);
    body += type + u16(size) + random_bytes(dice, size);
  }
  return "\r\n\r\n\0\r\nQUIT\n\x21"s + (p.client.address.is_v4() ? '\x11' : '\x21') + u16(body.size()) + body;
}

}  // namespace

std::string make_client_hello(Dice& dice) {
  std::vector<std::string> extensions = {server_name_extension(dice), extension(43, "\2\3\4"s)};
  if (dice.chance(50)) extensions.push_back(extension(16, "\0\14\2h2\10http/1.1"s));
  if (dice.chance(50)) extensions.push_back(extension(0x1a1a, ""));  // RFC 8701
  if (dice.chance(50)) extensions.push_back(extension(21, std::string(dice.log_uniform(1, 4096), '\0')));
  std::string all;
  while (!extensions.empty()) {
    const auto one = extensions.begin() + static_cast<ptrdiff_t>(dice.below(extensions.size()));
    all += *one;
    extensions.erase(one);
  }
  const std::string session = random_bytes(dice, dice.chance(50) ? 32 : 0);
  const uint64_t suites = 2 * dice.between(1, 40);
  const std::string body = "\3\3"s + random_bytes(dice, 32) + static_cast<char>(session.size()) + session +
                           u16(suites) + random_bytes(dice, suites) + "\1\0"s + u16(all.size()) + all;
  return in_records(dice, "\1"s + u24(body.size()) + body);
}

Proxied draw_proxied(Dice& dice, uint64_t index) {
  Proxied out;
  const auto port = static_cast<uint16_t>(dice.between(1, 65535));
  if (dice.chance(50)) {  // 198.18.0.0/15, RFC 2544: 17 bits of the index in the address, 15 in the port
    out.client = {IpAddress::v4(0xc6120000 + static_cast<uint32_t>(index >> 15 & 0x1ffff)),
                  static_cast<uint16_t>(1024 + (index & 0x7fff))};
    out.destination = {IpAddress::v4(0xcb007100 + static_cast<uint32_t>(dice.between(1, 254))), port};
  } else {
    out.client = {*IpAddress::parse("2001:db8::"), static_cast<uint16_t>(dice.between(1024, 65535))};
    for (size_t i = 0; i < 8; ++i) out.client.address.bytes[15 - i] = static_cast<uint8_t>(index >> 8 * i);
    out.destination = {*IpAddress::parse("2001:db8:ffff::19"), port};
  }
  return out;
}

std::string make_proxy_header(Dice& dice, const Proxied& addresses) {
  return dice.chance(50) ? v1_header(addresses) : v2_header(dice, addresses);
}

}  // namespace penstock::torture
