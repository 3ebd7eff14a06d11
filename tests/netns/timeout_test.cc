// SPDX-License-Identifier: Apache-2.0
// Every timeout, on each level it may stand on. [timeouts] says 1, the listener 2, the upstream 3 times a
// short time: a flow that ended by the wrong one would have lived too short.
#include <sys/socket.h>

#include <algorithm>
#include <charconv>

#include "netns/edge.h"
#include "support/tls_hello.h"

namespace penstock::test {
namespace {

class Timeout : public Edge {
 protected:
  static constexpr uint16_t kGlobalPort = 2531, kListenerPort = 2532, kUpstreamPort = 2533;

  // Listeners "global", "listener" and "upstream", the last two with `key` on that level.
  static std::string on_each_level(const std::string& key, unsigned ms, const std::string& server) {
    const auto value = [&](unsigned times) { return key + " = \"" + std::to_string(times * ms) + "ms\"\n"; };
    const std::string servers = "servers = [\"" + server + "\"]\n";
    return "[timeouts]\n" + value(1) + "[upstream.plain]\n" + servers + "[upstream.own]\n" + servers +
           value(3) + listener("global", kGlobalPort, "plain") +
           listener("listener", kListenerPort, "plain") + value(2) +
           listener("upstream", kUpstreamPort, "own") + value(2);
  }
  static std::string listener(const std::string& name, uint16_t port, const std::string& upstream) {
    return "[[listener]]\nname = \"" + name + "\"\nbind = [\":" + std::to_string(port) +
           "\"]\nupstream = \"" + upstream + "\"\n";
  }
  void start_tables(const std::string& tables) {
    DaemonOptions options;
    options.tables = tables;
    start_with(std::move(options));
  }
  // That listener's only flow has ended for this reason, and not before its time.
  void expect_ended(const std::string& listener, const std::string& reason, uint64_t least_ms) const {
    const std::string start = " listener=" + listener + " ";
    std::string line;
    ASSERT_TRUE(wait_until([&] {
      const std::string log = daemon_->log();
      const size_t at = log.find(start);
      if (at == std::string::npos || log.find('\n', at) == std::string::npos) return false;
      line = log.substr(at, log.find('\n', at) - at);
      return true;
    })) << listener
        << " still has its flow: " << daemon_->flows();
    EXPECT_NE(line.find("reason=" + reason), std::string::npos) << line;
    uint64_t ms = 0;
    const size_t digits = line.find(" ms=") + 4;
    std::from_chars(line.data() + digits, line.data() + line.size(), ms);
    EXPECT_GE(ms, least_ms) << line;
  }
};
FOR_BOTH_ENGINES(Timeout);

TEST_P(Timeout, ClientHello) {
  const std::string route = "[[listener.route]]\nsni = [\"*\"]\nupstream = \"plain\"\n";
  start_tables("[timeouts]\nclient_hello = \"200ms\"\n[upstream.plain]\nservers = [\"127.0.0.1:3525\"]\n" +
               listener("global", kGlobalPort, "plain") + route +
               listener("listener", kListenerPort, "plain") + "client_hello = \"400ms\"\n" + route);
  const TcpStream silent = TcpStream::connect(at(kAddress, kGlobalPort));
  const TcpStream half = TcpStream::connect(at(kAddress, kListenerPort));
  half.send_all(TlsHello{.sni = "www.example.net"}.bytes().substr(0, 20));
  expect_ended("global", "client_hello_timeout", 200);
  expect_ended("listener", "client_hello_timeout", 400);
  EXPECT_EQ(silent.recv_to_end(), End::reset);
}

TEST_P(Timeout, Connect) {
  // Packets for .99 are sent, and nobody takes them.
  const Netns elsewhere;
  Netns::join(netns_, "near", {"192.0.2.1/24"}, elsewhere, "far", {"192.0.2.2/24"});
  netns_.ip("neigh add 192.0.2.99 lladdr 02:00:00:00:00:99 dev near");
  start_tables(on_each_level("connect", 200, "192.0.2.99:3525"));
  std::vector<TcpStream> clients;
  for (const uint16_t port : {kGlobalPort, kListenerPort, kUpstreamPort})
    clients.push_back(TcpStream::connect(at(kAddress, port)));
  expect_ended("global", "connect_timeout", 200);
  expect_ended("listener", "connect_timeout", 400);
  expect_ended("upstream", "connect_timeout", 600);
}

TEST_P(Timeout, Idle) {
  start_tables(on_each_level("idle", 200, "127.0.0.1:3525"));
  const TcpListener server(at(kAddress, kServerPort));
  std::vector<TcpStream> streams;
  for (const uint16_t port : {kGlobalPort, kListenerPort, kUpstreamPort}) {
    streams.push_back(TcpStream::connect(at(kAddress, port)));
    streams.push_back(server.accept());
  }
  expect_ended("global", "idle_timeout", 200);
  expect_ended("listener", "idle_timeout", 400);
  expect_ended("upstream", "idle_timeout", 600);
  for (const TcpStream& stream : streams) EXPECT_EQ(stream.recv_to_end(), End::reset);
}

TEST_P(Timeout, HalfClosed) {
  start_tables(on_each_level("half_closed", 200, "127.0.0.1:3525"));
  const TcpListener server(at(kAddress, kServerPort));
  std::vector<TcpStream> clients, servers;
  for (const uint16_t port : {kGlobalPort, kListenerPort, kUpstreamPort}) {
    clients.push_back(TcpStream::connect(at(kAddress, port)));
    servers.push_back(server.accept());
    clients.back().half_close();
    EXPECT_EQ(servers.back().recv_to_end(), End::fin);
  }
  expect_ended("global", "half_closed_timeout", 200);
  expect_ended("listener", "half_closed_timeout", 400);
  expect_ended("upstream", "half_closed_timeout", 600);
  for (const TcpStream& stream : clients) EXPECT_EQ(stream.recv_to_end(), End::reset);
}

// A peer behind a cable that is cut: nothing arrives any more, not even a RST. Silent flows are noticed by
// keepalive, those with bytes on their way by TCP_USER_TIMEOUT, twice that.
class Vanished : public Timeout {
 protected:
  static constexpr const char* kFarClient = "192.0.2.2";
  static constexpr const char* kFarServer = "198.51.100.2";
  static constexpr unsigned kMs = 1000;

