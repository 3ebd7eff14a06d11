// SPDX-License-Identifier: Apache-2.0
// What the daemon would do with one client, by the daemon's own code: configuration, route table, balance,
// resolver, PROXY header. No daemon is asked, so what only a running one knows (who is up, has fewest flows,
// is next in turn) stays open.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <future>

#include "base/log.h"
#include "commands.h"
#include "config/address.h"
#include "config/config.h"
#include "daemon/json.h"
#include "dns/resolver.h"
#include "header_fields.h"
#include "proxy_protocol/proxy_protocol.h"
#include "route/balance.h"
#include "route/route.h"
#include "table.h"

namespace penstock::command {
namespace {

// Words of PENSTOCK_CLOSE_REASONS.
constexpr const char* kNotTrusted = "proxy_not_trusted";
constexpr const char* kDenied = "denied";
constexpr const char* kRejected = "route_rejected";

int bad_usage(const std::string& message) {
  fail(message);
  return kBadUsage;
}

struct Client {
  Endpoint from;                 // port 0: not given
  std::optional<IpAddress> via;  // the proxy in front
  config::Bind to;
  std::string sni;  // as tls::ClientHello has it
  std::vector<std::string_view> alpn;
};

Result<Client> parse_client(const Explain& given) {
  Client client;
  const auto from = config::parse_server(given.from);
  if (!from || !from.value().address) {
    return Error{"--from " + log::escaped(given.from) +
                 ": accepted: 192.0.2.1, 192.0.2.1:40000, 2001:db8::1, [2001:db8::1]:40000"};
  }
  client.from = {*from.value().address, from.value().port.value_or(0)};
  const auto to = config::parse_bind(given.to);
  if (!to) return Error{"--to: " + to.error().message};
  client.to = to.value();
  if (client.to.address && client.to.address->is_v4() != client.from.address.is_v4()) {
    return Error{"--to and --from are of two families: no client comes so"};
  }
  if (given.via) {
    client.via = IpAddress::parse(*given.via);
    if (!client.via) return Error{"--via " + log::escaped(*given.via) + ": accepted: an address"};
  }
  client.sni = given.sni;
  std::transform(client.sni.begin(), client.sni.end(), client.sni.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 'a' - 'A') : c; });
  if (client.sni.ends_with('.')) client.sni.pop_back();
  if (!client.sni.empty() && !config::is_host_name(client.sni)) {
    return Error{"--sni " + log::escaped(given.sni) + ": accepted: a host name"};
  }
  for (const std::string& name : given.alpn) {
    if (name.empty() || name.size() > 255) return Error{"--alpn: accepted: names of 1 to 255 bytes"};
    client.alpn.push_back(name);
  }
  return client;
}

struct Taken {
  size_t listener = 0;
  const config::Bind* bind = nullptr;  // null: nothing listens there
  Endpoint destination;
  bool destination_known = true;
};

// As the kernel looks listening sockets up: the one of the very address before the one of every address.
// Without an address in --to it is that of every address, or the only one.
Result<Taken> find_bind(const config::Config& config, const Client& client) {
  const IpAddress every = client.from.address.is_v4() ? IpAddress::v4(INADDR_ANY) : IpAddress{};
  const std::optional<IpAddress>& to = client.to.address;
  std::vector<Taken> exact, wildcard;  // of the second at most one: config::parse sees to it
  for (size_t i = 0; i < config.listeners.size(); ++i) {
    for (const config::Bind& bind : config.listeners[i].bind) {
      if (bind.port != client.to.port) continue;
      if (!bind.address || *bind.address == every) {
        wildcard.push_back({i, &bind, {to.value_or(every), bind.port}, to.has_value()});
      } else if (to ? *bind.address == *to : bind.address->is_v4() == client.from.address.is_v4()) {
        exact.push_back({i, &bind, {*bind.address, bind.port}, true});
      }
    }
  }
  const bool by_address = !exact.empty() && (to || wildcard.empty());
  if (by_address && exact.size() > 1) {
    return Error{fmt::format("--to {}: more than one address listens there, {} and {}: say which",
                             client.to.text, exact[0].bind->text, exact[1].bind->text)};
  }
  if (by_address) return exact[0];
  return wildcard.empty() ? Taken{} : wildcard[0];
}

