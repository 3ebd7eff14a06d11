// SPDX-License-Identifier: Apache-2.0
// Any text as an address, a prefix, a duration, a size, a host name, a server, a bind: what is understood
// says itself again, a prefix covers what bits compared one by one say, names are judged alike wherever they
// come from, and what is escaped is printable and loses nothing.
#include <arpa/inet.h>

#include <algorithm>
#include <string>

#include "base/endpoint.h"
#include "base/log.h"
#include "base/units.h"
#include "config/address.h"
#include "dns/name.h"
#include "support/fuzz_text.h"

namespace {

using namespace penstock;

void check_address(const std::string& text) {
  const auto address = IpAddress::parse(text);
  if (!address) return;
  PENSTOCK_ASSERT(IpAddress::parse(address->text()) == address);
  const Endpoint endpoint{.address = *address, .port = 443};
  sockaddr_storage out;
  const socklen_t size = endpoint.to_sockaddr(&out);
  PENSTOCK_ASSERT(Endpoint::from_sockaddr(reinterpret_cast<sockaddr*>(&out), size) == endpoint);
}

bool same_bits(const IpAddress& a, const IpAddress& b, int bits) {
  for (int i = 0; i < bits; ++i) {
    const size_t byte = static_cast<size_t>(i) / 8;
    const int mask = 0x80 >> i % 8;
    if ((a.bytes[byte] & mask) != (b.bytes[byte] & mask)) return false;
  }
  return true;
}

void check_prefix(const std::string& text, const std::string& other) {
  const auto cidr = Cidr::parse(text);
  if (!cidr) return;
  PENSTOCK_ASSERT(cidr->prefix_bits <= 128 && Cidr::parse(cidr->text()) == cidr);
  PENSTOCK_ASSERT(cidr->contains(cidr->address) || cidr->address.is_v4());
  const auto address = IpAddress::parse(other);
  if (!address) return;
  const bool other_family = address->is_v4() && cidr->prefix_bits < 96;
  PENSTOCK_ASSERT(cidr->contains(*address) ==
                  (!other_family && same_bits(cidr->address, *address, cidr->prefix_bits)));
}

void check_units(const std::string& text) {
  if (const auto duration = parse_duration(text)) {
    PENSTOCK_ASSERT(duration->count() >= 0 && parse_duration(duration_text(*duration)) == duration);
  }
  if (const auto size = parse_size(text)) PENSTOCK_ASSERT(parse_size(size_text(*size)) == size);
}

void check_name(const std::string& text) {
  const auto name = dns::canonical(text);
  if (name) PENSTOCK_ASSERT(dns::canonical(*name) == name && name->size() == text.size());
  std::string lower = text;
  for (char& c : lower)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  if (lower.ends_with('.')) lower.pop_back();
  PENSTOCK_ASSERT(name.has_value() == (test::is_name(lower) && lower.size() <= 253));
  if (config::is_host_name(text)) PENSTOCK_ASSERT(name);  // what may be configured may be asked for
}

void check_places(const std::string& text) {
  const auto server = config::parse_server(text);
  if (server) {
    const config::Server& s = server.value();
    PENSTOCK_ASSERT(s.text == text && !s.host.empty() && s.port != 0);
    PENSTOCK_ASSERT(s.address || dns::canonical(s.host));
  } else {
    test::check_printable(server.error().message);
  }
  const auto bind = config::parse_bind(text);
  if (bind) {
    PENSTOCK_ASSERT(bind.value().port != 0);
    if (!bind.value().address) return;
    const Endpoint endpoint{.address = *bind.value().address, .port = bind.value().port};
    const auto again = config::parse_bind(endpoint.text());
    PENSTOCK_ASSERT(again && again.value().address == bind.value().address);
  } else {
    test::check_printable(bind.error().message);
  }
}

void check_escaped(const std::string& text, size_t max) {
  const std::string escaped = log::escaped(text, max);
  test::check_printable(escaped);
  PENSTOCK_ASSERT(escaped.size() <= 4 * max && escaped.find('"') == escaped.npos);
  std::string back;
  for (size_t i = 0; i < escaped.size(); ++i) {
    if (escaped[i] != '\\') {
      back += escaped[i];
    } else {
      PENSTOCK_ASSERT(escaped.size() - i >= 4 && escaped[i + 1] == 'x');
      back += static_cast<char>(std::stoi(escaped.substr(i + 2, 2), nullptr, 16));
      i += 3;
    }
  }
  PENSTOCK_ASSERT(back == text.substr(0, max));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::vector<std::string> lines = test::lines_of(data, size, 4);
  for (const std::string& line : lines) {
    check_address(line);
    check_prefix(line, lines.back());
    check_units(line);
    check_name(line);
    check_places(line);
    check_escaped(line, 255);
    check_escaped(line, 7);
  }
  return 0;
}
