// SPDX-License-Identifier: Apache-2.0
#include "proxy_header.h"

#include <charconv>
#include <cstring>
#include <vector>

namespace penstock::torture {
namespace {

using State = ProxyHeader::State;
using namespace std::string_view_literals;

constexpr size_t kV1LineMax = 107;

bool parse_port(std::string_view text, uint16_t* port) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *port);
  return error == std::errc{} && end == text.data() + text.size();
}

bool parse_v1_pair(std::string_view address, std::string_view port, bool v4, Endpoint* out) {
  const auto ip = IpAddress::parse(address);
  if (!ip || (address.find(':') == address.npos) != v4) return false;
  out->address = *ip;
  return parse_port(port, &out->port);
}

ProxyHeader read_v1(std::string_view bytes) {
  const size_t end = bytes.substr(0, kV1LineMax).find("\r\n");
  if (end == bytes.npos) return {bytes.size() < kV1LineMax ? State::need_more : State::bad};
  std::vector<std::string_view> words;
  for (std::string_view rest = bytes.substr(0, end);;) {
    const size_t space = rest.find(' ');
    words.push_back(rest.substr(0, space));
    if (space == rest.npos) break;
    rest.remove_prefix(space + 1);
  }
  if (words.size() < 2 || words[0] != "PROXY") return {State::bad};
  ProxyHeader header{State::complete, end + 2};
  if (words[1] == "UNKNOWN") {
    header.state = State::local;
    return header;
  }
  const bool v4 = words[1] == "TCP4";
  if (words.size() != 6 || (!v4 && words[1] != "TCP6")) return {State::bad};
  if (!parse_v1_pair(words[2], words[4], v4, &header.client)) return {State::bad};
  if (!parse_v1_pair(words[3], words[5], v4, &header.destination)) return {State::bad};
  return header;
}

uint16_t read_u16(const char* at) {
  return static_cast<uint16_t>(static_cast<uint8_t>(at[0]) << 8 | static_cast<uint8_t>(at[1]));
}

IpAddress read_address(const char* at, size_t bytes) {
  IpAddress a;
  if (bytes == 4) {
    a.bytes[10] = a.bytes[11] = 0xff;
    std::memcpy(&a.bytes[12], at, 4);
  } else {
    std::memcpy(a.bytes.data(), at, 16);
  }
  return a;
}

ProxyHeader read_v2(std::string_view bytes) {
  constexpr std::string_view kSignature = "\r\n\r\n\0\r\nQUIT\n"sv;
  constexpr size_t kFixed = 16;
  const std::string_view start = bytes.substr(0, kSignature.size());
  if (start != kSignature.substr(0, start.size())) return {State::bad};
  if (bytes.size() < kFixed) return {State::need_more};
  const size_t total = kFixed + read_u16(&bytes[14]);
  if (bytes.size() < total) return {State::need_more};
  const char command = bytes[12], family = bytes[13];
  if (command == '\x20') return {State::local, total};
  const size_t address_bytes = family == '\x11' ? 4 : family == '\x21' ? 16 : 0;
  if (command != '\x21' || address_bytes == 0 || total < kFixed + 2 * address_bytes + 4) return {State::bad};
  const char* at = &bytes[kFixed];
  ProxyHeader header{State::complete, total};
  header.client.address = read_address(at, address_bytes);
  header.destination.address = read_address(at + address_bytes, address_bytes);
  header.client.port = read_u16(at + 2 * address_bytes);
  header.destination.port = read_u16(at + 2 * address_bytes + 2);
  return header;
}

}  // namespace

ProxyHeader read_proxy_header(Preamble kind, std::string_view bytes) {
  return kind == Preamble::v1 ? read_v1(bytes) : read_v2(bytes);
}

}  // namespace penstock::torture
