// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <map>

#include "base/units.h"
#include "bpf/abi.h"
#include "config/address.h"
#include "config/parser.h"

namespace penstock::config {
namespace {

constexpr int64_t kRetriesMax = 10;
constexpr milliseconds kIntervalLeast = std::chrono::seconds(1), kIntervalMost = std::chrono::hours(1);
constexpr milliseconds kTimeoutLeast{100}, kTimeoutMost = std::chrono::seconds(60);

constexpr size_t kNameBytesMax = 63;
bool is_name(std::string_view text) {
  return !text.empty() && text.size() <= kNameBytesMax && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_' || c == '.';
  });
}
// How the server would be written with a port.
std::string with_port(const Server& server) {
  return log::escaped(server.address && !server.address->is_v4() ? "[" + server.host + "]" : server.host) +
         ":25";
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

  UpstreamPlaces places{.upstream = member.at};
  Keys keys = {
      {"servers",
       [&](const Field& f) {
         reader_.one_or_more(f, "at least one server",
                             [&](const Field& item) { server(item, &upstream, &places); });
         if (upstream.servers.size() > kServersMax) {
           diagnostics_->error(f.node.at, fmt::format("{} servers; accepted: at most {}",
                                                      upstream.servers.size(), kServersMax));
         }
       }},
      {"srv", into(&upstream.srv, &Parser::srv_name)},
      {"proxy_protocol",
       [&](const Field& f) {
         const auto version = reader_.choice<ProxyProtocol>(
             f, {{"off", ProxyProtocol::off}, {"v1", ProxyProtocol::v1}, {"v2", ProxyProtocol::v2}});
         if (version) upstream.proxy_protocol = *version;
       }},
      {"tlvs",
       [&](const Field& f) {
         reader_.one_or_more(f, "\"unique_id\", \"crc32c\"", [&](const Field& item) {
           const auto tlv = reader_.choice<bool Upstream::*>(
               item, {{"unique_id", &Upstream::tlv_unique_id}, {"crc32c", &Upstream::tlv_crc32c}});
           if (tlv) upstream.*(*tlv) = true;
         });
       }},
      {"balance",
       [&](const Field& f) {
         const auto balance = reader_.choice<Balance>(f, {{"round_robin", Balance::round_robin},
                                                          {"least_flows", Balance::least_flows},
                                                          {"source_hash", Balance::source_hash}});
         if (balance) upstream.balance = *balance;
       }},
      {"check", [&](const Field& f) { upstream.check = check(f, &places); }},
      {"retries",
       [&](const Field& f) {
         if (const auto n = reader_.integer(f, {0, kRetriesMax}))
           upstream.retries = static_cast<uint32_t>(*n);
       }},
      {"family",
       [&](const Field& f) {
         const auto family =
             reader_.choice<Family>(f, {{"any", Family::any}, {"v4", Family::v4}, {"v6", Family::v6}});
         if (family) upstream.family = *family;
       }},
      {"source",
       [&](const Field& f) {
         constexpr std::string_view kAccepted = "an address of this host, \"192.0.2.1\" or \"2001:db8::1\"";
         const std::optional<std::string> text = reader_.string(f, kAccepted);
         if (!text) return;
         upstream.source = IpAddress::parse(*text);
         if (upstream.source) return;
         diagnostics_->error(f.node.at, fmt::format("source is {}; accepted: {}", quoted(*text), kAccepted));
       }},
      {"on_down",
       [&](const Field& f) {
         const auto on_down = reader_.choice<OnDown>(
             f, {{"try", OnDown::attempt}, {"refuse", OnDown::refuse}, {"close", OnDown::close}});
         if (on_down) upstream.on_down = *on_down;
       }},
      {"on_marked_down",
       [&](const Field& f) {
         const auto on_marked_down =
             reader_.choice<OnMarkedDown>(f, {{"keep", OnMarkedDown::keep}, {"close", OnMarkedDown::close}});
         if (on_marked_down) upstream.on_marked_down = *on_marked_down;
       }},
      {"timeouts", section(upstream_timeout_keys(&upstream.timeouts), "upstream.timeouts")},
  };
  for (Key& key : upstream_timeout_keys(&upstream.timeouts)) keys.push_back(std::move(key));
  reader_.table(member.value, fmt::format("in [upstream.{}]", log::escaped(member.key)), "upstream", keys);

  judge_servers(member.value, upstream, places);
  judge_families(member.value, upstream, places);
  if (upstream.source) upstream.family = upstream.source->is_v4() ? Family::v4 : Family::v6;
  judge_proxy_protocol(member.value, &upstream, places);
  config_.upstreams.push_back(std::move(upstream));
  places_.upstreams.push_back(member.at);
}

