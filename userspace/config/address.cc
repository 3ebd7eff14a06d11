// SPDX-License-Identifier: Apache-2.0
#include "config/address.h"

#include <algorithm>
#include <charconv>

#include "config/diagnostics.h"

namespace penstock::config {
namespace {

constexpr size_t kNameBytesMax = 253;
constexpr size_t kLabelBytesMax = 63;

struct HostPort {
  std::string_view host;
  std::optional<std::string_view> port;
  bool brackets = false;
};

// None when the brackets do not fit. Two colons or more without brackets are an IPv6 address without a port.
std::optional<HostPort> split(std::string_view text) {
  if (text.starts_with('[')) {
    const size_t close = text.find(']');
    if (close == text.npos) return std::nullopt;
    HostPort out{text.substr(1, close - 1), std::nullopt, true};
    const std::string_view rest = text.substr(close + 1);
    if (rest.empty()) return out;
    if (rest[0] != ':') return std::nullopt;
    out.port = rest.substr(1);
    return out;
  }
  const size_t colon = text.find(':');
  if (colon == text.npos || text.find(':', colon + 1) != text.npos) return HostPort{text, std::nullopt};
  return HostPort{text.substr(0, colon), text.substr(colon + 1)};
}

std::optional<uint16_t> parse_port(std::string_view text) {
  uint16_t port = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
  if (error != std::errc{} || end != text.data() + text.size() || port == 0) return std::nullopt;
  return port;
}

// "fd00::2:443", as "${HOST}:443" becomes when HOST is fd00::2.
bool has_a_port_perhaps(std::string_view v6) {
  const size_t colon = v6.rfind(':');
  return parse_port(v6.substr(colon + 1)) && IpAddress::parse(v6.substr(0, colon));
}

bool is_label(std::string_view label) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
  };
  return !label.empty() && label.size() <= kLabelBytesMax && label.front() != '-' && label.back() != '-' &&
         std::all_of(label.begin(), label.end(), allowed);
}

}  // namespace

bool is_host_name(std::string_view text) {
  if (text.ends_with('.')) text.remove_suffix(1);
  if (text.size() > kNameBytesMax) return false;
  for (;;) {
    const size_t dot = text.find('.');
    const std::string_view label = text.substr(0, dot);
    if (!is_label(label)) return false;
    if (dot == text.npos) return label.find_first_not_of("0123456789") != label.npos;
    text.remove_prefix(dot + 1);
  }
}

Result<Server> parse_server(std::string_view text) {
  const auto wrong = [&](std::string_view why) {
    return Error{fmt::format(
        "server {} {}; accepted: \"host\", \"host:port\", \"192.0.2.1:25\", \"[2001:db8::1]:443\", "
        "\"2001:db8::1\"",
        quoted(text), why)};
  };
  const std::optional<HostPort> parts = split(text);
  if (!parts) return wrong("has brackets that do not enclose an IPv6 address");
  Server server;
  server.text = text;
  server.host = parts->host;
  server.address = IpAddress::parse(parts->host);
  const bool written_as_v6 = parts->host.find(':') != text.npos;
  if (parts->brackets && !(server.address && written_as_v6)) {
    return wrong("has brackets that do not enclose an IPv6 address");
  }
  if (!server.address && !is_host_name(parts->host)) return wrong("is not a host name or an address");
  if (written_as_v6 && !parts->brackets && has_a_port_perhaps(parts->host))
    return wrong("may be an address with a port or one without: write it with brackets");
  if (parts->port) {
    server.port = parse_port(*parts->port);
    if (!server.port) return wrong("has no port from 1 to 65535 after the colon");
  }
  return server;
}

Result<Bind> parse_bind(std::string_view text) {
  const auto wrong = [&](std::string_view why) {
    return Error{
        fmt::format("bind {} {}; accepted: \":25\" (every IPv4 and IPv6 address), \"192.0.2.1:25\", "
                    "\"[2001:db8::1]:25\"",
                    quoted(text), why)};
  };
  const std::optional<HostPort> parts = split(text);
  if (!parts) return wrong("has brackets that do not enclose an IPv6 address");
  if (!parts->port) return wrong("has no port");
  Bind bind;
  bind.text = text;
  const bool everywhere = !parts->brackets && (parts->host.empty() || parts->host == "*");
  if (!everywhere) {
    bind.address = IpAddress::parse(parts->host);
    const bool written_as_v6 = parts->host.find(':') != text.npos;
    if (!bind.address || written_as_v6 != parts->brackets) return wrong("is not an address with a port");
  }
  const std::optional<uint16_t> port = parse_port(*parts->port);
  if (!port) return wrong("has no port from 1 to 65535 after the colon");
  bind.port = *port;
  return bind;
}

}  // namespace penstock::config
