// SPDX-License-Identifier: Apache-2.0
#include "sim/scenarios.h"

#include <array>

#include "proxy_protocol/proxy_protocol.h"
#include "support/tls_hello.h"

namespace penstock::sim {
namespace {

using config::milliseconds;

void say_first(Shape* s, const std::string& bytes) {
  Talk& talk = s->clients[0].talk;
  talk.first += bytes;
  talk.say_bytes += bytes.size();
}

void sni(Shape* s) {
  config::Route route;
  route.sni = {"*.example.net"};
  route.upstream = "mailbox";
  s->config.listeners[0].routes.push_back(route);
  test::TlsHello hello;
  hello.sni = "a.example.net";
  hello.alpn = {"h2"};
  say_first(s, hello.bytes());
}

void proxy_in(Shape* s, bool v1, bool local) {
  s->config.listeners[0].accept_proxy.from.push_back(*Cidr::parse("198.51.100.0/24"));
  proxy_protocol::Outgoing what;
  what.version = v1 ? proxy_protocol::Version::v1 : proxy_protocol::Version::v2;
  what.client = local ? s->clients[0].from : client_endpoint(4);
  what.destination = {*IpAddress::parse("192.0.2.10"), kListenPort};
  what.authority = "a.example.net";
  what.local = local;
  std::array<uint8_t, proxy_protocol::kHeaderBytesMax> bytes;
  const size_t size = proxy_protocol::encode(what, bytes);
  s->clients[0].header_bytes = size;
  say_first(s, std::string(reinterpret_cast<char*>(bytes.data()), size));
}

// A server by name, with so many addresses.
void by_name(Shape* s, uint32_t addresses) {
  config::Server& server = s->config.upstreams[0].servers[0];
  server.host = server.text = "host";
  server.address.reset();
  s->servers.resize(1);
  NameShape name{"host", {}, {}, kMillisecond, false};
  for (uint32_t i = 0; i < addresses; i++) {
    ServerShape one = s->servers[0];
    one.address = server_address(i + 1);
    name.addresses.push_back(one.address);
    s->servers.push_back(one);
  }
  s->servers.erase(s->servers.begin());
  s->names.push_back(name);
}

void bulk(Shape* s) {
  s->config.flow.buffer_bytes = 256 << 10;
  s->clients[0].talk.say_bytes = 1 << 20;
  s->clients[0].talk.portion = 128 << 10;
  s->servers[0].talk.read_portion = 32 << 10;
  s->servers[0].talk.read_pause_ns = 5 * kMillisecond;
}

void command(Shape* s, Command::What what, uint64_t at_ns) {
  s->commands.push_back({what, at_ns});
}

}  // namespace

Shape calm_shape() {
  Shape s;
  s.config = plain_config();
  ClientShape client;
  client.from = client_endpoint(0);
  client.talk.say_bytes = 3000;
  client.talk.pause_ns = kMillisecond;
  s.clients.push_back(client);
  ServerShape server;
  server.address = server_address(0);
  server.talk.say_bytes = 5000;
  server.talk.pause_ns = kMillisecond;
  s.servers.push_back(server);
  return s;
}

const std::vector<Scenario>& scenarios() {
  static const std::vector<Scenario> all = {
      {"spliced", [](Shape*) {}},
      {"sni_and_proxy_v2",
       [](Shape* s) {
         sni(s);
         s->config.upstreams[0].proxy_protocol = config::ProxyProtocol::v2;
         s->config.upstreams[0].tlv_unique_id = s->config.upstreams[0].tlv_crc32c = true;
       }},
      {"half_closed_by_client",
       [](Shape* s) {
         s->servers[0].talk.answer_after = 3000;
         s->servers[0].talk.begin_ns = kSecond;
       }},
      {"half_closed_by_server",
       [](Shape* s) {
         s->clients[0].talk.answer_after = 5000;
         s->clients[0].talk.begin_ns = kSecond;
       }},
      {"io_uring", [](Shape* s) { s->splice = false; }},
      {"no_maps", [](Shape* s) { s->splice = s->sockmap = false; }},
      {"ordered",
       [](Shape* s) {
         s->clients[0].talk.pause_ns = s->servers[0].talk.pause_ns = 100 * kMillisecond;
         s->clients[0].talk.portion = s->servers[0].talk.portion = 100;
         for (uint64_t at = 20; at < 1500; at += 70) command(s, Command::order, at * kMillisecond);
       }},
      {"bulk", bulk},
      {"bulk_io_uring",
       [](Shape* s) {
         bulk(s);
         s->splice = false;
       }},
      {"two_addresses",
       [](Shape* s) {
         by_name(s, 2);
         s->servers[0].what = Remote::refusing;
       }},
      {"five_addresses",
       [](Shape* s) {
         by_name(s, 5);
         for (int i = 0; i < 4; i++) s->servers[static_cast<size_t>(i)].what = Remote::silent;
         s->servers[4].delay_ns = 300 * kMillisecond;
       }},
      {"services",
       [](Shape* s) {
         by_name(s, 2);
         config::Upstream& u = s->config.upstreams[0];
         u.servers.clear();
         u.srv = "_imap._tcp.example";
         s->servers[0].what = s->servers[1].what = Remote::refusing;
         ServerShape other = s->servers[0];
         other.address = server_address(8);
         other.what = Remote::listening;
         s->servers.push_back(other);
         s->names.push_back({"other", {other.address}, {}, 0, false});
         s->names.push_back({u.srv, {}, {{0, "host", 143, 1}, {1, "other", 143, 1}}, kMillisecond, false});
       }},
      {"source_address", [](Shape* s) { s->config.upstreams[0].source = IpAddress::v4(0xc0000205); }},
      {"proxy_in_v2", [](Shape* s) { proxy_in(s, false, false); }},
      {"proxy_in_v1_local", [](Shape* s) { proxy_in(s, true, true); }},
      {"proxy_in_sni_proxy_out",
       [](Shape* s) {
         proxy_in(s, false, false);
         sni(s);
         s->config.upstreams[0].proxy_protocol = config::ProxyProtocol::v1;
       }},
      {"stranger",
       [](Shape* s) {
         s->config.listeners[0].accept_proxy.from.push_back(*Cidr::parse("203.0.113.0/24"));
         s->config.listeners[0].accept_proxy.others_direct = true;
         say_first(s, "PROXIMITY is no PROXY header");
         s->clients[0].talk.portion = 3;
         s->clients[0].talk.begin_ns = 100 * kMillisecond;
       }},
      {"urgent",
       [](Shape* s) {
         s->splice = false;
         s->clients[0].talk.urgent_at = 1000;
       }},
      {"urgent_spliced",
       [](Shape* s) {
         s->clients[0].talk.urgent_at = 1000;
         command(s, Command::order, 400'000);
         command(s, Command::order, 900'000);
       }},
      {"reset_by_client", [](Shape* s) { s->clients[0].talk.reset_at_ns = 4 * kMillisecond; }},
      {"reset_by_server", [](Shape* s) { s->servers[0].talk.reset_at_ns = 3 * kMillisecond; }},
      {"kernel_loses",
       [](Shape* s) {
         s->weather.loses_in = 3;
         s->config.timeouts.idle = s->config.timeouts.half_closed =
             milliseconds(600'000);  // time to find out
       }},
      {"kernel_doubles", [](Shape* s) { s->weather.doubles_in = 3; }},
      {"memory_limit",
       [](Shape* s) {
         bulk(s);
         s->memory_limit = 192 << 10;
       }},
      {"two_threads",
       [](Shape* s) {
         s->threads = 2;
         for (uint32_t i = 1; i < 4; i++) {
           s->clients.push_back(s->clients[0]);
           s->clients[i].from = client_endpoint(i);
         }
       }},
      {"reload",
       [](Shape* s) {
         s->clients.push_back(s->clients[0]);
         s->clients[1].at_ns = 1500 * kMillisecond;
         command(s, Command::reload, kMillisecond);
         command(s, Command::move_listener, 2 * kMillisecond);
         command(s, Command::view, 3 * kMillisecond);
       }},
  };
  return all;
}

}  // namespace penstock::sim