void Parser::server(const Field& field, Upstream* upstream, UpstreamPlaces* places) {
  constexpr std::string_view kAccepted = "a string or { address = \"host:port\" }";
  uint32_t weight = 1;
  bool backup = false;
  const Node* address = &field.node;
  if (field.node.kind == Node::Kind::table) {
    address = nullptr;
    reader_.table(field.node, "in a server", "upstream.servers",
                  {{"address", [&](const Field& f) { address = &f.node; }},
                   {"weight",
                    [&](const Field& f) {
                      const auto given = reader_.integer(f, {1, kWeightMax});
                      if (given) weight = static_cast<uint32_t>(*given);
                    }},
                   {"backup", [&](const Field& f) {
                      if (const auto given = reader_.boolean(f)) backup = *given;
                    }}});
    if (address == nullptr) {
      diagnostics_->error(field.node.at, fmt::format("a server without address; accepted: {}", kAccepted));
      return;
    }
  }
  const std::optional<std::string> text = reader_.string({field.key, *address}, kAccepted);
  if (!text) return;
  std::optional<Server> server = reader_.value_or_report(parse_server(*text), address->at);
  if (!server) return;
  server->weight = weight;
  server->backup = backup;
  upstream->servers.push_back(std::move(*server));
  places->servers.push_back(address->at);
}

std::optional<std::string> Parser::srv_name(const Field& field) {
  constexpr std::string_view kAccepted = "a name with SRV records, \"_imap._tcp.example.net\"";
  const std::optional<std::string> name = reader_.string(field, kAccepted);
  if (!name || (is_host_name(*name) && !IpAddress::parse(*name))) return name;
  diagnostics_->error(field.node.at, fmt::format("srv is {}; accepted: {}", quoted(*name), kAccepted));
  return std::nullopt;
}

// `check = "smtp"` is `check = { type = "smtp" }`.
std::optional<Check> Parser::check(const Field& field, UpstreamPlaces* places) {
  Check check;
  const auto type = [&](const Field& f) {
    const auto given = reader_.choice<CheckType>(f, {{"tcp", CheckType::tcp},
                                                     {"tls", CheckType::tls},
                                                     {"smtp", CheckType::smtp},
                                                     {"imap", CheckType::imap}});
    if (given) check.type = *given;
  };
  const auto in_a_row = [&](uint32_t* out) {
    return [this, out](const Field& f) {
      if (const auto n = reader_.integer(f, {1, 100})) *out = static_cast<uint32_t>(*n);
    };
  };
  if (field.node.kind == Node::Kind::string) {
    type(field);
    return check;
  }
  if (!reader_.is_table(field,
                        "\"tcp\", \"tls\", \"smtp\", \"imap\", or a table, { type = \"smtp\", port = 25 }"))
    return std::nullopt;
  reader_.table(field.node, "in a check", "upstream.check",
                {{"type", type},
                 {"port",
                  [&](const Field& f) {
                    if (const auto port = reader_.integer(f, {1, 65535}))
                      check.port = static_cast<uint16_t>(*port);
                  }},
                 {"interval",
                  [&](const Field& f) {
                    const auto interval = reader_.duration(f, kIntervalLeast, kIntervalMost);
                    if (interval) check.interval = *interval;
                  }},
                 {"timeout",
                  [&](const Field& f) {
                    const auto timeout = reader_.duration(f, kTimeoutLeast, kTimeoutMost);
                    if (timeout) check.timeout = *timeout;
                  }},
                 {"rise", in_a_row(&check.rise)},
                 {"fall", in_a_row(&check.fall)},
                 {"proxy",
                  [&](const Field& f) {
                    const auto proxy = reader_.choice<CheckProxy>(
                        f,
                        {{"local", CheckProxy::local}, {"own", CheckProxy::own}, {"off", CheckProxy::off}});
                    if (proxy) check.proxy = *proxy;
                    places->check_proxy = f.node.at;
                  }},
                 {"sni", into(&check.sni, &Parser::check_sni)}});
  if (const Member* sni = field.node.find("sni"); sni && check.type != CheckType::tls) {
    diagnostics_->error(sni->at,
                        "sni stands in a check that is not TLS; accepted: type = \"tls\", or no sni");
  }
  if (check.timeout > check.interval) {
    if (const Member* timeout = field.node.find("timeout")) {
      diagnostics_->error(timeout->value.at,
                          fmt::format("timeout is \"{}\", longer than the interval; accepted: at most \"{}\"",
                                      duration_text(check.timeout), duration_text(check.interval)));
    }
    check.timeout = check.interval;
  }
  return check;
}

