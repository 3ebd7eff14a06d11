// SPDX-License-Identifier: Apache-2.0
// Every key, default, range and message of the configuration. Messages are compared whole: scripts and people
// read them.
#include "config/config.h"
#include "config/address.h"

#include <gtest/gtest.h>

#include <filesystem>

namespace penstock::config {
namespace {

using namespace std::chrono_literals;

constexpr std::string_view kMailEdge = R"([upstream.mailbox]
servers        = ["${MAILBOX_HOST}"]      # no port: the port the client came in on
proxy_protocol = "v2"

[upstream.mailbox-https]
servers = ["${MAILBOX_HOST}:443"]

[upstream.local-web]
servers = ["127.0.0.1:8443"]

[[listener]]
name     = "mail"
bind     = [":25", ":465", ":587", ":143", ":993"]   # ":port" is every IPv4 and every IPv6 address
upstream = "mailbox"

[[listener]]
name     = "web"
bind     = [":443"]
upstream = "local-web"                    # when no route below matches
  [[listener.route]]                      # tried in order, the first match wins
  sni      = ["mta-sts.*", "autoconfig.*", "autodiscover.*"]
  upstream = "mailbox-https"
)";

std::optional<std::string> environment(std::string_view name) {
  if (name == "MAILBOX_HOST") return "mailbox.internal";
  if (name == "PORT") return "8443";
  return std::nullopt;
}

Parsed parsed(std::string_view text) {
  return parse(text, "p.toml", environment);
}

// All diagnostics, one a line, without "p.toml:".
std::string said(std::string_view text) {
  std::string out;
  const Parsed p = parsed(text);
  bool errors = false;
  for (const Diagnostic& d : p.diagnostics) {
    EXPECT_TRUE(d.text.starts_with("p.toml:")) << d.text;
    out += d.text.substr(7) + "\n";
    errors |= d.is_error;
  }
  EXPECT_EQ(p.config.has_value(), !errors);
  return out;
}

// A file that is right but for what is added: line 1 is `first`, a listener "l" with upstream "u" follows at
// line 2, `last` at line 7 is in that listener.
std::string with(std::string_view first, std::string_view last = "") {
  return std::string(first) +
         "\n[upstream.u]\nservers = ['::1']\n[[listener]]\nbind = [':25']\nupstream = 'u'\n" +
         std::string(last) + "\n";
}
std::string in_upstream(std::string_view line) {  // at line 2
  return "[upstream.u]\n" + std::string(line) +
         "\nservers = ['::1']\n[[listener]]\nbind = ':25'\nupstream = 'u'\n";
}
std::string in_route(std::string_view lines) {  // from line 8
  return with("", "[[listener.route]]\n" + std::string(lines));
}

Config config_of(std::string_view text) {
  Parsed p = parsed(text);
  for (const Diagnostic& d : p.diagnostics) ADD_FAILURE() << d.text;
  return p.config.value_or(Config{});
}

struct Case {
  std::string text, said;
};
void expect(const std::vector<Case>& cases) {
  for (const Case& c : cases) EXPECT_EQ(said(c.text), c.said) << c.text;
}

// ---- what is right

TEST(Config, TheMailEdge) {
  const Config c = config_of(kMailEdge);
  ASSERT_EQ(c.upstreams.size(), 3u);
  EXPECT_EQ(c.upstreams[0].name, "mailbox");
  EXPECT_EQ(c.upstreams[0].proxy_protocol, ProxyProtocol::v2);
  ASSERT_EQ(c.upstreams[0].servers.size(), 1u);
  EXPECT_EQ(c.upstreams[0].servers[0].host, "mailbox.internal");
  EXPECT_FALSE(c.upstreams[0].servers[0].address);
  EXPECT_FALSE(c.upstreams[0].servers[0].port);
  EXPECT_EQ(c.upstreams[1].name, "mailbox-https");
  EXPECT_EQ(c.upstreams[1].proxy_protocol, ProxyProtocol::off);
  EXPECT_EQ(c.upstreams[1].servers[0].text, "mailbox.internal:443");
  EXPECT_EQ(c.upstreams[1].servers[0].port, 443);
  EXPECT_EQ(c.upstreams[2].servers[0].address, IpAddress::parse("127.0.0.1"));
  ASSERT_EQ(c.listeners.size(), 2u);
  EXPECT_EQ(c.listeners[0].name, "mail");
  ASSERT_EQ(c.listeners[0].bind.size(), 5u);
  EXPECT_EQ(c.listeners[0].bind[4].port, 993);
  EXPECT_FALSE(c.listeners[0].bind[4].address);
  EXPECT_EQ(c.listeners[0].upstream, "mailbox");
  ASSERT_EQ(c.listeners[1].routes.size(), 1u);
  EXPECT_EQ(c.listeners[1].routes[0].sni,
            (std::vector<std::string>{"mta-sts.*", "autoconfig.*", "autodiscover.*"}));
  EXPECT_EQ(c.listeners[1].routes[0].upstream, "mailbox-https");
  EXPECT_FALSE(c.listeners[1].routes[0].reject);
  EXPECT_EQ(c.listeners[1].line, 16u);
  EXPECT_EQ(c.listeners[1].routes[0].line, 20u);
}

TEST(Config, TheMailEdgeWithItsHealthCheck) {
  std::string text(kMailEdge);
  text.insert(text.find("\n\n[upstream.mailbox-https]") + 1,
              "check          = { type = \"smtp\", port = 25, interval = \"10s\" }\n");
  const Config c = config_of(text);
  ASSERT_TRUE(c.upstreams.at(0).check);
  EXPECT_EQ(c.upstreams[0].check->type, CheckType::smtp);
  EXPECT_EQ(c.upstreams[0].check->port, 25);
  EXPECT_EQ(c.upstreams[0].check->interval, 10s);
  EXPECT_EQ(c.upstreams[0].check->proxy, CheckProxy::local);
}

TEST(Config, TheExampleInPackaging) {
  const Parsed p = load(PENSTOCK_EXAMPLES "/mail-edge.toml", std::nullopt);
  for (const Diagnostic& d : p.diagnostics) ADD_FAILURE() << d.text;
  ASSERT_TRUE(p.config);
  EXPECT_EQ(p.config->upstreams.at(0).servers.at(0).host, "mailbox.internal.example.net");
  EXPECT_EQ(p.config->listeners.at(1).routes.size(), 1u);
}

TEST(Config, Defaults) {
  const Config c = config_of(with(""));
  EXPECT_EQ(c.daemon.threads, 0u);
  EXPECT_EQ(c.daemon.engine, Engine::automatic);
  EXPECT_EQ(c.daemon.user, "");
  EXPECT_EQ(c.daemon.group, "");
  EXPECT_EQ(c.daemon.shutdown_grace, 30s);
  EXPECT_EQ(c.daemon.log_level, log::Level::info);
  EXPECT_EQ(c.daemon.log_format, log::Format::text);
  EXPECT_TRUE(c.daemon.log_access);
  EXPECT_EQ(c.admin.socket, "/run/penstock/admin.sock");
  EXPECT_EQ(c.admin.http, "127.0.0.1:9464");
  EXPECT_EQ(c.bpf.pin, "/sys/fs/bpf/penstock");
  EXPECT_EQ(c.bpf.max_flows, 0u);
  EXPECT_EQ(c.flow.buffer_bytes, 4u << 20);
  EXPECT_EQ(c.flow.pipe_bytes, 1u << 20);
  EXPECT_EQ(c.timeouts.client_hello, 5s);
  EXPECT_EQ(c.timeouts.proxy_header, 5s);
  EXPECT_EQ(c.timeouts.connect, 5s);
  EXPECT_EQ(c.timeouts.idle, 1h);
  EXPECT_EQ(c.timeouts.half_closed, 5min);
  EXPECT_EQ(c.timeouts.keepalive, 75s);
  EXPECT_FALSE(c.limits.memory_bytes);
  EXPECT_TRUE(c.dns.servers.empty());
  EXPECT_EQ(c.dns.ttl_min, 1s);
  EXPECT_EQ(c.dns.ttl_max, 1h);
  EXPECT_EQ(c.dns.stale, 24h);
  EXPECT_FALSE(c.limits.max_flows);
  EXPECT_FALSE(c.limits.max_flows_per_client);
  EXPECT_FALSE(c.limits.new_flows_per_client);
  EXPECT_EQ(c.upstreams.at(0).proxy_protocol, ProxyProtocol::off);
  EXPECT_EQ(c.upstreams.at(0).family, Family::any);
  EXPECT_EQ(c.upstreams.at(0).servers.at(0).weight, 1u);
  EXPECT_FALSE(c.upstreams.at(0).servers.at(0).backup);
  EXPECT_EQ(c.upstreams.at(0).srv, "");
  EXPECT_FALSE(c.upstreams.at(0).tlv_unique_id);
  EXPECT_FALSE(c.upstreams.at(0).tlv_crc32c);
  EXPECT_EQ(c.upstreams.at(0).balance, Balance::round_robin);
  EXPECT_FALSE(c.upstreams.at(0).check);
  EXPECT_EQ(c.upstreams.at(0).retries, 2u);
  EXPECT_FALSE(c.upstreams.at(0).source);
  EXPECT_EQ(c.upstreams.at(0).on_down, OnDown::attempt);
  EXPECT_EQ(c.upstreams.at(0).on_marked_down, OnMarkedDown::keep);
  EXPECT_FALSE(c.upstreams.at(0).timeouts.connect);
  EXPECT_EQ(c.listeners.at(0).name, "listener0");
  EXPECT_FALSE(c.listeners.at(0).timeouts.idle);
  EXPECT_EQ(c.listeners.at(0).interface, "");
  EXPECT_TRUE(c.listeners.at(0).allow.empty());
  EXPECT_TRUE(c.listeners.at(0).deny.empty());
  EXPECT_FALSE(c.listeners.at(0).limits.max_flows);
}

TEST(Config, EveryKey) {
  const Config c = config_of(R"(
[daemon]
threads = 4
engine = "io_uring"
user = "penstock"
group = "edge"
shutdown_grace = "0s"
log = { level = "debug", format = "json", access = false }
[admin]
socket = "/run/a.sock"
http = ""
[bpf]
pin = "/sys/fs/bpf/p"
max_flows = 1000
[flow]
buffer = "64KiB"
pipe = "4KiB"
[timeouts]
client_hello = "1ms"
proxy_header = "2s"
connect = "3m"
idle = "30d"
half_closed = "4h"
keepalive = "6s"
[limits]
memory = "64MiB"
max_flows = 900
max_flows_per_client = 90
new_flows_per_client = "30/1m"
[dns]
servers = ["192.0.2.53", "192.0.2.53:5353", "2001:db8::53", "[2001:db8::53]:5353"]
ttl_min = "0s"
ttl_max = "5m"
stale = "7d"
[upstream.a]
servers = ["a.example", { address = "192.0.2.1:25", weight = 256, backup = true }]
proxy_protocol = "v1"
balance = "least_flows"
check = { type = "tls", port = 993, interval = "1h", timeout = "60s", rise = 1, fall = 100, proxy = "own", sni = "mail.example.net" }
retries = 10
family = "v4"
source = "192.0.2.9"
on_down = "refuse"
on_marked_down = "close"
connect = "1s"
timeouts = { keepalive = "2s", idle = "13s" }
half_closed = "14s"
[upstream.b]
srv = "_imap._tcp.example.net"
proxy_protocol = "v2"
tlvs = ["crc32c", "unique_id"]
balance = "source_hash"
check = "imap"
on_down = "close"
[[listener]]
name = "x"
bind = [":25", "*:26", "192.0.2.1:25", "[::1]:443"]
upstream = "a"
timeouts = { idle = "7s", connect = "8s" }
half_closed = "9s"
client_hello = "10s"
proxy_header = "11s"
keepalive = "12s"
accept_proxy = { from = ["192.0.2.1/32", "2001:db8::/32"], others = "direct" }
interface = "wg0"
allow = ["10.0.0.0/8", "2001:db8::/32"]
deny = "10.1.0.0/16"
limits = { max_flows = 80, new_flows_per_client = "10/s" }
max_flows_per_client = 8
[[listener.route]]
sni = "WWW.example.NET"
alpn = ["h2", "http/1.1"]
source = ["10.0.0.0/8", "::1"]
port = 443
upstream = "b"
[[listener.route]]
port = [25, 26]
action = "reject"
[[listener]]
bind = ":80"
upstream = "b"
)");
  EXPECT_EQ(c.daemon.threads, 4u);
  EXPECT_EQ(c.daemon.engine, Engine::io_uring);
  EXPECT_EQ(c.daemon.user, "penstock");
  EXPECT_EQ(c.daemon.group, "edge");
  EXPECT_EQ(c.daemon.shutdown_grace, 0s);
  EXPECT_EQ(c.daemon.log_level, log::Level::debug);
  EXPECT_EQ(c.daemon.log_format, log::Format::json);
  EXPECT_FALSE(c.daemon.log_access);
  EXPECT_EQ(c.admin.socket, "/run/a.sock");
  EXPECT_EQ(c.admin.http, "");
  EXPECT_EQ(c.bpf.pin, "/sys/fs/bpf/p");
  EXPECT_EQ(c.bpf.max_flows, 1000u);
  EXPECT_EQ(c.flow.buffer_bytes, 65536u);
  EXPECT_EQ(c.flow.pipe_bytes, 4096u);
  EXPECT_EQ(c.timeouts.client_hello, 1ms);
  EXPECT_EQ(c.timeouts.proxy_header, 2s);
  EXPECT_EQ(c.timeouts.connect, 3min);
  EXPECT_EQ(c.timeouts.idle, 720h);
  EXPECT_EQ(c.timeouts.half_closed, 4h);
  EXPECT_EQ(c.timeouts.keepalive, 6s);
  EXPECT_EQ(c.limits.memory_bytes, 64u << 20);
  std::string name_servers;
  for (const Endpoint& s : c.dns.servers) name_servers += s.text() + " ";
  EXPECT_EQ(name_servers, "192.0.2.53:53 192.0.2.53:5353 [2001:db8::53]:53 [2001:db8::53]:5353 ");
  EXPECT_EQ(c.dns.ttl_min, 0s);
  EXPECT_EQ(c.dns.ttl_max, 5min);
  EXPECT_EQ(c.dns.stale, 168h);
  EXPECT_EQ(c.limits.max_flows, 900u);
  EXPECT_EQ(c.limits.max_flows_per_client, 90u);
  ASSERT_TRUE(c.limits.new_flows_per_client);
  EXPECT_EQ(c.limits.new_flows_per_client->count, 30u);
  EXPECT_EQ(c.limits.new_flows_per_client->per, 1min);

  const Upstream& a = c.upstreams.at(0);
  EXPECT_EQ(a.proxy_protocol, ProxyProtocol::v1);
  EXPECT_EQ(a.family, Family::v4);
  EXPECT_EQ(a.timeouts.connect, 1s);
  EXPECT_EQ(a.timeouts.keepalive, 2s);
  EXPECT_EQ(a.timeouts.idle, 13s);
  EXPECT_EQ(a.timeouts.half_closed, 14s);
  ASSERT_EQ(a.servers.size(), 2u);
  EXPECT_EQ(a.servers[0].host, "a.example");
  EXPECT_EQ(a.servers[1].address, IpAddress::parse("192.0.2.1"));
  EXPECT_EQ(a.servers[1].port, 25);
  EXPECT_EQ(a.servers[1].weight, 256u);
  EXPECT_TRUE(a.servers[1].backup);
  EXPECT_EQ(a.balance, Balance::least_flows);
  ASSERT_TRUE(a.check);
  EXPECT_EQ(a.check->type, CheckType::tls);
  EXPECT_EQ(a.check->port, 993);
  EXPECT_EQ(a.check->interval, 1h);
  EXPECT_EQ(a.check->timeout, 60s);
  EXPECT_EQ(a.check->rise, 1u);
  EXPECT_EQ(a.check->fall, 100u);
  EXPECT_EQ(a.check->proxy, CheckProxy::own);
  EXPECT_EQ(a.check->sni, "mail.example.net");
  EXPECT_EQ(a.retries, 10u);
  EXPECT_EQ(a.source, IpAddress::parse("192.0.2.9"));
  EXPECT_EQ(a.on_down, OnDown::refuse);
  EXPECT_EQ(a.on_marked_down, OnMarkedDown::close);

  const Upstream& b = c.upstreams.at(1);
  EXPECT_EQ(b.srv, "_imap._tcp.example.net");
  EXPECT_TRUE(b.servers.empty());
  EXPECT_TRUE(b.tlv_unique_id);
  EXPECT_TRUE(b.tlv_crc32c);
  EXPECT_EQ(b.balance, Balance::source_hash);
  ASSERT_TRUE(b.check);
  EXPECT_EQ(b.check->type, CheckType::imap);
  EXPECT_FALSE(b.check->port);
  EXPECT_EQ(b.check->interval, 10s);
  EXPECT_EQ(b.check->timeout, 5s);
  EXPECT_EQ(b.check->rise, 2u);
  EXPECT_EQ(b.check->fall, 3u);
  EXPECT_EQ(b.check->proxy, CheckProxy::local);
  EXPECT_EQ(b.on_down, OnDown::close);

  const Listener& x = c.listeners.at(0);
  EXPECT_EQ(x.name, "x");
  ASSERT_EQ(x.bind.size(), 4u);
  EXPECT_FALSE(x.bind[0].address);
  EXPECT_FALSE(x.bind[1].address);
  EXPECT_EQ(x.bind[1].port, 26);
  EXPECT_EQ(x.bind[2].address, IpAddress::parse("192.0.2.1"));
  EXPECT_EQ(x.bind[3].address, IpAddress::parse("::1"));
  EXPECT_EQ(x.bind[3].text, "[::1]:443");
  EXPECT_EQ(x.timeouts.idle, 7s);
  EXPECT_EQ(x.timeouts.connect, 8s);
  EXPECT_EQ(x.timeouts.half_closed, 9s);
  EXPECT_EQ(x.timeouts.client_hello, 10s);
  EXPECT_EQ(x.timeouts.proxy_header, 11s);
  EXPECT_EQ(x.timeouts.keepalive, 12s);
  EXPECT_EQ(x.accept_proxy.from,
            (std::vector<Cidr>{*Cidr::parse("192.0.2.1"), *Cidr::parse("2001:db8::/32")}));
  EXPECT_TRUE(x.accept_proxy.others_direct);
  EXPECT_EQ(x.interface, "wg0");
  EXPECT_EQ(x.allow, (std::vector<Cidr>{*Cidr::parse("10.0.0.0/8"), *Cidr::parse("2001:db8::/32")}));
  EXPECT_EQ(x.deny, std::vector<Cidr>{*Cidr::parse("10.1.0.0/16")});
  EXPECT_EQ(x.limits.max_flows, 80u);
  EXPECT_EQ(x.limits.max_flows_per_client, 8u);
  ASSERT_TRUE(x.limits.new_flows_per_client);
  EXPECT_EQ(x.limits.new_flows_per_client->count, 10u);
  EXPECT_EQ(x.limits.new_flows_per_client->per, 1s);
  ASSERT_EQ(x.routes.size(), 2u);
  EXPECT_EQ(x.routes[0].sni, std::vector<std::string>{"www.example.net"});
  EXPECT_EQ(x.routes[0].alpn, (std::vector<std::string>{"h2", "http/1.1"}));
  EXPECT_EQ(x.routes[0].source, (std::vector<Cidr>{*Cidr::parse("10.0.0.0/8"), *Cidr::parse("::1")}));
  EXPECT_EQ(x.routes[0].port, std::vector<uint16_t>{443});
  EXPECT_EQ(x.routes[0].upstream, "b");
  EXPECT_EQ(x.routes[1].port, (std::vector<uint16_t>{25, 26}));
  EXPECT_TRUE(x.routes[1].reject);
  EXPECT_EQ(x.routes[1].upstream, "");
  EXPECT_EQ(c.listeners.at(1).name, "listener1");
  EXPECT_TRUE(c.listeners.at(1).accept_proxy.from.empty());
}

TEST(Config, WhoIsInNoneOfAcceptProxysFromIsRejected) {
  const Config c = config_of(with("", "accept_proxy = { from = '192.0.2.1' }"));
  EXPECT_EQ(c.listeners.at(0).accept_proxy.from, std::vector<Cidr>{*Cidr::parse("192.0.2.1/32")});
  EXPECT_FALSE(c.listeners.at(0).accept_proxy.others_direct);
}

TEST(Config, UpstreamsKeepTheOrderOfTheFile) {
  const Config c = config_of(
      "[upstream.z]\nservers = 'z'\n[upstream.a]\nservers = 'a'\n[upstream.m]\nservers = 'm'\n"
      "[[listener]]\nbind = ':1'\nupstream = 'z'\n[[listener]]\nbind = ':2'\nupstream = 'a'\n"
      "[[listener]]\nbind = ':3'\nupstream = 'm'\n");
  ASSERT_EQ(c.upstreams.size(), 3u);
  EXPECT_EQ(c.upstreams[0].name + c.upstreams[1].name + c.upstreams[2].name, "zam");
}

TEST(Config, ServersInEveryForm) {
  const struct {
    std::string text, host;
    std::optional<uint16_t> port;
    bool is_address;
  } cases[] = {
      {"host", "host", std::nullopt, false},
      {"_sip.a-b.example.", "_sip.a-b.example.", std::nullopt, false},
      {"host:65535", "host", 65535, false},
      {"192.0.2.1", "192.0.2.1", std::nullopt, true},
      {"192.0.2.1:25", "192.0.2.1", 25, true},
      {"2001:db8::1", "2001:db8::1", std::nullopt, true},
      {"[2001:db8::1]", "2001:db8::1", std::nullopt, true},
      {"[2001:db8::1]:443", "2001:db8::1", 443, true},
      {"${MAILBOX_HOST}:${PORT}", "mailbox.internal", 8443, false},
      {"${NOT_SET:-[::1]:1}", "::1", 1, true},
      {std::string(63, 'a') + ".b", std::string(63, 'a') + ".b", std::nullopt, false},
  };
  for (const auto& c : cases) {
    const Config config =
        config_of("[upstream.u]\nservers = '" + c.text + "'\n[[listener]]\nbind = ':1'\nupstream = 'u'\n");
    ASSERT_EQ(config.upstreams.size(), 1u) << c.text;
    const Server& server = config.upstreams[0].servers.at(0);
    EXPECT_EQ(server.host, c.host);
    EXPECT_EQ(server.port, c.port) << c.text;
    EXPECT_EQ(server.address.has_value(), c.is_address) << c.text;
  }
}

// ---- what is wrong

TEST(Config, UnknownKeys) {
  const std::string upstream_keys =
      "servers, srv, proxy_protocol, tlvs, balance, check, retries, family, source, on_down, on_marked_down, "
      "timeouts, connect, idle, half_closed, keepalive\n";
  expect({
      {in_upstream("servrs = 1"),
       "2:1: error: unknown key \"servrs\" in [upstream.u]; did you mean \"servers\"? accepted: " +
           upstream_keys},
      {in_upstream("chekc = 1"),
       "2:1: error: unknown key \"chekc\" in [upstream.u]; did you mean \"check\"? accepted: " +
           upstream_keys},
      {in_upstream("clent_hello = '1s'"),
       "2:1: error: unknown key \"clent_hello\" in [upstream.u]; did you mean \"client_hello\" (not "
       "available in this "
       "version)? accepted: " +
           upstream_keys},
      {in_upstream("check = { inteval = '1s', port = 1 }"),
       "2:11: error: unknown key \"inteval\" in a check; did you mean \"interval\"? accepted: type, port, "
       "interval, "
       "timeout, rise, fall, proxy, sni\n"},
      {in_upstream("timeouts = { conect = '1s' }"),
       "2:14: error: unknown key \"conect\" in [upstream.timeouts]; did you mean \"connect\"? accepted: "
       "connect, idle, half_closed, keepalive\n"},
      {with("deamon = 1"),
       "1:1: error: unknown key \"deamon\" at the top level; did you mean \"daemon\"? accepted: daemon, "
       "admin, bpf, "
       "flow, dns, timeouts, limits, upstream, listener\n"},
      {with("zzzzzz = 1"),
       "1:1: error: unknown key \"zzzzzz\" at the top level; accepted: daemon, admin, bpf, flow, dns, "
       "timeouts, "
       "limits, upstream, listener\n"},
      {with("daemon.thread = 1"),
       "1:8: error: unknown key \"thread\" in [daemon]; did you mean \"threads\"? accepted: threads, engine, "
       "user, "
       "group, shutdown_grace, log\n"},
      {with("daemon.log = { levle = 'info' }"),
       "1:16: error: unknown key \"levle\" in [daemon.log]; did you mean \"level\"? accepted: level, format, "
       "access\n"},
      {with("admin.sokcet = 1"),
       "1:7: error: unknown key \"sokcet\" in [admin]; did you mean \"socket\"? accepted: socket, http\n"},
      {with("bpf.pins = 1"),
       "1:5: error: unknown key \"pins\" in [bpf]; did you mean \"pin\"? accepted: pin, max_flows\n"},
      {with("flow.buffers = 1"),
       "1:6: error: unknown key \"buffers\" in [flow]; did you mean \"buffer\"? accepted: buffer, pipe\n"},
      {with("dns.ttl = 1"),
       "1:5: error: unknown key \"ttl\" in [dns]; accepted: servers, ttl_min, ttl_max, stale\n"},
      {with("dns.server = '::1'"),
       "1:5: error: unknown key \"server\" in [dns]; did you mean \"servers\"? accepted: servers, ttl_min, "
       "ttl_max, stale\n"},
      {with("timeouts.idl = 1"),
       "1:10: error: unknown key \"idl\" in [timeouts]; did you mean \"idle\"? accepted: client_hello, "
       "proxy_header, "
       "connect, idle, half_closed, keepalive\n"},
      {with("limits.memroy = 1"),
       "1:8: error: unknown key \"memroy\" in [limits]; did you mean \"memory\"? accepted: memory, "
       "max_flows, "
       "max_flows_per_client, new_flows_per_client\n"},
      {with("", "limits = { max_flow = 1 }"),
       "7:12: error: unknown key \"max_flow\" in [listener.limits]; did you mean \"max_flows\"? accepted: "
       "max_flows, max_flows_per_client, new_flows_per_client\n"},
      {with("", "bnid = 1"),
       "7:1: error: unknown key \"bnid\" in [[listener]]; did you mean \"bind\"? accepted: name, bind, "
       "upstream, route, "
       "timeouts, interface, accept_proxy, allow, deny, limits, client_hello, proxy_header, connect, idle, "
       "half_closed, "
       "keepalive, max_flows, max_flows_per_client, new_flows_per_client\n"},
      {in_route("sin = 'a'\nsni = 'a'\nupstream = 'u'"),
       "8:1: error: unknown key \"sin\" in [[listener.route]]; did you mean \"sni\"? accepted: sni, alpn, "
       "source, port, "
       "upstream, action\n"},
      {with("\"a\\\"\\u0007b\\n\" = 1"),
       "1:1: error: unknown key \"a\\x22\\x07b\\x0a\" at the top level; accepted: daemon, admin, bpf, flow, "
       "dns, "
       "timeouts, limits, upstream, listener\n"},
  });
}

TEST(Config, KeysOfTheContractThatAreNotAvailable) {
  const auto refused = [](std::string_view at, std::string_view key) {
    return fmt::format("{}: error: {} is not available in this version\n", at, key);
  };
  std::vector<Case> cases;
  for (const char* key : {"client_hello", "proxy_header"}) {
    cases.push_back(
        {in_upstream(fmt::format("{} = 1", key)), refused("2:1", fmt::format("upstream.{}", key))});
  }
  for (const char* key : {"memory", "rate"}) {
    cases.push_back(
        {with("", fmt::format("{} = {{}}", key)), refused("7:1", fmt::format("listener.{}", key))});
  }
  cases.push_back({with("limits.rate = 1"), refused("1:8", "limits.rate")});
  for (const char* key : {"memory", "rate"}) {
    cases.push_back({with("", fmt::format("limits = {{ {} = 1 }}", key)),
                     refused("7:12", fmt::format("listener.limits.{}", key))});
  }
  expect(cases);
}

TEST(Config, NameServers) {
  const std::string accepted =
      "accepted: addresses like \"192.0.2.53\", \"192.0.2.53:5353\", \"2001:db8::53\", "
      "\"[2001:db8::53]:5353\"\n";
  std::vector<Case> cases = {
      {with("dns.servers = 53"), "1:15: error: servers is 53; " + accepted},
      {with("dns.servers = ['::1', 53]"), "1:23: error: servers is 53; " + accepted},
      {with("dns.servers = []"), "1:15: error: servers is an empty array; accepted: at least one address\n"},
      {with("dns.servers = ['::1','::2','::3','::4','::5','::6','::7','::8','::9']"),
       "1:15: error: 9 servers; accepted: at most 8\n"},
      {with("dns.servers = ['::1','::2','::3','::4','::5','::6','::7','::8']"), ""},
      {with("dns.servers = '127.0.0.53'"), ""},
  };
  for (const char* bad : {"", "dns.example.net", "127.0.0.1:99999", "127.0.0.1:0", "127.0.0.1:",
                          "127.0.0.1:x", "[::1", "[::1]x", "[127.0.0.1]:53", "127.0.0.1,127.0.0.2"}) {
    cases.push_back({with(fmt::format("dns.servers = ['::1', '{}']", bad)),
                     fmt::format("1:23: error: server \"{}\" is not an address; ", bad) + accepted});
  }
  expect(cases);
}

TEST(Config, TtlsAndStale) {
  const std::string accepted = "; accepted: a ttl_min of at most ttl_max\n";
  const auto duration = [](std::string_view least) {
    return fmt::format(
        "; accepted: a duration from \"{}\" to \"30d\", a string with the unit ms, s, m, h or d\n", least);
  };
  expect({
      {with("dns = { ttl_max = '1m', ttl_min = '61s' }"),
       "1:35: error: ttl_min is \"61s\" and ttl_max is \"1m\"" + accepted},
      {with("dns = { ttl_max = '1m', ttl_min = '60s' }"), ""},
      {with("dns.ttl_min = '2h'"), "1:15: error: ttl_min is \"2h\" and ttl_max is \"1h\"" + accepted},
      {with("dns.ttl_max = '1ms'"), "1:15: error: ttl_min is \"1s\" and ttl_max is \"1ms\"" + accepted},
      {with("dns.ttl_max = '0s'"), "1:15: error: ttl_max is \"0s\"" + duration("1ms")},
      {with("dns = { ttl_max = 60, ttl_min = '2h' }"), "1:19: error: ttl_max is 60" + duration("1ms")},
      {with("dns.ttl_min = '31d'"), "1:15: error: ttl_min is \"31d\"" + duration("0ms")},
      {with("dns.stale = '31d'"), "1:13: error: stale is \"31d\"" + duration("0ms")},
      {with("dns.stale = '0s'"), ""},
      {with("dns = 5"), "1:7: error: dns is 5; accepted: a table of keys\n"},
  });
}

TEST(Config, TypesAndRanges) {
  const std::string duration =
      "a duration from \"1ms\" to \"30d\", a string with the unit ms, s, m, h or d\n";
  const std::string unit = ", a string with the unit B, KiB, MiB, GiB, KB, MB or GB\n";
  const std::string threads = "an integer from 0 to 256\n";
  expect({
      {with("daemon.threads = -1"), "1:18: error: threads is -1; accepted: " + threads},
      {with("daemon.threads = 257"), "1:18: error: threads is 257; accepted: " + threads},
      {with("daemon.threads = '4'"), "1:18: error: threads is \"4\"; accepted: " + threads},
      {with("daemon.threads = 1.5"), "1:18: error: threads is a float; accepted: " + threads},
      {with("daemon.threads = 1979-05-27"), "1:18: error: threads is a date or time; accepted: " + threads},
      {with("daemon = 5"), "1:10: error: daemon is 5; accepted: a table of keys\n"},
      {with("daemon.engine = 'epoll'"),
       "1:17: error: engine is \"epoll\"; accepted: \"auto\", \"sockmap\", \"io_uring\"\n"},
      {with("daemon.user = 1"), "1:15: error: user is 1; accepted: a string\n"},
      {with("daemon.group = {}"), "1:16: error: group is a table; accepted: a string\n"},
      {with("daemon.shutdown_grace = 30"),
       "1:25: error: shutdown_grace is 30; accepted: a duration from \"0ms\" to \"30d\", a string with the "
       "unit ms, s, m, "
       "h or d\n"},
      {with("daemon.log.level = 'trace'"),
       "1:20: error: level is \"trace\"; accepted: \"debug\", \"info\", \"warn\", \"error\"\n"},
      {with("daemon.log.format = true"), "1:21: error: format is true; accepted: \"text\", \"json\"\n"},
      {with("daemon.log.access = 'yes'"), "1:21: error: access is \"yes\"; accepted: true or false\n"},
      {with("admin.socket = 'admin.sock'"),
       "1:16: error: socket is \"admin.sock\"; accepted: an absolute path of at most 107 bytes\n"},
      {with("admin.socket = '/" + std::string(107, 'a') + "'"),
       "1:16: error: socket is \"/" + std::string(107, 'a') +
           "\"; accepted: an absolute path of at most 107 bytes\n"},
      {with("bpf.pin = \"/a\\u0000b\""),
       "1:11: error: pin is \"/a\\x00b\"; accepted: an absolute path of at most 4095 bytes\n"},
      {with("admin.http = 'localhost:80'"),
       "1:14: error: http is \"localhost:80\"; accepted: an address with a port, \"127.0.0.1:9464\", or \"\" "
       "for none\n"},
      {with("bpf.max_flows = 16777217"),
       "1:17: error: max_flows is 16777217; accepted: an integer from 0 to 16777216\n"},
      {with("flow.buffer = '63KiB'"),
       "1:15: error: buffer is \"63KiB\"; accepted: a size from \"64KiB\" to \"1GiB\"" + unit},
      {with("flow.buffer = '1025MiB'"),
       "1:15: error: buffer is \"1025MiB\"; accepted: a size from \"64KiB\" to \"1GiB\"" + unit},
      {with("flow.buffer = 65536"),
       "1:15: error: buffer is 65536; accepted: a size from \"64KiB\" to \"1GiB\"" + unit},
      {with("flow.pipe = '4095B'"),
       "1:13: error: pipe is \"4095B\"; accepted: a size from \"4KiB\" to \"64MiB\"" + unit},
      {with("flow.pipe = '65MiB'"),
       "1:13: error: pipe is \"65MiB\"; accepted: a size from \"4KiB\" to \"64MiB\"" + unit},
      {with("limits.memory = '25%'"),
       "1:17: error: memory is \"25%\"; accepted: a size from \"1MiB\" to \"16TiB\"" + unit},
      {with("timeouts.idle = '0s'"), "1:17: error: idle is \"0s\"; accepted: " + duration},
      {with("timeouts.idle = '31d'"), "1:17: error: idle is \"31d\"; accepted: " + duration},
      {with("timeouts.idle = 5"), "1:17: error: idle is 5; accepted: " + duration},
      {with("timeouts.idle = '5'"), "1:17: error: idle is \"5\"; accepted: " + duration},
      {with("", "idle = '0s'"), "7:8: error: idle is \"0s\"; accepted: " + duration},
      {with("", "idle = '1s'\ntimeouts = { idle = '2s' }"),
       "8:21: error: idle stands twice, alone and in timeouts\n"},
      {in_upstream("proxy_protocol = 'v3'"),
       "2:18: error: proxy_protocol is \"v3\"; accepted: \"off\", \"v1\", \"v2\"\n"},
      {in_upstream("family = 4"), "2:10: error: family is 4; accepted: \"any\", \"v4\", \"v6\"\n"},
      {in_route("sni = []\nupstream = 'u'"),
       "8:7: error: sni is an empty array; accepted: strings like \"*.example.net\"\n"},
      {in_route("sni = ['a', 1]\nupstream = 'u'"),
       "8:13: error: sni is 1; accepted: strings like \"*.example.net\"\n"},
      {in_route("alpn = ''\nupstream = 'u'"),
       "8:8: error: alpn \"\"; accepted: a protocol of 1 to 255 bytes like \"h2\"\n"},
      {in_route("port = [0]\nupstream = 'u'"),
       "8:9: error: port is 0; accepted: an integer from 1 to 65535\n"},
      {in_route("port = 65536\nupstream = 'u'"),
       "8:8: error: port is 65536; accepted: an integer from 1 to 65535\n"},
      {in_route("source = ['10.0.0.0/33']\nupstream = 'u'"),
       "8:11: error: source \"10.0.0.0/33\"; accepted: an address or a prefix like \"192.0.2.0/24\", "
       "\"2001:db8::/32\"\n"},
      {in_route("source = ['10.1.2.3/8']\nupstream = 'u'"),
       "8:11: error: source \"10.1.2.3/8\" has bits beyond its prefix; accepted: \"10.0.0.0/8\", or "
       "\"10.1.2.3\" alone\n"},
      {with("", "accept_proxy = true"),
       "7:16: error: accept_proxy is true; accepted: { from = [\"192.0.2.1/32\"], others = \"reject\" or "
       "\"direct\" }\n"},
      {with("", "accept_proxy = { others = 'direct' }"),
       "7:16: error: accept_proxy without from; accepted: { from = [\"192.0.2.1/32\"], others = \"reject\" "
       "or "
       "\"direct\" }\n"},
      {with("", "accept_proxy = { from = [], others = 'allow' }"),
       "7:25: error: from is an empty array; accepted: strings like \"192.0.2.1/32\"\n"
       "7:38: error: others is \"allow\"; accepted: \"reject\", \"direct\"\n"},
      {with("", "accept_proxy = { from = ['::1', 1, 'front', '10.0.0.1/8'] }"),
       "7:33: error: from is 1; accepted: strings like \"192.0.2.1/32\"\n"
       "7:36: error: from \"front\"; accepted: an address or a prefix like \"192.0.2.0/24\", "
       "\"2001:db8::/32\"\n"
       "7:45: error: from \"10.0.0.1/8\" has bits beyond its prefix; accepted: \"10.0.0.0/8\", or "
       "\"10.0.0.1\" alone\n"},
      {with("", "accept_proxy = { form = '::1' }"),
       "7:16: error: accept_proxy without from; accepted: { from = [\"192.0.2.1/32\"], others = \"reject\" "
       "or "
       "\"direct\" }\n"
       "7:18: error: unknown key \"form\" in accept_proxy; did you mean \"from\"? accepted: from, others\n"},
      {in_route("port = 25\naction = 'drop'"), "9:10: error: action is \"drop\"; accepted: \"reject\"\n"},
      {with("", "route = [1]"),
       "7:9: error: route is an array; accepted: an array of tables, [[listener.route]]\n"},
      {"listener = []",
       "1:12: error: listener is an empty array; accepted: an array of tables, [[listener]]\n"},
      {"[listener]\nbind = ':1'",
       "1:1: error: listener is a table; accepted: an array of tables, [[listener]]\n"},
      {"upstream = 1\n[[listener]]\nbind = ':1'\nupstream = 'u'",
       "1:12: error: upstream is 1; accepted: tables, each [upstream.NAME]\n"
       "4:12: error: upstream \"u\" is not defined; accepted: the NAME of an [upstream.NAME]\n"},
      {with("upstream.servers = ['a']"),
       "1:20: error: upstream.servers is an array; accepted: a table, [upstream.NAME]\n"},
  });
}

TEST(Config, Servers) {
  const auto server = [](std::string_view value) {
    return fmt::format("[upstream.u]\nservers = [{}]\n[[listener]]\nbind = ':1'\nupstream = 'u'\n", value);
  };
  const auto wrong = [](std::string_view shown, std::string_view why) {
    return fmt::format(
        "2:12: error: server \"{}\" {}; accepted: \"host\", \"host:port\", \"192.0.2.1:25\", "
        "\"[2001:db8::1]:443\", \"2001:db8::1\"\n",
        shown, why);
  };
  const std::string_view name = "is not a host name or an address",
                         port = "has no port from 1 to 65535 after the colon",
                         brackets = "has brackets that do not enclose an IPv6 address";
  const std::string long_label(64, 'a'), long_name = std::string(63, 'a') + "." + std::string(63, 'b') + "." +
                                                     std::string(63, 'c') + "." + std::string(62, 'd');
  expect({
      {server("''"), wrong("", name)},
      {server("'mail box'"), wrong("mail box", name)},
      {server("'-a.b'"), wrong("-a.b", name)},
      {server("'a..b'"), wrong("a..b", name)},
      {server("'.'"), wrong(".", name)},
      {server("'" + long_label + "'"), wrong(long_label, name)},
      {server("'" + long_name + "'"), wrong(long_name, name)},
      {server("'192.0.2.256'"), wrong("192.0.2.256", name)},
      {server("'192.0.2'"), wrong("192.0.2", name)},
      {server("'m\xc3\xbcll.example'"), wrong("m\\xc3\\xbcll.example", name)},
      {server("'2001:db8::g'"), wrong("2001:db8::g", name)},
      {server("'fe80::1%eth0'"), wrong("fe80::1%eth0", name)},
      {server("'https://a'"), wrong("https://a", port)},
      {server("'a:'"), wrong("a:", port)},
      {server("'a:0'"), wrong("a:0", port)},
      {server("'a:65536'"), wrong("a:65536", port)},
      {server("'a:25x'"), wrong("a:25x", port)},
      {server("'[::1]:'"), wrong("[::1]:", port)},
      {server("'[::1'"), wrong("[::1", brackets)},
      {server("'[::1]25'"), wrong("[::1]25", brackets)},
      {server("'[192.0.2.1]:25'"), wrong("[192.0.2.1]:25", brackets)},
      {server("'[a]:25'"), wrong("[a]:25", brackets)},
      {server("1"), "2:12: error: servers is 1; accepted: a string or { address = \"host:port\" }\n"},
      {server("{}"),
       "2:12: error: a server without address; accepted: a string or { address = \"host:port\" }\n"},
      {server(""), "2:11: error: servers is an empty array; accepted: at least one server\n"},
      {server("{ adress = 'a', address = 'a' }"),
       "2:14: error: unknown key \"adress\" in a server; did you mean \"address\"? accepted: address, "
       "weight, backup\n"},
      {server("{ address = 1 }"),
       "2:24: error: servers is 1; accepted: a string or { address = \"host:port\" }\n"},
      {server("{ address = 'a', weight = 0 }"),
       "2:38: error: weight is 0; accepted: an integer from 1 to 256\n"},
      {server("{ address = 'a', weight = 257 }"),
       "2:38: error: weight is 257; accepted: an integer from 1 to 256\n"},
      {server("{ address = 'a', backup = 1 }"), "2:38: error: backup is 1; accepted: true or false\n"},
      {server("'a',\n'b',\n{ address = 'a' }"),
       "4:13: error: server \"a\" stands twice, first at line 2; accepted: once, with a weight\n"},
      {server("'a', 'a:25', 'A'"), ""},
      {server("{ address = 'a', backup = true }, { address = 'b', backup = true }"),
       "2:24: error: every server of upstream \"u\" is a backup; accepted: at least one without backup = "
       "true\n"},
  });
}

TEST(Config, AtMost1024ServersInAnUpstream) {
  const auto of = [](int count) {
    std::string servers;
    for (int i = 0; i < count; ++i) servers += fmt::format("'a{}',", i);
    return "[upstream.u]\nservers = [" + servers + "]\n[[listener]]\nbind = ':1'\nupstream = 'u'\n";
  };
  EXPECT_EQ(said(of(1024)), "");
  EXPECT_EQ(said(of(1025)), "2:11: error: 1025 servers; accepted: at most 1024\n");
}

TEST(Config, Checks) {
  const std::string duration = ", a string with the unit ms, s, m, h or d\n",
                    types = "\"tcp\", \"tls\", \"smtp\", \"imap\"";
  const auto check = [](std::string_view value, std::string_view more = "") {
    return fmt::format(
        "[upstream.u]\nservers = 'a:1'\ncheck = {}\n{}\n[[listener]]\nbind = ':1'\nupstream = 'u'\n", value,
        more);
  };
  expect({
      {check("'http'"), "3:9: error: check is \"http\"; accepted: " + types + "\n"},
      {check("1"),
       "3:9: error: check is 1; accepted: " + types + ", or a table, { type = \"smtp\", port = 25 }\n"},
      {check("{ type = 'http' }"), "3:18: error: type is \"http\"; accepted: " + types + "\n"},
      {check("{ port = 0 }"), "3:18: error: port is 0; accepted: an integer from 1 to 65535\n"},
      {check("{ interval = '999ms' }"),
       "3:22: error: interval is \"999ms\"; accepted: a duration from \"1s\" to \"1h\"" + duration},
      {check("{ interval = '61m' }"),
       "3:22: error: interval is \"61m\"; accepted: a duration from \"1s\" to \"1h\"" + duration},
      {check("{ timeout = '99ms' }"),
       "3:21: error: timeout is \"99ms\"; accepted: a duration from \"100ms\" to \"1m\"" + duration},
      {check("{ timeout = '61s' }"),
       "3:21: error: timeout is \"61s\"; accepted: a duration from \"100ms\" to \"1m\"" + duration},
      {check("{ timeout = '3s', interval = '2s' }"),
       "3:21: error: timeout is \"3s\", longer than the interval; accepted: at most \"2s\"\n"},
      {check("{ timeout = '11s' }"),
       "3:21: error: timeout is \"11s\", longer than the interval; accepted: at most \"10s\"\n"},
      {check("{ timeout = '2s', interval = '2s' }"), ""},
      {check("{ rise = 0 }"), "3:18: error: rise is 0; accepted: an integer from 1 to 100\n"},
      {check("{ fall = 101 }"), "3:18: error: fall is 101; accepted: an integer from 1 to 100\n"},
      {check("{ proxy = 'on' }", "proxy_protocol = 'v1'"),
       "3:19: error: proxy is \"on\"; accepted: \"local\", \"own\", \"off\"\n"},
      {check("{ proxy = 'own' }"),
       "3:19: error: this check would send a PROXY header, and this upstream speaks none; accepted: proxy = "
       "\"off\", or proxy_protocol = \"v1\" or \"v2\" in the upstream\n"},
      {check("{ proxy = 'off' }"), ""},
      {check("{ proxy = 'local' }", "proxy_protocol = 'v1'"), ""},
      {check("{ type = 'tls', sni = 'a b' }"), "3:31: error: sni is \"a b\"; accepted: a host name\n"},
      {check("{ type = 'smtp', sni = 'a' }"),
       "3:26: error: sni stands in a check that is not TLS; accepted: type = \"tls\", or no sni\n"},
      {in_upstream("check = 'smtp'"),
       "2:9: error: this check has no port: server \"::1\" is reached at the port the client came in on; "
       "accepted: "
       "check = { type = \"tcp\", port = 25 }, or \"[::1]:25\" as the server\n"},
      {check("{}"), ""},
  });
  EXPECT_EQ(config_of(check("{ interval = '2s' }")).upstreams.at(0).check->timeout, 2s);
  EXPECT_EQ(config_of(check("{ type = 'smtp' }")).upstreams.at(0).check->proxy, CheckProxy::off);
  EXPECT_EQ(config_of(check("{}", "proxy_protocol = 'v2'")).upstreams.at(0).check->proxy, CheckProxy::local);
  EXPECT_EQ(config_of(check("{}", "proxy_protocol = 'v1'")).upstreams.at(0).check->proxy, CheckProxy::own);
  EXPECT_EQ(config_of(check("{ proxy = 'local' }", "proxy_protocol = 'v1'")).upstreams.at(0).check->proxy,
            CheckProxy::local);
  EXPECT_EQ(config_of(check("{ proxy = 'off' }", "proxy_protocol = 'v2'")).upstreams.at(0).check->proxy,
            CheckProxy::off);
}

TEST(Config, Upstreams) {
  expect({
      {"[upstream.u]\n[[listener]]\nbind = ':1'\nupstream = 'u'\n",
       "1:11: error: upstream \"u\" has no servers; accepted: servers = [\"host\", \"host:port\"], or srv = "
       "\"_imap._tcp.example.net\"\n"},
      {in_upstream("srv = '_imap._tcp.example.net'"),
       "1:11: error: upstream \"u\" has both servers and srv; accepted: servers = [\"host\", \"host:port\"], "
       "or srv = "
       "\"_imap._tcp.example.net\"\n"},
      {"[upstream.u]\nsrv = '192.0.2.1'\n[[listener]]\nbind = ':1'\nupstream = 'u'\n",
       "2:7: error: srv is \"192.0.2.1\"; accepted: a name with SRV records, \"_imap._tcp.example.net\"\n"},
      {in_upstream("balance = 'random'"),
       "2:11: error: balance is \"random\"; accepted: \"round_robin\", \"least_flows\", \"source_hash\"\n"},
      {in_upstream("retries = 11"), "2:11: error: retries is 11; accepted: an integer from 0 to 10\n"},
      {in_upstream("on_down = 'attempt'"),
       "2:11: error: on_down is \"attempt\"; accepted: \"try\", \"refuse\", \"close\"\n"},
      {in_upstream("on_marked_down = true"),
       "2:18: error: on_marked_down is true; accepted: \"keep\", \"close\"\n"},
      {in_upstream("source = 'eth0'"),
       "2:10: error: source is \"eth0\"; accepted: an address of this host, \"192.0.2.1\" or "
       "\"2001:db8::1\"\n"},
      {in_upstream("source = '192.0.2.1'"),
       "3:12: error: server \"::1\" cannot be reached from this upstream's source, \"192.0.2.1\": they are "
       "of two "
       "families\n"},
      {in_upstream("source = '192.0.2.1'\nfamily = 'v6'"),
       "2:10: error: source \"192.0.2.1\" is not of this upstream's family, \"v6\"\n"},
      {in_upstream("tlvs = 'crc32c'"),
       "2:1: error: tlvs with proxy_protocol = \"off\"; accepted: proxy_protocol = \"v2\"\n"},
      {in_upstream("tlvs = ['unique_id']\nproxy_protocol = 'v1'"),
       "2:1: error: tlvs with proxy_protocol = \"v1\"; accepted: proxy_protocol = \"v2\"\n"},
      {in_upstream("tlvs = ['alpn']\nproxy_protocol = 'v2'"),
       "2:9: error: tlvs is \"alpn\"; accepted: \"unique_id\", \"crc32c\"\n"},
      {in_upstream("tlvs = []\nproxy_protocol = 'v2'"),
       "2:8: error: tlvs is an empty array; accepted: \"unique_id\", \"crc32c\"\n"},
      {"[upstream.'a b']\nservers = 'a'\n" + with("").substr(1),
       "1:11: error: upstream \"a b\"; accepted: a name of 1 to 63 letters, digits, '-', '_' and '.'\n"
       "1:11: warning: upstream \"a b\" is not used\n"},
      {"[upstream.u]\nfamily = 'v6'\nservers = ['a', '::1', '192.0.2.1']\n[[listener]]\nbind = "
       "':1'\nupstream = 'u'\n",
       "3:24: error: server \"192.0.2.1\" is not of this upstream's family, \"v6\"\n"},
      {"[upstream.u]\nfamily = 'v4'\nservers = ['::1']\n[[listener]]\nbind = ':1'\nupstream = 'u'\n",
       "3:12: error: server \"::1\" is not of this upstream's family, \"v4\"\n"},
      {with("upstream.spare.servers = 'a'"), "1:10: warning: upstream \"spare\" is not used\n"},
  });
}

TEST(Config, Binds) {
  const auto bind = [](std::string_view value) {
    return fmt::format("[upstream.u]\nservers = 'a'\n[[listener]]\nbind = [{}]\nupstream = 'u'\n", value);
  };
  const auto wrong = [](std::string_view shown, std::string_view why) {
    return fmt::format(
        "4:9: error: bind \"{}\" {}; accepted: \":25\" (every IPv4 and IPv6 address), \"192.0.2.1:25\", "
        "\"[2001:db8::1]:25\"\n",
        shown, why);
  };
  const std::string_view address = "is not an address with a port",
                         port = "has no port from 1 to 65535 after the colon";
  expect({
      {bind("''"), wrong("", "has no port")},
      {bind("'25'"), wrong("25", "has no port")},
      {bind("'::1'"), wrong("::1", "has no port")},
      {bind("'[::1]'"), wrong("[::1]", "has no port")},
      {bind("':0'"), wrong(":0", port)},
      {bind("':65536'"), wrong(":65536", port)},
      {bind("':smtp'"), wrong(":smtp", port)},
      {bind("'localhost:25'"), wrong("localhost:25", address)},
      {bind("'[*]:25'"), wrong("[*]:25", address)},
      {bind("'[192.0.2.1]:25'"), wrong("[192.0.2.1]:25", address)},
      {bind("'[::1:25'"), wrong("[::1:25", "has brackets that do not enclose an IPv6 address")},
      {bind("25"), "4:9: error: bind is 25; accepted: strings like \":25\"\n"},
      {bind(""), "4:8: error: bind is an empty array; accepted: strings like \":25\"\n"},
      {bind("':25', '*:25'"), "4:16: error: bind \"*:25\" is taken already, by \":25\" at line 4\n"},
      {bind("':25', '0.0.0.0:25'"),
       "4:16: error: bind \"0.0.0.0:25\" is taken already, by \":25\" at line 4\n"},
      {bind("'[::]:25', ':25'"), "4:20: error: bind \":25\" is taken already, by \"[::]:25\" at line 4\n"},
      {bind("'[::1]:25', '[0:0::1]:25'"),
       "4:21: error: bind \"[0:0::1]:25\" is taken already, by \"[::1]:25\" at line 4\n"},
      {bind("'0.0.0.0:25', '[::]:25', '192.0.2.1:25', ':26', '192.0.2.1:26'"), ""},
  });
  EXPECT_EQ(said(with("", "[[listener]]\nbind = [':24', ':25']\nupstream = 'u'")),
            "8:16: error: bind \":25\" is taken already, by \":25\" at line 5\n");
}

TEST(Config, Listeners) {
  expect({
      {"", "1:1: error: there is no listener; accepted: at least one [[listener]] with bind and upstream\n"},
      {"[[listener]]",
       "1:1: error: this listener has no bind; accepted: bind = [\":25\"]\n"
       "1:1: error: this listener has no upstream; accepted: upstream = \"NAME\", for when no route "
       "matches\n"},
      {with("", "name = ''"),
       "7:8: error: name is \"\"; accepted: 1 to 63 letters, digits, '-', '_' and '.'\n"},
      {with("", "name = 'a\tb'"),
       "7:8: error: name is \"a\\x09b\"; accepted: 1 to 63 letters, digits, '-', '_' and '.'\n"},
      {with("", "name = 'x'\n[[listener]]\nname = 'x'\nbind = ':1'\nupstream = 'u'"),
       "9:8: error: listener \"x\" is defined twice, first at line 7\n"},
      {with("", "name = 'listener1'\n[[listener]]\nbind = ':1'\nupstream = 'u'"),
       "8:1: error: listener \"listener1\" is defined twice, first at line 7\n"},
  });
}

TEST(Config, DevicesOfAListener) {
  const auto wrong = [](std::string_view shown) {
    return fmt::format(
        "7:13: error: interface is {}; accepted: a device's name of 1 to 15 bytes without '/', ':' "
        "or space\n",
        shown);
  };
  expect({
      {with("", "interface = 'fifteen-bytes15'"), ""},
      {with("", "interface = 'sixteen-bytes-16'"), wrong("\"sixteen-bytes-16\"")},
      {with("", "interface = ''"), wrong("\"\"")},
      {with("", "interface = '..'"), wrong("\"..\"")},
      {with("", "interface = 'a/b'"), wrong("\"a/b\"")},
      {with("", "interface = 'eth0:1'"), wrong("\"eth0:1\"")},
      {with("", "interface = 'a b'"), wrong("\"a b\"")},
      {with("", "interface = \"a\\u0001\""), wrong("\"a\\x01\"")},
      {with("", "interface = 1"), wrong("1")},
      // The same address on two devices is two binds.
      {with("",
            "interface = 'a'\n[[listener]]\nbind = ':25'\nupstream = 'u'\n"
            "[[listener]]\nbind = ':25'\nupstream = 'u'\ninterface = 'b'"),
       ""},
      {with("", "interface = 'a'\n[[listener]]\nbind = ':25'\nupstream = 'u'\ninterface = 'a'"),
       "9:8: error: bind \":25\" is taken already, by \":25\" at line 5\n"},
  });
}

TEST(Config, AllowAndDeny) {
  std::string many = "'::1'";
  for (int i = 0; i < 1024; ++i) many += ", '::1'";
  expect({
      {with("", "allow = '192.0.2.1'\ndeny = ['::/0', '0.0.0.0/0']"), ""},
      {with("", "allow = 'example.net'"),
       "7:9: error: allow \"example.net\"; accepted: an address or a prefix like \"192.0.2.0/24\", "
       "\"2001:db8::/32\"\n"},
      {with("", "deny = ['10.1.2.3/8']"),
       "7:9: error: deny \"10.1.2.3/8\" has bits beyond its prefix; accepted: \"10.0.0.0/8\", or "
       "\"10.1.2.3\" alone\n"},
      {with("", "deny = []"),
       "7:8: error: deny is an empty array; accepted: strings like \"192.0.2.0/24\"\n"},
      {with("", "allow = [" + many + "]"), "7:9: error: allow has 1025 prefixes; accepted: at most 1024\n"},
  });
}

TEST(Config, Limits) {
  const auto rate = [](std::string_view value) {
    return with(fmt::format("limits.new_flows_per_client = {}", value));
  };
  const auto wrong = [](std::string_view shown) {
    return fmt::format(
        "1:31: error: new_flows_per_client is {}; accepted: \"COUNT/TIME\" like \"30/1m\" or "
        "\"10/s\", a count from 1 to 1000000, a time up to 1d\n",
        shown);
  };
  for (const auto& [value, count, per] : {std::tuple{"'1/ms'", 1u, 1ms},
                                          {"'100/10s'", 100u, 10'000ms},
                                          {"'1000000/1d'", 1'000'000u, 86'400'000ms}}) {
    const auto parsed = config_of(rate(value)).limits.new_flows_per_client;
    ASSERT_TRUE(parsed) << value;
    EXPECT_EQ(parsed->count, count) << value;
    EXPECT_EQ(parsed->per, per) << value;
  }
  expect({
      {rate("30"), wrong("30")},
      {rate("''"), wrong("\"\"")},
      {rate("'30'"), wrong("\"30\"")},
      {rate("'/s'"), wrong("\"/s\"")},
      {rate("'30/'"), wrong("\"30/\"")},
      {rate("'0/s'"), wrong("\"0/s\"")},
      {rate("'-1/s'"), wrong("\"-1/s\"")},
      {rate("'30/1m/1m'"), wrong("\"30/1m/1m\"")},
      {rate("'30 / 1m'"), wrong("\"30 / 1m\"")},
      {rate("'30/0s'"), wrong("\"30/0s\"")},
      {rate("'30/60'"), wrong("\"30/60\"")},
      {rate("'30/25h'"), wrong("\"30/25h\"")},
      {rate("'1000001/s'"), wrong("\"1000001/s\"")},
      {rate("'99999999999/s'"), wrong("\"99999999999/s\"")},
      {with("limits.max_flows = 0"),
       "1:20: error: max_flows is 0; accepted: an integer from 1 to 16777216\n"},
      {with("", "max_flows_per_client = 16777217"),
       "7:24: error: max_flows_per_client is 16777217; accepted: an integer from 1 to 16777216\n"},
      {with("", "max_flows = 1\nlimits = { max_flows = 2 }"),
       "8:24: error: max_flows stands twice, alone and in limits\n"},
      {with("", "new_flows_per_client = '1/s'\nlimits = { new_flows_per_client = '1/s' }"),
       "8:35: error: new_flows_per_client stands twice, alone and in limits\n"},
  });
}

TEST(Config, ReferencesToUpstreams) {
  const std::string mailbox = "[upstream.mailbox]\nservers = 'a'\n[[listener]]\nbind = ':1'\n";
  expect({
      {mailbox + "upstream = 'mailbx'",
       "5:12: error: upstream \"mailbx\" is not defined; did you mean \"mailbox\"?\n"},
      {mailbox + "upstream = 'web'",
       "5:12: error: upstream \"web\" is not defined; accepted: the NAME of an [upstream.NAME]\n"},
      {in_route("sni = 'a'\nupstream = 'v'"),
       "9:12: error: upstream \"v\" is not defined; did you mean \"u\"?\n"},
  });
}

TEST(Config, Routes) {
  const std::string sni_accepted =
      "accepted: \"www.example.net\", \"*.example.net\" (every name below), \"mta-sts.*\" (that first "
      "label), \"*\" (any "
      "name)\n";
  expect({
      {in_route("sni = 'a'"),
       "7:1: error: this route has neither upstream nor action; accepted: upstream = \"NAME\", or action = "
       "\"reject\"\n"},
      {in_route("sni = 'a'\nupstream = 'u'\naction = 'reject'"),
       "7:1: error: this route has both upstream and action; accepted: upstream = \"NAME\", or action = "
       "\"reject\"\n"},
      {in_route("upstream = 'u'"),
       "7:1: error: this route matches everything, as the listener's own upstream does; accepted: at least "
       "one of sni, "
       "alpn, source, port\n"},
      {in_route("sni = ['*', 'a.*', '1.*', '*.b', 'a_b.c', 'xn--mll-hoa.example.']\naction = 'reject'"), ""},
  });
  for (const char* pattern : {"", ".", "*.", ".*", "**", "*.*", "a.*.b", "a.b.*", "*a.b", "a*", "a..b",
                              "192.0.2.1", "a b", "a.*.", "*..", "*.a..", "a.."}) {
    EXPECT_EQ(said(in_route(fmt::format("sni = '{}'\nupstream = 'u'", pattern))),
              fmt::format("8:7: error: sni \"{}\" is not a name or a pattern; {}", pattern, sni_accepted));
  }
}

TEST(Config, RoutesThatCanNeverMatch) {
  const struct {
    const char *first, *second;
    bool covered;
  } cases[] = {
      {"sni = '*'", "sni = 'a.b'", true},
      {"sni = '*.example.net'", "sni = ['a.example.net', '*.b.example.net']", true},
      {"sni = '*.example.net'", "sni = ['a.example.net', 'example.net']", false},
      {"sni = ['a.b', 'c.*']", "sni = ['C.d', 'a.b', 'c.*']", true},
      {"sni = 'a.*'", "sni = '*'", false},
      {"sni = 'a.*'", "sni = '*.b'", false},
      {"sni = '*.b'", "sni = 'a.*'", false},
      {"sni = '*'", "alpn = 'h2'", false},
      {"alpn = ['h2', 'h3']", "alpn = 'h2'\nsni = 'a'", true},
      {"alpn = 'h2'", "alpn = ['h2', 'h3']", false},
      {"source = '10.0.0.0/8'", "source = ['10.1.0.0/16', '10.0.0.0/8']", true},
      {"source = '10.1.0.0/16'", "source = '10.0.0.0/8'", false},
      {"source = '::/0'", "source = '10.0.0.0/8'", false},
      {"source = '0.0.0.0/0'", "source = '10.0.0.0/8'", true},
      {"port = 25", "sni = 'a'", true},  // the listener binds no other port
      {"sni = 'a'\nport = 25", "sni = 'b'", false},
      {"port = 26", "sni = 'a'", false},
  };
  for (const auto& c : cases) {
    const std::string text = in_route(
        fmt::format("upstream = 'u'\n{}\n[[listener.route]]\nupstream = 'u'\n{}", c.first, c.second));
    const bool warned =
        said(text).find(": warning: this route can never match: the one at line 7 matches first\n") !=
        std::string::npos;
    EXPECT_EQ(warned, c.covered) << c.first << " / " << c.second;
  }
  EXPECT_EQ(said(in_route("port = [26, 80]\nupstream = 'u'")),
            "7:1: warning: this route can never match: its listener binds none of its ports\n");
}

TEST(Config, ChecksThatCannotFitTheirPort) {
  const auto upstream = [](const char* port, const char* type) {
    return fmt::format(
        "[upstream.u]\nservers = ['192.0.2.1:{}']\ncheck = '{}'\n[[listener]]\nname = 'l'\n"
        "bind = [':7']\nupstream = 'u'\n",
        port, type);
  };
  for (const auto& [port, type] : {std::pair{"465", "smtp"}, {"993", "imap"}, {"25", "tls"}, {"143", "tls"}})
    EXPECT_NE(said(upstream(port, type)).find("warning: upstream \"u\": port "), std::string::npos) << port;
  for (const auto& [port, type] : {std::pair{"25", "smtp"}, {"143", "imap"}, {"993", "tls"}, {"2525", "tls"}})
    EXPECT_EQ(said(upstream(port, type)), "") << port;
}

// "${HOST}:443" with an IPv6 address in HOST.
TEST(Config, AnAddressThatMayEndInAPort) {
  for (const char* text : {"fd00::2:443", "2001:db8::1:2:25"}) {
    EXPECT_FALSE(config::parse_server(text)) << text;
    EXPECT_TRUE(config::parse_server(fmt::format("[{}]", text))) << text;
  }
  for (const char* text : {"fd00::2", "::1", "2001:db8:1:2:3:4:5:25", "fd00::abc", "::ffff:192.0.2.1"})
    EXPECT_TRUE(config::parse_server(text)) << text;
}

TEST(Config, Variables) {
  EXPECT_EQ(said(with("daemon.user = '${NOBODY}'\ndaemon.group = '${'")),
            "1:15: error: NOBODY is not set, neither in the environment nor in the env file; accepted: "
            "NOBODY=value in "
            "either, or ${NOBODY:-default} here\n"
            "2:16: error: \"${\" does not name a variable; accepted: ${NAME} or ${NAME:-default}, NAME of "
            "letters, digits "
            "and _\n");
  EXPECT_EQ(said(with("timeouts.idle = '${NOBODY}'")),  // and nothing of what it is not
            "1:17: error: NOBODY is not set, neither in the environment nor in the env file; accepted: "
            "NOBODY=value in "
            "either, or ${NOBODY:-default} here\n");
  EXPECT_EQ(config_of(with("daemon.user = 'a${PORT}-${X:-b}'")).daemon.user, "a8443-b");
  EXPECT_EQ(config_of(with("timeouts.idle = '${X:-7s}'")).timeouts.idle, 7s);
}

TEST(Config, EveryMistakeInOneGoInTheOrderOfTheLines) {
  EXPECT_EQ(
      said("[[listener]]\n"
           "upstream = 'b'\n"
           "bind = ['x', ':0']\n"
           "[upstream.a]\n"
           "servers = ['a b', 'c:']\n"
           "[daemon]\n"
           "threads = 'x'\n"
           "typo = 1\n"),
      "2:12: error: upstream \"b\" is not defined; did you mean \"a\"?\n"
      "3:9: error: bind \"x\" has no port; accepted: \":25\" (every IPv4 and IPv6 address), "
      "\"192.0.2.1:25\", "
      "\"[2001:db8::1]:25\"\n"
      "3:14: error: bind \":0\" has no port from 1 to 65535 after the colon; accepted: \":25\" (every IPv4 "
      "and IPv6 "
      "address), \"192.0.2.1:25\", \"[2001:db8::1]:25\"\n"
      "5:12: error: server \"a b\" is not a host name or an address; accepted: \"host\", \"host:port\", "
      "\"192.0.2.1:25\", \"[2001:db8::1]:443\", \"2001:db8::1\"\n"
      "5:19: error: server \"c:\" has no port from 1 to 65535 after the colon; accepted: \"host\", "
      "\"host:port\", "
      "\"192.0.2.1:25\", \"[2001:db8::1]:443\", \"2001:db8::1\"\n"
      "7:11: error: threads is \"x\"; accepted: an integer from 0 to 256\n"
      "8:1: error: unknown key \"typo\" in [daemon]; accepted: threads, engine, user, group, shutdown_grace, "
      "log\n");
}

// ---- what is not TOML, or too much of it

TEST(Config, SyntaxErrorsAreOneLineWithTheirPlace) {
  for (const auto& [text, at] : std::vector<std::pair<std::string, std::string>>{
           {"[upstream.a\nservers = 1", "1:12: "},
           {"a = 1\na = 2\n", "2:5: "},
           {"\n\nx = \"abc\ny = 1", "3:9: "},
           {"x = \xff\n", "1:"},
           {std::string("x = \"\0\"", 7), "1:6: "},
           {"x = 99999999999999999999", "1:"},
           {"\xc3\xbc = 1", "1:1: "},
           {"[^listener]\n", "1:2: "},
           {"[[${NAME}]]\n", "1:3: "},
           {"x = 2[\"\"\"\xc3\xbc\"\"\"]", "1:10: "},
           {"# \xc3\xbc\nx = \"\"\"\xc3\xbc \\\n\xc3\xbc\"\"\"", "3:1: "},
       }) {
    const Parsed p = parsed(text);
    EXPECT_FALSE(p.config);
    ASSERT_EQ(p.diagnostics.size(), 1u) << text;
    const std::string& line = p.diagnostics[0].text;
    EXPECT_TRUE(line.starts_with("p.toml:" + at)) << line;
    EXPECT_NE(line.find(": error: "), line.npos) << line;
    for (const char c : line) EXPECT_TRUE(c >= 0x20 && c < 0x7f) << line;
  }
}

TEST(Config, DeepNestingIsRefusedBeforeItIsParsed) {
  const std::string deep =
      ": error: nested too deeply; accepted: 32 brackets within each other, 8 dots in a key\n";
  const auto repeated = [](std::string_view text, int times) {
    std::string out;
    for (int i = 0; i < times; ++i) out += text;
    return out;
  };
  EXPECT_EQ(said(repeated("[", 10'000)), "1:33" + deep);
  EXPECT_EQ(said("x = " + repeated("[", 10'000)), "1:37" + deep);
  EXPECT_EQ(said("x = " + repeated("{a=", 10'000)), "1:101" + deep);
  EXPECT_EQ(said(repeated("a.", 500'000) + "b = 1"), "1:18" + deep);
  EXPECT_EQ(said("[" + repeated("a.", 500'000) + "b]"), "1:19" + deep);
  EXPECT_EQ(said("\n" + repeated("\"=\".", 200'000) + "b = 1"), "2:36" + deep);
  EXPECT_EQ(said("s = '''\n[[['''\nt = \"\"\"\"\\\"\"\"\"\"\n" + repeated("a.", 100'000) + "b = 1"),
            "4:18" + deep);
}

TEST(Config, BracketsAndDotsInStringsAndCommentsAreNotNesting) {
  const std::string many(200, '['), dots(200, '.');
  for (const std::string& text :
       {"# " + many + dots, "daemon.user = '" + many + dots + "'",
        "daemon.user = \"\\\"" + many + dots + "\"", "daemon.user = '''\n" + many + dots + "'''",
        "daemon.user = \"\"\"\n" + many + "\\\"\"\"" + dots + "\"\"\""}) {
    EXPECT_EQ(said(with(text)), "") << text;
  }
}

TEST(Config, TextOfMoreThanOneMiB) {
  const std::string comment((1 << 20) - with("").size(), '#');
  EXPECT_EQ(said(with(comment)), "");
  EXPECT_EQ(said(with(comment + "#")),
            "1:1: error: the file is larger than 1048576 bytes; accepted: at most 1 MiB\n");
}

TEST(Config, TooManyOfAKind) {
  std::string upstreams, listeners, routes;
  for (int i = 0; i < 1025; ++i) {
    upstreams += fmt::format("[upstream.u{}]\nservers = 'a'\n", i);
    listeners += fmt::format("[[listener]]\nbind = ':{}'\nupstream = 'u{}'\n", i + 1, i);
    routes += fmt::format("[[listener.route]]\nsni = 'n{}.x'\nupstream = 'u'\n", i);
  }
  EXPECT_EQ(said(upstreams + listeners),
            "1:1: error: 1025 upstreams; accepted: at most 1024\n2051:1: error: 1025 listeners; accepted: at "
            "most 1024\n");
  EXPECT_EQ(said(with("", routes)), "4:1: error: this listener has 1025 routes; accepted: at most 1024\n");
}

}  // namespace
}  // namespace penstock::config
