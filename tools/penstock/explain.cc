// SPDX-License-Identifier: Apache-2.0
// What the daemon would do with one client, by the daemon's own code: configuration, route table, servers,
// resolver, PROXY header. No daemon is asked, so what only a running one knows (who is up, has fewest flows,
// is next in turn) stays open.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <future>
#include <set>

#include "base/log.h"
#include "commands.h"
#include "config/address.h"
#include "config/config.h"
#include "daemon/json.h"
#include "dns/resolver.h"
#include "flow/upstream.h"
#include "header_fields.h"
#include "proxy_protocol/proxy_protocol.h"
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
  std::string interface;  // empty: not given
  const IpAddress& peer() const { return via ? *via : from.address; }
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
  if (given.via) {
    client.via = IpAddress::parse(*given.via);
    if (!client.via) return Error{"--via " + log::escaped(*given.via) + ": accepted: an address"};
  }
  if (client.to.address && client.to.address->is_v4() != client.peer().is_v4()) {
    return Error{
        fmt::format("--to and {} are of two families: nobody comes so", client.via ? "--via" : "--from")};
  }
  client.interface = given.interface;
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
// Without an address in --to it is that of every address, or the only one. `interface`: of those bound to
// this device; empty: to none.
Result<Taken> find_bind(const config::Config& config, const Client& client, const std::string& interface) {
  const bool v4 = client.peer().is_v4();
  const IpAddress every = v4 ? IpAddress::v4(INADDR_ANY) : IpAddress{};
  const std::optional<IpAddress>& to = client.to.address;
  std::vector<Taken> exact, wildcard;  // of the second at most one: config::parse sees to it
  for (size_t i = 0; i < config.listeners.size(); ++i) {
    if (config.listeners[i].interface != interface) continue;
    for (const config::Bind& bind : config.listeners[i].bind) {
      if (bind.port != client.to.port) continue;
      if (!bind.address || *bind.address == every) {
        wildcard.push_back({i, &bind, {to.value_or(every), bind.port}, to.has_value()});
      } else if (to ? *bind.address == *to : bind.address->is_v4() == v4) {
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

// The kernel prefers those bound to the device that the client comes in by.
Result<Taken> find_bind(const config::Config& config, const Client& client) {
  if (!client.interface.empty()) {
    auto bound = find_bind(config, client, client.interface);
    if (!bound || bound.value().bind) return bound;
  }
  auto anywhere = find_bind(config, client, "");
  if (!anywhere || anywhere.value().bind || !client.interface.empty()) return anywhere;
  std::set<std::string> devices;  // the only one there is will be meant
  for (const config::Listener& l : config.listeners) {
    const auto bound = find_bind(config, client, l.interface);
    if (bound && bound.value().bind) devices.insert(l.interface);
  }
  return devices.size() == 1 ? find_bind(config, client, *devices.begin()) : anywhere;
}

// Without --interface: where else would such a client be, by the device?
std::vector<std::string> device_notes(const config::Config& config, const Client& client) {
  std::vector<std::string> notes;
  for (const config::Listener& l : config.listeners) {
    if (l.interface.empty() || !client.interface.empty()) continue;
    const auto bound = find_bind(config, client, l.interface);
    if (bound && bound.value().bind)
      notes.push_back(
          fmt::format("clients that come in by the device {0} are at listener {1}: --interface {0}",
                      l.interface, config.listeners[bound.value().listener].name));
  }
  return notes;
}

struct Candidate {
  config::Server server;
  dns::Answer answer;  // its addresses
};

struct Explanation {
  const config::Config& config;
  Client client;
  Taken taken;
  const config::Listener& listener;
  const char* closed = nullptr;  // why the client gets nowhere
  std::string reason;            // the same as a sentence
  route::Decision decision;      // what follows is valid while nothing has closed it
  const config::Upstream* upstream = nullptr;
  std::vector<Candidate> servers;  // each where those before cannot be had
  std::vector<uint8_t> header;     // empty: none is sent
  std::vector<std::string> notes;
};

using Asked = std::promise<dns::Answer>;

void ask_servers(Explanation* e) {
  const config::Dns& dns = e->config.dns;
  const config::Upstream& u = *e->upstream;
  const auto resolver = dns::Resolver::start({dns.servers, dns.ttl_min, dns.ttl_max, dns.stale});
  // Of these servers nothing is known yet.
  flow::Upstream upstream(u, nullptr);
  if (!u.srv.empty()) {
    Asked asked;
    if (resolver)
      resolver.value()->resolve_srv(u.srv, [&](const dns::Answer& a) { asked.set_value(a); });
    else
      asked.set_value({.error = resolver.error().message});
    upstream.set_answer(asked.get_future().get());
    if (const std::string error = upstream.error(); !error.empty())
      e->notes.push_back(fmt::format("{}: {}", u.srv, error));
  }
  std::vector<const flow::Server*> order;
  while (const flow::Server* next = upstream.choose(e->client.from.address, order, 0)) order.push_back(next);
  std::vector<Asked> asked(order.size());
  for (size_t i = 0; i < order.size(); ++i) {
    const config::Server& s = order[i]->what();
    if (s.address) {
      asked[i].set_value({.addresses = {*s.address}});
    } else if (!resolver) {
      asked[i].set_value({.error = resolver.error().message});
    } else {
      resolver.value()->resolve(s.host, static_cast<dns::Family>(u.family),
                                [&one = asked[i]](const dns::Answer& a) { one.set_value(a); });
    }
  }
  for (size_t i = 0; i < order.size(); ++i)
    e->servers.push_back({order[i]->what(), asked[i].get_future().get()});
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
  const std::vector<uint8_t> placeholder(kOwnUniqueIdBytes);
  if (e.upstream->tlv_unique_id) what.unique_id = placeholder;
  std::vector<uint8_t> header(kHeaderBytesMax);
  header.resize(encode(what, header));
  return header;
}

void turn_away(Explanation* e, const char* closed, std::string reason) {
  e->closed = closed;
  e->reason = std::move(reason);
}

// Is the client turned away before it is routed?
void admit(Explanation* e) {
  const config::AcceptProxy& accept = e->listener.accept_proxy;
  const IpAddress& client = e->client.from.address;
  const IpAddress& peer = e->client.peer();
  const bool trusted = route::covers(accept.from, peer);
  if (!trusted && e->client.via)
    return turn_away(e, kNotTrusted,
                     fmt::format("{} is not in accept_proxy.from: a PROXY header of its is not believed, the "
                                 "connection is closed",
                                 peer.text()));
  if (!trusted && !accept.from.empty() && !accept.others_direct)
    return turn_away(e, kNotTrusted,
                     fmt::format("{} is not in accept_proxy.from, and others are rejected", peer.text()));
  if (trusted && !e->client.via) {
    e->notes.push_back(
        fmt::format("{0} is a trusted proxy, which says with a PROXY header who the client is; for that "
                    "client: --from CLIENT --via {0}",
                    peer.text()));
  }
  if (route::allows(e->listener, client)) return;
  const bool denied = route::covers(e->listener.deny, client);
  turn_away(e, kDenied,
            fmt::format("{} is {} of this listener", client.text(), denied ? "in deny" : "not in allow"));
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
    return turn_away(e, kRejected, "the route says action = \"reject\"");
  }
  e->upstream = &e->config.upstreams[e->decision.upstream];
  ask_servers(e);
  e->header = header_of(*e);
}

void add_notes(Explanation* e) {
  if (!e->upstream) return;
  if (e->servers.size() > 1) {
    e->notes.push_back(
        "servers that the daemon knows to be down or drained are passed over: penstock status");
  }
  if (e->header.empty()) return;
  if (e->client.via) {
    e->notes.push_back(fmt::format("the header's destination is the one that {} tells: here that of --to",
                                   e->client.via->text()));
  } else if (!e->taken.destination_known) {
    e->notes.push_back(
        fmt::format("the destination is not known; with it: --to ADDRESS{}", e->client.to.text));
  }
  if (e->client.from.port == 0)
    e->notes.push_back("the client's port is not known; with it: --from ADDRESS:PORT");
  if (e->upstream->proxy_protocol != config::ProxyProtocol::v2) return;
  if (e->upstream->tlv_unique_id) {
    e->notes.push_back(
        fmt::format("UNIQUE_ID differs for each flow: \"??\" stands for its {} bytes{}",
                    proxy_protocol::kOwnUniqueIdBytes,
                    e->upstream->tlv_crc32c ? ", and for CRC32C, which cannot be computed without it" : ""));
  }
  if (e->client.via) {
    e->notes.push_back(fmt::format(
        "TLVs that {} sends are passed on, its UNIQUE_ID in the place of ours: they are not in this "
        "header",
        e->client.via->text()));
  }
}

// How the first server comes to be the first.
const char* choice(const Explanation& e) {
  if (e.servers.size() == 1) return "the only one";
  switch (e.upstream->balance) {
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

std::vector<std::string> endpoints_of(const Explanation& e, const Candidate& c) {
  std::vector<std::string> out;
  for (const IpAddress& address : c.answer.addresses)
    out.push_back(Endpoint{address, c.server.port.value_or(e.client.to.port)}.text());
  return out;
}

std::vector<HeaderField> fields_of(const Explanation& e) {
  return header_fields(e.header, !e.upstream->tlv_unique_id);
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
      return fmt::format("v2, {} bytes\n{}", e.header.size(), header_dump(fields_of(e)));
  }
  return "";
}

std::string route_text(const Explanation& e) {
  if (e.decision.route < 0) return "none matches: the listener's own upstream";
  const auto index = static_cast<size_t>(e.decision.route);
  return fmt::format("{} of {}, line {}", index + 1, e.listener.routes.size(), e.listener.routes[index].line);
}

std::string servers_text(const Explanation& e) {
  std::string out = fmt::format("servers   {}{}\n", e.upstream->srv.empty() ? "" : e.upstream->srv + ": ",
                                e.servers.empty() ? "none" : choice(e));
  Table table({"  SERVER", "ADDRESSES NOW", ">WEIGHT", ""});
  for (const Candidate& c : e.servers) {
    std::string addresses;
    for (const std::string& endpoint : endpoints_of(e, c))
      addresses += (addresses.empty() ? "" : ", ") + endpoint;
    table.add({"  " + log::escaped(c.server.text), addresses.empty() ? c.answer.error : addresses,
               std::to_string(c.server.weight), c.server.backup ? "backup" : ""});
  }
  return table.empty() ? out : out + table.text();
}

std::string closed_text(const Explanation& e) {
  return fmt::format("closed, {}: {}", e.closed, e.reason);
}

std::string text_of(const Explanation& e) {
  std::string out =
      fmt::format("listener  {}, line {}, bind {}\n", e.listener.name, e.listener.line, e.taken.bind->text);
  out += fmt::format("client    {}{} to {}: {}\n",
                     e.client.from.port ? e.client.from.text() : e.client.from.address.text(),
                     e.client.via ? " by proxy " + e.client.via->text() : "",
                     e.taken.destination_known ? e.taken.destination.text() : e.client.to.text,
                     e.closed == nullptr || e.closed == kRejected ? "allowed" : closed_text(e));
  if (e.closed == nullptr || e.closed == kRejected) out += fmt::format("route     {}\n", route_text(e));
  if (e.closed == kRejected) out += fmt::format("          {}\n", closed_text(e));
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
      {"reason", e.reason},
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
  if (!e.upstream->srv.empty()) out["srv"] = e.upstream->srv;
  out["servers"] = Json::array();
  for (const Candidate& c : e.servers) {
    out["servers"].push_back({{"server", c.server.text},
                              {"weight", c.server.weight},
                              {"backup", c.server.backup},
                              {"addresses", endpoints_of(e, c)},
                              {"error", c.answer.error}});
  }
  out["source"] = nullptr;
  if (e.upstream->source) out["source"] = e.upstream->source->text();
  out["header"] = nullptr;
  if (e.header.empty()) return out;
  if (e.upstream->proxy_protocol == config::ProxyProtocol::v1) {
    out["header"] = {{"hexadecimal", hexadecimal(e.header)}, {"fields", Json::array()}};
    return out;
  }
  std::string whole;
  Json fields = Json::array();
  for (const HeaderField& f : fields_of(e)) {
    whole += hexadecimal(f);
    fields.push_back(
        {{"offset", f.offset}, {"bytes", hexadecimal(f)}, {"known", f.known}, {"meaning", f.meaning}});
  }
  out["header"] = {{"hexadecimal", whole}, {"fields", fields}};
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
  const std::vector<std::string> devices = device_notes(*parsed.config, client.value());
  if (taken.value().bind == nullptr) {
    for (const std::string& note : devices) std::fputs((note + "\n").c_str(), stderr);
    return fail(fmt::format("nothing listens on {} for clients of IPv{}", client.value().to.text,
                            client.value().peer().is_v4() ? 4 : 6));
  }
  Explanation e{*parsed.config, client.value(), taken.value(),
                parsed.config->listeners[taken.value().listener]};
  e.notes = devices;
  admit(&e);
  if (!e.closed) decide(&e);
  add_notes(&e);
  print(what.json ? json_line(json_of(e)) + "\n" : text_of(e));
  return e.closed ? kFailed : kDone;
}

}  // namespace penstock::command