struct Explanation {
  const config::Config& config;
  Client client;
  Taken taken;
  const config::Listener& listener;
  const char* closed = nullptr;  // why the client gets nowhere
  route::Decision decision;      // what follows is valid while nothing has closed it
  const config::Upstream* upstream = nullptr;
  std::vector<uint32_t> order;       // of upstream->servers: each where those before cannot be had
  std::vector<dns::Answer> answers;  // of upstream->servers
  std::vector<uint8_t> header;       // empty: none is sent
  std::vector<std::string> notes;
};

bool covers(const std::vector<Cidr>& prefixes, const IpAddress& address) {
  return std::any_of(prefixes.begin(), prefixes.end(), [&](const Cidr& p) { return p.contains(address); });
}

// As flow::Upstream sees servers of which nothing is known yet.
std::vector<uint32_t> order_of(const config::Upstream& upstream, const IpAddress& client) {
  std::vector<route::Member> members;
  for (const config::Server& s : upstream.servers) members.push_back({s.text, s.weight, s.backup});
  route::Balance balance(upstream.balance, members);
  std::vector<bool> tried(members.size());
  std::vector<uint32_t> order;
  for (;;) {
    const auto next = balance.choose(
        client, [&](uint32_t i) { return !tried[i]; }, [](uint32_t) { return 0; });
    if (!next) return order;
    tried[*next] = true;
    order.push_back(*next);
  }
}

std::vector<dns::Answer> answers_of(const config::Dns& dns, const config::Upstream& upstream) {
  std::vector<dns::Answer> answers(upstream.servers.size());
  std::vector<std::promise<dns::Answer>> promises(upstream.servers.size());
  const auto resolver = dns::Resolver::start({dns.servers, dns.ttl_min, dns.ttl_max, dns.stale});
  for (size_t i = 0; i < upstream.servers.size(); ++i) {
    const config::Server& s = upstream.servers[i];
    dns::Answer answer;
    if (s.address) {
      answer.addresses.push_back(*s.address);
      promises[i].set_value(answer);
    } else if (!resolver) {
      answer.error = resolver.error().message;
      promises[i].set_value(answer);
    } else {
      resolver.value()->resolve(s.host, static_cast<dns::Family>(upstream.family),
                                [&promise = promises[i]](const dns::Answer& a) { promise.set_value(a); });
    }
  }
  for (size_t i = 0; i < answers.size(); ++i) answers[i] = promises[i].get_future().get();
  return answers;
}

// What flow/prime.cc says of such a flow.
std::vector<uint8_t> header_of(const Explanation& e) {
  using namespace proxy_protocol;
  const config::ProxyProtocol version = e.upstream->proxy_protocol;
  if (version == config::ProxyProtocol::off) return {};
  Outgoing what;
  what.version = version == config::ProxyProtocol::v1 ? Version::v1 : Version::v2;
  what.client = e.client.from;
  what.destination = e.taken.destination;
  what.authority = e.client.sni;
  if (!e.client.alpn.empty()) what.alpn = e.client.alpn[0];
  what.crc32c = e.upstream->tlv_crc32c;
  std::vector<uint8_t> header(kHeaderBytesMax);
  header.resize(encode(what, header));
  return header;
}

const char* refusal(Explanation* e) {
  const config::AcceptProxy& accept = e->listener.accept_proxy;
  const IpAddress& peer = e->client.via ? *e->client.via : e->client.from.address;
  const bool trusted = covers(accept.from, peer);
  if (!trusted && (e->client.via || (!accept.from.empty() && !accept.others_direct))) return kNotTrusted;
  if (trusted && !e->client.via) {
    e->notes.push_back(
        fmt::format("{0} is a trusted proxy, which says with a PROXY header who the client is; for that "
                    "client: --from CLIENT --via {0}",
                    peer.text()));
  }
  return route::allows(e->listener, e->client.from.address) ? nullptr : kDenied;
}