std::optional<std::string> Parser::check_sni(const Field& field) {
  constexpr std::string_view kAccepted = "a host name";
  const std::optional<std::string> name = reader_.string(field, kAccepted);
  if (!name || is_host_name(*name)) return name;
  diagnostics_->error(field.node.at, fmt::format("sni is {}; accepted: {}", quoted(*name), kAccepted));
  return std::nullopt;
}

void Parser::judge_servers(const Node& node, const Upstream& upstream, const UpstreamPlaces& places) {
  const bool has_servers = node.find("servers") != nullptr;
  if (has_servers == (node.find("srv") != nullptr)) {
    diagnostics_->error(
        places.upstream,
        fmt::format("upstream {} has {}; accepted: servers = [\"host\", \"host:port\"], or srv = "
                    "\"_imap._tcp.example.net\"",
                    quoted(upstream.name), has_servers ? "both servers and srv" : "no servers"));
  }
  std::map<std::string_view, uint32_t> first_line;
  bool all_backup = !upstream.servers.empty();
  for (size_t i = 0; i < upstream.servers.size(); ++i) {
    const Server& server = upstream.servers[i];
    all_backup &= server.backup;
    const auto [first, is_new] = first_line.try_emplace(server.text, places.servers[i].line);
    if (is_new) continue;
    diagnostics_->error(places.servers[i],
                        fmt::format("server {} stands twice, first at line {}; accepted: once, with a weight",
                                    quoted(server.text), first->second));
  }
  if (all_backup) {
    diagnostics_->error(places.servers[0],
                        fmt::format("every server of upstream {} is a backup; accepted: at "
                                    "least one without backup = true",
                                    quoted(upstream.name)));
  }
  if (!upstream.check || upstream.check->port) return;
  for (const Server& server : upstream.servers) {
    if (server.port) continue;
    const Member* check = node.find("check");
    diagnostics_->error(
        check->value.at,
        fmt::format("this check has no port: server {} is reached at the port the client came "
                    "in on; accepted: check = {{ type = \"tcp\", port = 25 }}, or \"{}\" as "
                    "the server",
                    quoted(server.text), with_port(server)));
    return;
  }
}

// Addresses are of `family`, and what is dialled from `source` is of its family.
void Parser::judge_families(const Node& node, const Upstream& upstream, const UpstreamPlaces& places) {
  const std::string_view family = upstream.family == Family::v4 ? "v4" : "v6";
  const auto fits = [&](const IpAddress& address) {
    return upstream.family == Family::any || address.is_v4() == (upstream.family == Family::v4);
  };
  if (upstream.source && !fits(*upstream.source)) {
    diagnostics_->error(node.find("source")->value.at,
                        fmt::format("source {} is not of this upstream's family, \"{}\"",
                                    quoted(upstream.source->text()), family));
  }
  for (size_t i = 0; i < upstream.servers.size(); ++i) {
    const Server& server = upstream.servers[i];
    if (!server.address) continue;
    if (!fits(*server.address)) {
      diagnostics_->error(places.servers[i], fmt::format("server {} is not of this upstream's family, \"{}\"",
                                                         quoted(server.text), family));
    } else if (upstream.source && fits(*upstream.source) &&
               upstream.source->is_v4() != server.address->is_v4()) {
      diagnostics_->error(
          places.servers[i],
          fmt::format("server {} cannot be reached from this upstream's source, {}: they are of "
                      "two families",
                      quoted(server.text), quoted(upstream.source->text())));
    }
  }
}

void Parser::judge_proxy_protocol(const Node& node, Upstream* upstream, const UpstreamPlaces& places) {
  const ProxyProtocol version = upstream->proxy_protocol;
  if (const Member* tlvs = node.find("tlvs"); tlvs && version != ProxyProtocol::v2) {
    diagnostics_->error(tlvs->at,
                        fmt::format("tlvs with proxy_protocol = \"{}\"; accepted: proxy_protocol = \"v2\"",
                                    version == ProxyProtocol::v1 ? "v1" : "off"));
  }
  if (!upstream->check) return;
  if (!places.check_proxy) {
    upstream->check->proxy = version == ProxyProtocol::off  ? CheckProxy::off
                             : version == ProxyProtocol::v1 ? CheckProxy::own
                                                            : CheckProxy::local;
  } else if (upstream->check->proxy != CheckProxy::off && version == ProxyProtocol::off) {
    diagnostics_->error(
        *places.check_proxy,
        "this check would send a PROXY header, and this upstream speaks none; accepted: proxy = "
        "\"off\", or proxy_protocol = \"v1\" or \"v2\" in the upstream");
  }
}

}  // namespace penstock::config