  void lay_cables() {
    Netns::join(netns_, "clients", {"192.0.2.1/24"}, clients_, "eth0", {"192.0.2.2/24"});
    Netns::join(netns_, "servers", {"198.51.100.1/24"}, servers_, "eth0", {"198.51.100.2/24"});
    // Not to be asked for again, or the kernel would say that there is nobody.
    for (const auto& [device, address, other] :
         {std::tuple{"clients", kFarClient, &clients_}, {"servers", kFarServer, &servers_}})
      netns_.ip(std::string("neigh replace ") + address + " lladdr " + address_of(*other) + " dev " + device);
  }
  static std::string address_of(const Netns& ns) {
    const Netns::Inside inside(ns);
    Process cat({"ip", "-br", "link", "show", "eth0"});
    cat.wait_exit();
    const std::string line = cat.output();
    const size_t colon = line.find(':');
    return line.substr(colon - 2, 17);
  }
  Netns clients_, servers_;
};
FOR_BOTH_ENGINES(Vanished);

TEST_P(Vanished, Client) {
  lay_cables();
  start_tables(on_each_level("keepalive", kMs, "127.0.0.1:3525"));
  const TcpListener server(at(kAddress, kServerPort));
  std::vector<TcpStream> streams;
  for (const uint16_t port : {kGlobalPort, kListenerPort, kUpstreamPort}) {
    const Netns::Inside there(clients_);
    streams.push_back(TcpStream::connect(at("192.0.2.1", port)));
    streams.push_back(server.accept());
    EXPECT_TRUE(wait_until([&] { return daemon_->flows().size() == streams.size() / 2; }));
  }
  EXPECT_TRUE(wait_until([&] {
    const Json flows = daemon_->flows();
    return std::all_of(flows.begin(), flows.end(), [](const Json& f) { return f.at("phase") == "open"; });
  }));
  clients_.ip("link set eth0 down");
  streams.back().send_all("are you there?");  // of "upstream": unacknowledged
  expect_ended("global", "client_timeout", 1 * kMs);
  expect_ended("listener", "client_timeout", 2 * kMs);
  expect_ended("upstream", "client_timeout", 2 * 2 * kMs);  // the client's socket is the listener's
  for (size_t i = 1; i < streams.size(); i += 2) EXPECT_EQ(streams[i].recv_to_end(), End::reset);
}

TEST_P(Vanished, Upstream) {
  lay_cables();
  start_tables(on_each_level("keepalive", kMs, std::string(kFarServer) + ":3525"));
  std::optional<TcpListener> server;
  {
    const Netns::Inside there(servers_);
    server.emplace(at(kFarServer, kServerPort));
  }
  std::vector<TcpStream> clients, servers;
  for (const uint16_t port : {kGlobalPort, kListenerPort, kUpstreamPort}) {
    clients.push_back(TcpStream::connect(at(kAddress, port)));
    servers.push_back(server->accept());
    clients.back().send_all("x");
    EXPECT_EQ(servers.back().recv_exactly(1), "x");
  }
  servers_.ip("link set eth0 down");
  clients[1].send_all("are you there?");  // of "listener": unacknowledged
  expect_ended("global", "upstream_timeout", 1 * kMs);
  expect_ended("listener", "upstream_timeout", 2 * 2 * kMs);
  expect_ended("upstream", "upstream_timeout", 3 * kMs);
  for (const TcpStream& client : clients) EXPECT_EQ(client.recv_to_end(), End::reset);
}

// Whoever is told first, the watch over the socket or a write to it, calls it the same.
TEST_P(Vanished, UpstreamThatBytesWaitFor) {
  constexpr size_t kFlows = 20;
  lay_cables();
  start_tables(on_each_level("keepalive", kMs, std::string(kFarServer) + ":3525"));
  std::optional<TcpListener> server;
  {
    const Netns::Inside there(servers_);
    server.emplace(at(kFarServer, kServerPort));
  }
  std::vector<TcpStream> clients, servers;
  for (size_t i = 0; i < kFlows; ++i) {
    clients.push_back(TcpStream::connect(at(kAddress, kGlobalPort)));
    servers.push_back(server->accept());
    clients.back().send_all("x");
    EXPECT_EQ(servers.back().recv_exactly(1), "x");
  }
  servers_.ip("link set eth0 down");
  const std::string bytes(1 << 20, 'x');
  for (const TcpStream& client : clients) {
    while (send(client.fd(), bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL) > 0) {
    }
  }
  EXPECT_TRUE(closed_for("upstream_timeout", kFlows)) << daemon_->status();
}

}  // namespace
}  // namespace penstock::test