void decide(Explanation* e) {
  const route::Table routes(e->config);
  const uint32_t listener = static_cast<uint32_t>(e->taken.listener);
  if (!routes.needs_client_hello(listener) && !(e->client.sni.empty() && e->client.alpn.empty())) {
    e->notes.push_back("no route of this listener asks for SNI or ALPN: the daemon does not look at them");
    e->client.sni.clear();
    e->client.alpn.clear();
  }
  e->decision =
      routes.decide(listener, {e->client.sni, e->client.alpn, e->client.from.address, e->client.to.port});
  if (e->decision.reject) {
    e->closed = kRejected;
    return;
  }
  e->upstream = &e->config.upstreams[e->decision.upstream];
  e->order = order_of(*e->upstream, e->client.from.address);
  e->answers = answers_of(e->config.dns, *e->upstream);
  e->header = header_of(*e);
}

void add_notes(Explanation* e) {
  if (!e->upstream) return;
  if (!e->upstream->srv.empty()) {
    e->notes.push_back(
        fmt::format("the servers are those of {}, which this command does not ask for", e->upstream->srv));
  }
  if (e->order.size() > 1) {
    e->notes.push_back(
        "servers that the daemon knows to be down or drained are passed over: penstock status");
  }
  if (e->header.empty()) return;
  if (!e->taken.destination_known) {
    e->notes.push_back(
        fmt::format("the destination is not known; with it: --to ADDRESS{}", e->client.to.text));
  }
  if (e->client.from.port == 0)
    e->notes.push_back("the client's port is not known; with it: --from ADDRESS:PORT");
  if (e->upstream->tlv_unique_id) {
    e->notes.push_back("UNIQUE_ID is each flow's own, and not in this header");
  }
}

// How the first server comes to be the first.
const char* choice(const config::Upstream& upstream) {
  if (upstream.servers.size() == 1) return "the only one";
  switch (upstream.balance) {
    case config::Balance::round_robin:
      return "next in turn, first of";
    case config::Balance::least_flows:
      return "the one with fewest flows for its weight, while equal the first of";
    case config::Balance::source_hash:
      return "this client's, then while that cannot be had the next of";
  }
  return "";
}

const char* balance_text(config::Balance balance) {
  switch (balance) {
    case config::Balance::round_robin:
      return "round_robin";
    case config::Balance::least_flows:
      return "least_flows";
    case config::Balance::source_hash:
      return "source_hash";
  }
  return "";
}

std::vector<std::string> endpoints_of(const Explanation& e, uint32_t server) {
  std::vector<std::string> out;
  for (const IpAddress& address : e.answers[server].addresses) {
    out.push_back(Endpoint{address, e.upstream->servers[server].port.value_or(e.client.to.port)}.text());
  }
  return out;
}

std::string header_text(const Explanation& e) {
  switch (e.upstream->proxy_protocol) {
    case config::ProxyProtocol::off:
      return "none\n";
    case config::ProxyProtocol::v1:
      return fmt::format(
          "v1, {} bytes\n  {}\\r\\n\n", e.header.size(),
          std::string_view(reinterpret_cast<const char*>(e.header.data()), e.header.size() - 2));
    case config::ProxyProtocol::v2:
      return fmt::format("v2, {} bytes\n{}", e.header.size(), header_dump(header_fields(e.header)));
  }
  return "";
}

std::string route_text(const Explanation& e) {
  if (e.decision.route < 0) return "none matches: the listener's own upstream";
  const auto index = static_cast<size_t>(e.decision.route);
  return fmt::format("{} of {}, line {}", index + 1, e.listener.routes.size(), e.listener.routes[index].line);
}

std::string servers_text(const Explanation& e) {
  std::string out = fmt::format("servers   {}\n", e.order.empty() ? "by DNS" : choice(*e.upstream));
  Table table({"  SERVER", "ADDRESSES NOW", ">WEIGHT", ""});
  for (const uint32_t i : e.order) {
    const config::Server& s = e.upstream->servers[i];
    std::string addresses;
    for (const std::string& endpoint : endpoints_of(e, i))
      addresses += (addresses.empty() ? "" : ", ") + endpoint;
    table.add({"  " + log::escaped(s.text), addresses.empty() ? e.answers[i].error : addresses,
               std::to_string(s.weight), s.backup ? "backup" : ""});
  }
  return table.empty() ? out : out + table.text();
}

