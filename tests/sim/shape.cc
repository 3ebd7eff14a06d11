// SPDX-License-Identifier: Apache-2.0
#include "sim/shape.h"

#include <array>

#include "proxy_protocol/proxy_protocol.h"
#include "support/tls_hello.h"

namespace penstock::sim {
namespace {

using config::milliseconds;

std::string proxy_header(const Endpoint& client, bool v1, bool local) {
  proxy_protocol::Outgoing what;
  what.version = v1 ? proxy_protocol::Version::v1 : proxy_protocol::Version::v2;
  what.client = client;
  what.destination =
      server_address(9) == client.address ? client : Endpoint{*IpAddress::parse("192.0.2.10"), kListenPort};
  what.local = local;
  std::array<uint8_t, proxy_protocol::kHeaderBytesMax> bytes;
  return std::string(reinterpret_cast<char*>(bytes.data()), proxy_protocol::encode(what, bytes));
}

void random_weather(Random& r, Weather* w) {
  w->late_in = static_cast<uint32_t>(r.one_of({1, 2, 3, 8, 20}));
  w->between_in = static_cast<uint32_t>(r.one_of({1, 2, 4, 16}));
  if (r.chance(1, 2)) w->short_in = static_cast<uint32_t>(r.one_of({2, 8, 50}));
  if (r.chance(1, 4)) w->overlap_in = static_cast<uint32_t>(r.one_of({4, 40}));
  w->delay_max_ns = r.log_between(2'000, 30 * kMillisecond);
  w->mss = static_cast<uint32_t>(r.one_of({536, 1448, 8 << 10, 16 << 10, 64 << 10}));
  w->opening_takes = r.chance(1, 2);
  w->reuse_numbers = r.chance(1, 2);
  w->told_hangup = r.chance(1, 2);
  if (r.chance(1, 6)) w->fault_in = static_cast<uint32_t>(r.one_of({10, 50, 300}));
  if (r.chance(1, 60)) w->loses_in = static_cast<uint32_t>(r.one_of({3, 50}));
  if (r.chance(1, 12)) w->descriptors_max = static_cast<uint32_t>(r.between(24, 40));
}

uint64_t some_bytes(Random& r) {
  if (r.chance(1, 8)) return 0;
  if (r.chance(1, 40)) return r.log_between(64 << 10, 4 << 20);
  return r.log_between(1, 64 << 10);
}

Talk random_talk(Random& r, bool rough) {
  Talk t;
  t.say_bytes = some_bytes(r);
  t.portion = static_cast<uint32_t>(std::max<uint64_t>(r.log_between(1, 128 << 10), t.say_bytes / 40 + 1));
  if (r.chance(1, 3)) t.pause_ns = r.log_between(1000, 50 * kMillisecond);
  if (r.chance(1, 30)) t.pause_ns = 3 * kSecond;
  t.read_portion = static_cast<uint32_t>(r.log_between(2048, 256 << 10));
  if (r.chance(1, 4)) t.read_pause_ns = r.log_between(1000, 100 * kMillisecond);
  if (r.chance(1, 40)) t.read_pause_ns = 2 * kSecond;
  if (r.chance(1, 4)) t.begin_ns = r.log_between(1000, 2 * kSecond);
  if (r.chance(1, 8)) t.linger_ns = r.log_between(1000, 5 * kSecond);
  t.receive_buffer = static_cast<uint32_t>(r.log_between(4 << 10, 512 << 10));
  if (!rough) return t;
  if (r.chance(1, 8)) t.end = r.one_of({Talk::fin_after_eof, Talk::reset, Talk::close, Talk::silent});
  if (r.chance(1, 16)) t.reset_at_ns = r.log_between(1, 3 * kSecond);
  if (r.chance(1, 60)) t.urgent_at = r.below(t.say_bytes + 1);
  return t;
}

}  // namespace

Endpoint client_endpoint(uint32_t n) {
  Endpoint e;
  e.address = n % 3 == 2 ? *IpAddress::parse("2001:db8::7") : IpAddress::v4(0xc6336401 + n);
  e.port = static_cast<uint16_t>(40000 + n);
  return e;
}

IpAddress server_address(uint32_t n) {
  return n % 2 ? *IpAddress::parse(n % 4 == 1 ? "2001:db8::1" : "2001:db8::2")
               : IpAddress::v4(0xcb007100 + n);
}

config::Config plain_config() {
  config::Config c;
  c.timeouts.client_hello = milliseconds(5'000);
  c.timeouts.idle = milliseconds(60'000);
  c.timeouts.half_closed = milliseconds(30'000);
  config::Upstream u;
  u.name = "mailbox";
  config::Server s;
  s.address = server_address(0);
  s.host = s.text = s.address->text();
  u.servers.push_back(s);
  c.upstreams.push_back(u);
  config::Listener l;
  l.name = "mail";
  l.bind.push_back({std::nullopt, kListenPort, ":25"});
  l.upstream = "mailbox";
  c.listeners.push_back(l);
  return c;
}

Shape random_shape(Random& r) {
  Shape shape;
  const bool rough = r.chance(2, 3);
  if (r.chance(1, 3)) {
    shape.deaths = static_cast<uint32_t>(r.between(1, 4));
    shape.die_in = static_cast<uint32_t>(r.log_between(10, 3000));
  }
  random_weather(r, &shape.weather);
  if (!rough) shape.weather.fault_in = 0;
  shape.threads = r.chance(1, 8) ? 2 : 1;
  shape.splice = r.chance(3, 4);
  shape.sockmap = shape.splice || r.chance(1, 2);
  shape.config = plain_config();
  config::Config& c = shape.config;
  c.flow.buffer_bytes = r.log_between(64 << 10, 4 << 20);
  if (rough && r.chance(1, 10)) shape.memory_limit = r.log_between(128 << 10, 8 << 20);

  // the upstream
  config::Upstream& u = c.upstreams[0];
  u.servers.clear();
  const uint32_t servers = r.chance(2, 3) ? 1 : static_cast<uint32_t>(r.between(2, 3));
  u.proxy_protocol = r.one_of({config::ProxyProtocol::off, config::ProxyProtocol::off,
                               config::ProxyProtocol::v1, config::ProxyProtocol::v2});
  u.tlv_unique_id = u.tlv_crc32c = r.chance(1, 3);
  u.balance = r.one_of({config::Balance::round_robin, config::Balance::least_flows});
  if (r.chance(1, 20)) u.balance = config::Balance::source_hash;  // its table is what costs
  u.retries = static_cast<uint32_t>(r.below(3));
  if (r.chance(1, 8)) u.source = IpAddress::v4(0xc0000205);
  if (r.chance(1, 8)) u.on_down = r.one_of({config::OnDown::refuse, config::OnDown::close});
  const Talk server_talk = random_talk(r, rough);
  NameShape service{"_imap._tcp.example", {}, {}, 0, false};
  if (r.chance(1, 3)) service.delay_ns = r.log_between(1000, kSecond);
  const bool by_srv = r.chance(1, 10);
  for (uint32_t i = 0; i < servers; i++) {
    config::Server s;
    const auto add_address = [&](uint32_t n) {
      ServerShape a;
      a.address = server_address(n);
      a.talk = server_talk;
      a.delay_ns = r.log_between(1000, 100 * kMillisecond);
      if (rough && r.chance(1, 4))
        a.what = r.one_of(
            {Remote::refusing, Remote::unreachable, Remote::silent, Remote::resetting, Remote::listening});
      if (rough && r.chance(1, 10)) a.delay_ns = r.log_between(100 * kMillisecond, 4 * kSecond);
      shape.servers.push_back(a);
    };
    if (by_srv || r.chance(1, 3)) {
      NameShape n;
      n.name = s.host = "host" + std::to_string(i);
      for (uint64_t a = r.between(1, 5); a > 0; a--) {
        n.addresses.push_back(server_address(static_cast<uint32_t>(4 * i + a)));
        add_address(static_cast<uint32_t>(4 * i + a));
      }
      if (rough && r.chance(1, 10)) n.addresses.clear();
      if (rough) n.changes = r.chance(1, 6);
      if (r.chance(1, 2))
        n.delay_ns = r.log_between(1000, rough && r.chance(1, 8) ? 6 * kSecond : kSecond / 4);
      shape.names.push_back(n);
      service.targets.push_back(
          {static_cast<uint16_t>(r.below(2)), s.host, 143, static_cast<uint16_t>(r.below(3))});
    } else {
      s.address = server_address(2 * i);
      s.host = s.address->text();
      add_address(2 * i);
    }
    s.text = s.host;
    if (r.chance(1, 2)) s.port = 143;
    u.servers.push_back(s);
  }
  if (by_srv) {
    u.srv = service.name;
    u.servers.clear();
    if (rough && r.chance(1, 8)) service.targets.clear();
    shape.names.push_back(service);
  }

  // the listener
  c.listeners.reserve(2);
  config::Listener& l = c.listeners[0];
  const bool by_sni = r.chance(1, 3), by_proxy = r.chance(1, 5);
  if (by_sni) {
    config::Route route;
    route.sni = {"*.example.net"};
    route.upstream = "mailbox";
    route.reject = rough && r.chance(1, 20);
    if (route.reject) route.upstream.clear();
    l.routes.push_back(route);
  }
  if (by_proxy) {
    l.accept_proxy.from.push_back(*Cidr::parse("198.51.100.0/24"));
    l.accept_proxy.others_direct = r.chance(2, 3);
  }
  if (rough && r.chance(1, 20)) l.deny.push_back(*Cidr::parse("198.51.100.1"));
  if (rough && r.chance(1, 20)) l.limits.max_flows_per_client = 1;
  if (rough && r.chance(1, 20)) l.limits.new_flows_per_client = config::Rate{1, milliseconds(1000)};
  if (rough && r.chance(1, 20)) c.limits.max_flows = 1;
  if (r.chance(1, 8)) c.listeners.push_back(l), c.listeners[1].name = "second";

  // who comes
  const uint32_t clients = r.chance(2, 3) ? 1 : static_cast<uint32_t>(r.between(2, 4));
  if (rough && r.chance(1, 30)) shape.flows_max = 1;
  for (uint32_t i = 0; i < clients; i++) {
    ClientShape k;
    k.talk = random_talk(r, rough);
    k.from = client_endpoint(static_cast<uint32_t>(r.below(3)));
    k.listener = static_cast<uint32_t>(r.below(c.listeners.size()));
    k.at_ns = i * r.log_between(1, kSecond);
    const bool from_proxy = by_proxy && l.accept_proxy.from[0].contains(k.from.address);
    if (from_proxy && !(rough && r.chance(1, 10))) {
      Endpoint real = client_endpoint(2);
      if (r.chance(1, 2)) real = client_endpoint(7);
      const bool local = r.chance(1, 8);
      k.talk.first = proxy_header(local ? k.from : real, r.chance(1, 2), local);
    } else if (by_proxy && rough && r.chance(1, 6)) {
      k.talk.first = proxy_header(k.from, r.chance(1, 2), false);
      k.talk.first.resize(r.below(k.talk.first.size() + 1));
    }
    if (by_sni || r.chance(1, 10)) {
      test::TlsHello hello;
      hello.sni = r.chance(1, 2) ? "a.example.net" : "other.test";
      if (r.chance(1, 3)) hello.alpn = {"h2", "http/1.1"};
      if (r.chance(1, 4)) hello.handshake_bytes = r.between(600, 3000);
      std::string bytes = r.chance(1, 8) ? "EHLO nobody speaks TLS\r\n" : hello.bytes();
      if (rough && r.chance(1, 10)) bytes.resize(r.below(bytes.size()));
      if (rough && r.chance(1, 10) && !bytes.empty())
        bytes[r.below(bytes.size())] ^= static_cast<char>(1 << r.below(8));
      k.talk.first += bytes;
    }
    if (!rough && by_sni) k.talk.begin_ns = std::min(k.talk.begin_ns, kSecond);
    k.talk.say_bytes =
        std::max<uint64_t>(k.talk.say_bytes, rough && r.chance(1, 10) ? 0 : k.talk.first.size());
    k.talk.portion = static_cast<uint32_t>(std::max<uint64_t>(k.talk.portion, k.talk.say_bytes / 40 + 1));
    if (from_proxy) {  // whatever it meant to say: this is what it says
      std::string begins = k.talk.first;
      begins.resize(std::min<uint64_t>(k.talk.say_bytes, proxy_protocol::kIncomingBytesMax), 'x');
      proxy_protocol::Incoming header;
      proxy_protocol::parse({reinterpret_cast<const uint8_t*>(begins.data()), begins.size()}, &header);
      k.header_bytes = header.verdict == proxy_protocol::Verdict::header ? header.header_bytes : 0;
    }
    if (!k.talk.first.empty() && !rough)
      k.talk.pause_ns = std::min<uint64_t>(k.talk.pause_ns, 20 * kMillisecond);
    if (r.chance(1, 8)) {
      for (ServerShape& s : shape.servers) s.talk.answer_after = 1;
      if (r.chance(1, 2)) k.talk.answer_after = 0;
    }
    shape.clients.push_back(k);
  }

  if (r.chance(1, 4)) {
    for (uint64_t n = r.between(1, 6); n > 0; n--) {
      Command command;
      command.at_ns = r.log_between(1000, 3 * kSecond);
      const auto any = r.below(rough ? 9 : 5);
      command.what = std::array{Command::order,  Command::order,         Command::view,
                                Command::reload, Command::move_listener, Command::kill,
                                Command::drain,  Command::fail_socket,   Command::stop_accepting}[any];
      if (rough && r.chance(1, 20)) command.what = Command::stop;
      shape.commands.push_back(command);
    }
  }
  return shape;
}

}  // namespace penstock::sim
