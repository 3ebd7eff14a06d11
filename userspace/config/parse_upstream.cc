// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "bpf/abi.h"
#include "config/address.h"
#include "config/parser.h"

namespace penstock::config {
namespace {

constexpr size_t kNameBytesMax = 63;
bool is_name(std::string_view text) {
  return !text.empty() && text.size() <= kNameBytesMax && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_' || c == '.';
  });
}
constexpr std::string_view kNameAccepted = "1 to 63 letters, digits, '-', '_' and '.'";

}  // namespace

std::optional<std::string> Parser::name(const Field& field) {
  const std::optional<std::string> name = reader_.string(field, kNameAccepted);
  if (!name || is_name(*name)) return name;
  diagnostics_->error(field.node.at,
                      fmt::format("{} is {}; accepted: {}", field.key, quoted(*name), kNameAccepted));
  return std::nullopt;
}

void Parser::upstreams(const Field& field) {
  if (!reader_.is_table(field, "tables, each [upstream.NAME]")) return;
  for (const Member& member : field.node.members) upstream(member);
  if (config_.upstreams.size() > PENSTOCK_UPSTREAMS_MAX) {
    diagnostics_->error(field.node.at, fmt::format("{} upstreams; accepted: at most {}",
                                                   config_.upstreams.size(), PENSTOCK_UPSTREAMS_MAX));
  }
}

void Parser::upstream(const Member& member) {
  Upstream upstream;
  upstream.name = member.key;
  if (!is_name(member.key)) {
    diagnostics_->error(
        member.at, fmt::format("upstream {}; accepted: a name of {}", quoted(member.key), kNameAccepted));
  }
  if (!reader_.is_table({"upstream." + log::escaped(member.key), member.value}, "a table, [upstream.NAME]"))
    return;

  std::vector<Position> server_places;
  Keys keys = {
      {"servers",
       [&](const Field& f) {
         reader_.one_or_more(f, "at least one server",
                             [&](const Field& item) { server(item, &upstream, &server_places); });
       }},
      {"proxy_protocol",
       [&](const Field& f) {
         const auto version = reader_.choice<ProxyProtocol>(
             f, {{"off", ProxyProtocol::off}, {"v1", ProxyProtocol::v1}, {"v2", ProxyProtocol::v2}});
         if (version) upstream.proxy_protocol = *version;
       }},
      {"family",
       [&](const Field& f) {
         const auto family =
             reader_.choice<Family>(f, {{"any", Family::any}, {"v4", Family::v4}, {"v6", Family::v6}});
         if (family) upstream.family = *family;
       }},
      {"timeouts", section(upstream_timeout_keys(&upstream.timeouts), "upstream.timeouts")},
      {"srv"},
      {"tlvs"},
      {"balance"},
      {"check"},
      {"retries"},
      {"source"},
      {"on_down"},
      {"on_marked_down"},
  };
  for (Key& key : upstream_timeout_keys(&upstream.timeouts)) keys.push_back(std::move(key));
  reader_.table(member.value, fmt::format("in [upstream.{}]", log::escaped(member.key)), "upstream", keys);

  if (!member.value.find("servers")) {
    diagnostics_->error(
        member.at, fmt::format("upstream {} has no servers; accepted: servers = [\"host\", \"host:port\"]",
                               quoted(member.key)));
  }
  for (size_t i = 0; i < upstream.servers.size(); ++i) {
    const std::optional<IpAddress>& address = upstream.servers[i].address;
    if (!address || upstream.family == Family::any || address->is_v4() == (upstream.family == Family::v4))
      continue;
    diagnostics_->error(server_places[i], fmt::format("server {} is not of this upstream's family, \"{}\"",
                                                      quoted(upstream.servers[i].text),
                                                      upstream.family == Family::v4 ? "v4" : "v6"));
  }
  config_.upstreams.push_back(std::move(upstream));
  places_.upstreams.push_back(member.at);
}

void Parser::server(const Field& field, Upstream* upstream, std::vector<Position>* places) {
  constexpr std::string_view kAccepted = "a string or { address = \"host:port\" }";
  if (field.node.kind == Node::Kind::table) {
    reader_.table(
        field.node, "in a server", "upstream.servers",
        {{"address", [&](const Field& f) { server(f, upstream, places); }}, {"weight"}, {"backup"}});
    if (!field.node.find("address")) {
      diagnostics_->error(field.node.at, fmt::format("a server without address; accepted: {}", kAccepted));
    }
    return;
  }
  const std::optional<std::string> text = reader_.string(field, kAccepted);
  if (!text) return;
  if (std::optional<Server> server = reader_.value_or_report(parse_server(*text), field.node.at)) {
    upstream->servers.push_back(std::move(*server));
    places->push_back(field.node.at);
  }
}

}  // namespace penstock::config
