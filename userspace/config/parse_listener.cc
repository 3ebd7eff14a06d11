// SPDX-License-Identifier: Apache-2.0
#include <net/if.h>

#include <algorithm>

#include "config/address.h"
#include "config/parser.h"
#include "config/sni_pattern.h"

namespace penstock::config {
namespace {

constexpr size_t kAlpnBytesMax = 255;  // RFC 7301 3.1
constexpr size_t kRoutesPerListenerMax = 1024;
constexpr size_t kPrefixesMax = 1024;  // of one key: they are tried one by one

Result<std::string> parse_alpn(std::string_view text) {
  if (!text.empty() && text.size() <= kAlpnBytesMax) return std::string(text);
  return Error{fmt::format("alpn {}; accepted: a protocol of 1 to 255 bytes like \"h2\"", quoted(text))};
}

// `key`: whose value it is.
Result<Cidr> parse_cidr(std::string_view key, std::string_view text) {
  const std::optional<Cidr> cidr = Cidr::parse(text);
  if (!cidr) {
    return Error{
        fmt::format("{} {}; accepted: an address or a prefix like \"192.0.2.0/24\", \"2001:db8::/32\"", key,
                    quoted(text))};
  }
  const std::string_view address = text.substr(0, text.find('/'));
  if (IpAddress::parse(address) == cidr->address) return *cidr;
  return Error{fmt::format("{} {} has bits beyond its prefix; accepted: \"{}\", or \"{}\" alone", key,
                           quoted(text), cidr->text(), address)};
}

// As the kernel has it: dev_valid_name() of net/core/dev.c; nothing unprintable besides.
bool is_device_name(std::string_view text) {
  return !text.empty() && text.size() < IFNAMSIZ && text != "." && text != ".." &&
         std::all_of(text.begin(), text.end(),
                     [](unsigned char c) { return c > ' ' && c != 0x7f && c != '/' && c != ':'; });
}

}  // namespace

std::optional<std::string> Parser::device(const Field& field) {
  constexpr std::string_view kAccepted = "a device's name of 1 to 15 bytes without '/', ':' or space";
  const std::optional<std::string> name = reader_.string(field, kAccepted);
  if (!name || is_device_name(*name)) return name;
  diagnostics_->error(field.node.at,
                      fmt::format("{} is {}; accepted: {}", field.key, quoted(*name), kAccepted));
  return std::nullopt;
}

std::function<void(const Field&)> Parser::prefixes(std::vector<Cidr>* out) {
  return [this, out](const Field& field) {
    constexpr std::string_view kAccepted = "strings like \"192.0.2.0/24\"";
    reader_.one_or_more(field, kAccepted, [&](const Field& item) {
      const std::optional<std::string> text = reader_.string(item, kAccepted);
      if (!text) return;
      if (auto cidr = reader_.value_or_report(parse_cidr(field.key, *text), item.node.at))
        out->push_back(*cidr);
    });
    if (out->size() > kPrefixesMax) {
      diagnostics_->error(field.node.at, fmt::format("{} has {} prefixes; accepted: at most {}", field.key,
                                                     out->size(), kPrefixesMax));
    }
  };
}

void Parser::listener(const Node& node) {
  Listener listener;
  listener.line = node.at.line;
  ListenerPlaces places;
  places.listener = places.name = places.upstream = node.at;
  const auto place = [&node](std::string_view key) {
    const Member* member = node.find(key);
    return member ? member->value.at : node.at;
  };
  places.name = place("name");
  places.upstream = place("upstream");

  Keys keys = {
      {"name", into(&listener.name, &Parser::name)},
      {"bind",
       [&](const Field& f) {
         constexpr std::string_view kAccepted = "strings like \":25\"";
         reader_.one_or_more(f, kAccepted, [&](const Field& item) {
           const std::optional<std::string> text = reader_.string(item, kAccepted);
           if (!text) return;
           if (std::optional<Bind> bind = reader_.value_or_report(parse_bind(*text), item.node.at)) {
             listener.bind.push_back(std::move(*bind));
             places.bind.push_back(item.node.at);
           }
         });
       }},
      {"upstream", into(&listener.upstream, &Parser::name)},
      {"route",
       [&](const Field& f) {
         reader_.tables(f, "[[listener.route]]", [&](const Node& r) { route(r, &listener, &places); });
       }},
      {"timeouts", section(timeout_keys(&listener.timeouts), "listener.timeouts")},
      {"interface", into(&listener.interface, &Parser::device)},
      {"accept_proxy", [&](const Field& f) { accept_proxy(f, &listener.accept_proxy); }},
      {"allow", prefixes(&listener.allow)},
      {"deny", prefixes(&listener.deny)},
      {"limits", section(listener_limit_keys(&listener.limits), "listener.limits")},
  };
  for (Key& key : timeout_keys(&listener.timeouts)) keys.push_back(std::move(key));
  for (Key& key : listener_limit_keys(&listener.limits)) keys.push_back(std::move(key));
  reader_.table(node, "in [[listener]]", "listener", keys);

  if (!node.find("name")) listener.name = fmt::format("listener{}", config_.listeners.size());
  if (!node.find("bind")) {
    diagnostics_->error(node.at, "this listener has no bind; accepted: bind = [\":25\"]");
  }
  if (!node.find("upstream")) {
    diagnostics_->error(
        node.at, "this listener has no upstream; accepted: upstream = \"NAME\", for when no route matches");
  }
  if (listener.routes.size() > kRoutesPerListenerMax) {
    diagnostics_->error(node.at, fmt::format("this listener has {} routes; accepted: at most {}",
                                             listener.routes.size(), kRoutesPerListenerMax));
  }
  config_.listeners.push_back(std::move(listener));
  places_.listeners.push_back(std::move(places));
}

void Parser::accept_proxy(const Field& field, AcceptProxy* out) {
  constexpr std::string_view kAccepted = "{ from = [\"192.0.2.1/32\"], others = \"reject\" or \"direct\" }";
  if (!reader_.is_table(field, kAccepted)) return;
  reader_.table(field.node, "in accept_proxy", "accept_proxy",
                {{"from",
                  [&](const Field& f) {
                    constexpr std::string_view kCidrs = "strings like \"192.0.2.1/32\"";
                    reader_.one_or_more(f, kCidrs, [&](const Field& item) {
                      const std::optional<std::string> text = reader_.string(item, kCidrs);
                      if (!text) return;
                      if (auto cidr = reader_.value_or_report(parse_cidr("from", *text), item.node.at))
                        out->from.push_back(*cidr);
                    });
                  }},
                 {"others", [&](const Field& f) {
                    const auto direct = reader_.choice<bool>(f, {{"reject", false}, {"direct", true}});
                    if (direct) out->others_direct = *direct;
                  }}});
  if (!field.node.find("from"))
    diagnostics_->error(field.node.at, fmt::format("accept_proxy without from; accepted: {}", kAccepted));
}

void Parser::route(const Node& node, Listener* listener, ListenerPlaces* places) {
  Route route;
  route.line = node.at.line;
  const auto strings = [&](std::string_view accepted, auto parse_one, auto* out) {
    return [this, accepted, parse_one, out](const Field& f) {
      reader_.one_or_more(f, accepted, [&](const Field& item) {
        const std::optional<std::string> text = reader_.string(item, accepted);
        if (!text) return;
        if (auto value = reader_.value_or_report(parse_one(*text), item.node.at))
          out->push_back(std::move(*value));
      });
    };
  };
  bool reject = false;
  reader_.table(node, "in [[listener.route]]", "listener.route",
                {{"sni", strings("strings like \"*.example.net\"", parse_sni_pattern, &route.sni)},
                 {"alpn", strings("strings like \"h2\"", parse_alpn, &route.alpn)},
                 {"source", prefixes(&route.source)},
                 {"port",
                  [&](const Field& f) {
                    reader_.one_or_more(f, "integers from 1 to 65535", [&](const Field& item) {
                      const auto port = reader_.integer(item, {1, 65535});
                      if (port) route.port.push_back(static_cast<uint16_t>(*port));
                    });
                  }},
                 {"upstream", into(&route.upstream, &Parser::name)},
                 {"action", [&](const Field& f) {
                    reject = reader_.choice<bool>(f, {{"reject", true}}).has_value();
                  }}});

  const bool has_criterion =
      node.find("sni") || node.find("alpn") || node.find("source") || node.find("port");
  if (!has_criterion) {
    diagnostics_->error(
        node.at,
        "this route matches everything, as the listener's own upstream does; accepted: at least "
        "one of sni, alpn, source, port");
  }
  const Member* upstream = node.find("upstream");
  if ((upstream != nullptr) == (node.find("action") != nullptr)) {
    diagnostics_->error(node.at,
                        fmt::format("this route has {} upstream {} action; accepted: upstream = \"NAME\", or "
                                    "action = \"reject\"",
                                    upstream ? "both" : "neither", upstream ? "and" : "nor"));
  }
  route.reject = reject;
  if (reject) route.upstream.clear();
  listener->routes.push_back(std::move(route));
  places->routes.push_back({node.at, upstream ? upstream->value.at : node.at});
}

}  // namespace penstock::config