std::string text_of(const Explanation& e) {
  std::string out =
      fmt::format("listener  {}, line {}, bind {}\n", e.listener.name, e.listener.line, e.taken.bind->text);
  out += fmt::format(
      "client    {}{} to {}: {}\n", e.client.from.port ? e.client.from.text() : e.client.from.address.text(),
      e.client.via ? " by proxy " + e.client.via->text() : "",
      e.taken.destination_known ? e.taken.destination.text() : e.client.to.text,
      e.closed == nullptr || e.closed == kRejected ? "allowed" : fmt::format("closed, {}", e.closed));
  if (e.closed == nullptr || e.closed == kRejected) out += fmt::format("route     {}\n", route_text(e));
  if (e.closed == kRejected) out += fmt::format("          closed, {}\n", kRejected);
  if (e.upstream) {
    out += fmt::format("upstream  {}, {}\n", e.upstream->name, balance_text(e.upstream->balance));
    out += servers_text(e);
    out += fmt::format("source    {}\n",
                       e.upstream->source ? e.upstream->source->text() : "as the kernel chooses");
    out += "header    " + header_text(e);
  }
  for (const std::string& note : e.notes) out += "note      " + note + "\n";
  return out;
}

Json json_of(const Explanation& e) {
  Json out = {
      {"listener", {{"name", e.listener.name}, {"line", e.listener.line}, {"bind", e.taken.bind->text}}},
      {"client", e.client.from.text()},
      {"destination", e.taken.destination.text()},
      {"closed", nullptr},
      {"notes", e.notes}};
  if (e.closed) out["closed"] = e.closed;
  if (e.closed && e.closed != kRejected) return out;
  out["route"] = nullptr;
  if (e.decision.route >= 0) {
    const auto index = static_cast<size_t>(e.decision.route);
    out["route"] = {{"index", index}, {"line", e.listener.routes[index].line}};
  }
  if (!e.upstream) return out;
  out["upstream"] = e.upstream->name;
  out["balance"] = balance_text(e.upstream->balance);
  out["servers"] = Json::array();
  for (const uint32_t i : e.order) {
    const config::Server& s = e.upstream->servers[i];
    out["servers"].push_back({{"server", s.text},
                              {"weight", s.weight},
                              {"backup", s.backup},
                              {"addresses", endpoints_of(e, i)},
                              {"error", e.answers[i].error}});
  }
  out["source"] = nullptr;
  if (e.upstream->source) out["source"] = e.upstream->source->text();
  out["header"] = nullptr;
  if (e.header.empty()) return out;
  out["header"] = {{"hexadecimal", hexadecimal(e.header, "")}, {"fields", Json::array()}};
  if (e.upstream->proxy_protocol == config::ProxyProtocol::v1) return out;
  for (const HeaderField& f : header_fields(e.header)) {
    out["header"]["fields"].push_back(
        {{"offset", f.offset}, {"bytes", hexadecimal(f.bytes, "")}, {"meaning", f.meaning}});
  }
  return out;
}

}  // namespace

int explain(const Explain& what) {
  const config::Parsed parsed = config::load(what.file, what.env_file);
  if (!parsed.config) {
    for (const auto& d : parsed.diagnostics) std::fputs((d.text + "\n").c_str(), stderr);
    return kBadUsage;
  }
  const auto client = parse_client(what);
  if (!client) return bad_usage(client.error().message);
  const auto taken = find_bind(*parsed.config, client.value());
  if (!taken) return bad_usage(taken.error().message);
  if (taken.value().bind == nullptr) {
    return fail(fmt::format("nothing listens on {} for clients of IPv{}", client.value().to.text,
                            client.value().from.address.is_v4() ? 4 : 6));
  }
  Explanation e{*parsed.config, client.value(), taken.value(),
                parsed.config->listeners[taken.value().listener]};
  e.closed = refusal(&e);
  if (!e.closed) decide(&e);
  add_notes(&e);
  print(what.json ? json_line(json_of(e)) + "\n" : text_of(e));
  return e.closed ? kFailed : kDone;
}

}  // namespace penstock::command
