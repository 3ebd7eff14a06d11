// SPDX-License-Identifier: Apache-2.0
// Servers that are not there and limits that are reached: each has its reason and its counter, disturbs no
// other flow and leaks nothing.
#include <sys/resource.h>
#include <sys/socket.h>

#include <cerrno>
#include <fstream>
#include <vector>

#include "netns/edge.h"
#include "support/named_echo.h"

namespace penstock::test {
namespace {

class Fault : public Edge {
 protected:
  void start_towards(const std::string& server) {
    DaemonOptions options;
    options.tables =
        "[upstream.mailbox]\nservers = [\"" + server +
        "\"]\n[[listener]]\nname = \"mail\"\nbind = [\"127.0.0.1:2525\"]\nupstream = \"mailbox\"\n";
    start_with(std::move(options));
  }
  // One failure marks the server down, which would end its flows and let no new ones come.
  bool is_up_for_a_strict_check() {
    DaemonOptions options;
    options.tables = mail_tables(
        "check = { type = \"tcp\", interval = \"1s\", timeout = \"300ms\", fall = 1 }\n"
        "on_down = \"refuse\"\non_marked_down = \"close\"");
    start_with(std::move(options));
    return wait_until([&] { return health("state") == "up"; });
  }
  Json health(const char* key) const {
    return daemon_->status().at("upstreams").at(0).at("servers").at(0).at("health").at(key);
  }
};
FOR_BOTH_ENGINES(Fault);
class Relayed : public Fault {};
FOR_ENGINE(Relayed, "io_uring");

TEST_P(Fault, UpstreamRefuses) {
  start_towards("127.0.0.1:3525");
  connect().recv_to_end();
  EXPECT_TRUE(closed_for("connect_refused"));
}

TEST_P(Fault, StatusShowsWhatANameMeant) {
  start_towards("localhost:3525");
  const auto addresses = [&] {
    return daemon_->status().at("upstreams")[0].at("servers")[0].at("addresses");
  };
  EXPECT_EQ(addresses(), Json::array());  // nobody has asked yet
  connect().recv_to_end();
  EXPECT_TRUE(closed_for("connect_refused"));
  EXPECT_NE(addresses().dump().find("127.0.0.1"), std::string::npos) << addresses();
  EXPECT_EQ(daemon_->status().at("listeners")[0].at("state"), "listening");
}

TEST_P(Fault, UpstreamUnreachable) {
  start_towards("192.0.2.1:3525");  // no route in this namespace
  connect().recv_to_end();
  EXPECT_TRUE(closed_for("connect_unreachable"));
}

TEST_P(Fault, UpstreamNameDoesNotResolve) {
  start_towards("nobody.invalid:3525");
  connect().recv_to_end();
  EXPECT_TRUE(closed_for("resolve_failed"));
  const Json server = daemon_->status().at("upstreams")[0].at("servers")[0];
  EXPECT_EQ(server.at("addresses"), Json::array());
  EXPECT_NE(server.value("error", ""), "");
}

TEST_P(Fault, OneServerOfTwoRefuses) {
  DaemonOptions options;
  options.tables = R"(
[upstream.mailbox]
servers = ["127.0.0.1:3001", "127.0.0.1:3002"]
[[listener]]
name = "mail"
bind = ["127.0.0.1:2525"]
upstream = "mailbox"
)";
  start_with(std::move(options));
  const NamedEcho second("second", at("127.0.0.1", 3002));
  unsigned served = 0;
  for (int round = 0; round < 10; ++round) {
    std::string said;
    const TcpStream client = connect();
    ::shutdown(client.fd(), SHUT_WR);  // fails where the refusal was faster
    if (client.recv_to_end(&said) == End::fin) {
      EXPECT_EQ(said, "second -\n");
      ++served;
    }
  }
  EXPECT_GE(served, 5u);
  EXPECT_TRUE(daemon_->wait_active(0));
  EXPECT_EQ(daemon_->closed("completed"), served);
  EXPECT_EQ(daemon_->closed("connect_refused"), 10 - served);
}

TEST_P(Fault, ClientsLeaveAtEveryMoment) {
  start();
  const NamedEcho server("mailbox", at(kAddress, kServerPort));
  const TcpStream undisturbed = connect();
  EXPECT_EQ(undisturbed.recv_line(), "mailbox -");
  for (int round = 0; round < 200; ++round) {
    TcpStream client = connect();
    if (round % 4 >= 1) client.send_all("x");
    if (round % 4 >= 2) client.recv_exactly(1);
    if (round % 2 == 0) client.reset();
  }
  EXPECT_TRUE(daemon_->wait_active(1)) << daemon_->status();
  undisturbed.send_all("still here");
  EXPECT_EQ(undisturbed.recv_exactly(10), "still here");
}

TEST_P(Fault, MaxFlowsReached) {
  DaemonOptions options;
  options.tables = mail_tables();
  options.max_flows = 4;
  start_with(std::move(options));
  const NamedEcho server("mailbox", at(kAddress, kServerPort));
  std::vector<TcpStream> clients;
  for (int i = 0; i < 4; ++i) {
    clients.push_back(connect());
    ASSERT_EQ(clients.back().recv_line(), "mailbox -");
  }
  connect().recv_to_end();
  EXPECT_TRUE(wait_until([&] { return daemon_->closed("max_flows") == 1; })) << daemon_->status();
  clients[0].send_all("undisturbed");
  EXPECT_EQ(clients[0].recv_exactly(11), "undisturbed");
  clients.pop_back();
  EXPECT_TRUE(daemon_->wait_active(3));
  EXPECT_EQ(connect().recv_line(), "mailbox -");  // room again
}

TEST_P(Fault, DescriptorLimitReached) {
  // Room for the daemon (its self-test needs more than it keeps) and a few flows.
  constexpr unsigned kSpare = 24, kClients = 40;
  start();
  const unsigned idle = at_start_.sockets + at_start_.pipes + at_start_.others;
  ASSERT_EQ(daemon_->stop(), 0);
  DaemonOptions options;
  options.tables = mail_tables();
  options.process.nofile = idle + kSpare;
  start_with(std::move(options));
  const NamedEcho server("mailbox", at(kAddress, kServerPort));
  std::vector<TcpStream> clients;
  for (unsigned i = 0; i < kClients; ++i) clients.push_back(connect());
  // At the dial, or, where descriptors and clients come out even, at the next accept.
  EXPECT_TRUE(wait_until([&] {
    return daemon_->closed("fd_limit") > 0 || daemon_->totals().at("accept_failed") > 0;
  })) << daemon_->log();
  clients.clear();
  EXPECT_TRUE(wait_until([&] {
    const Json totals = daemon_->totals();
    return totals.at("accepted") == kClients && totals.at("active") == 0;
  })) << daemon_->status();
  EXPECT_TRUE(wait_until([&] {  // room again, once the last flow's thread has given its pipes back
    std::string said;
    const TcpStream client = connect();
    ::shutdown(client.fd(), SHUT_WR);
    client.recv_to_end(&said);
    return said == "mailbox -\n";
  }));
}

TEST_P(Fault, AServerIsNotDownForWantOfADescriptor) {
  const NamedEcho server("mailbox", at(kAddress, kServerPort));
  ASSERT_TRUE(is_up_for_a_strict_check());
  const TcpStream client = connect();
  EXPECT_EQ(client.recv_line(), "mailbox -");
  const pid_t daemon = daemon_->worker();
  rlimit before{};
  ASSERT_EQ(::prlimit(daemon, RLIMIT_NOFILE, nullptr, &before), 0);
  const rlimit none_left{16, before.rlim_max};
  EXPECT_TRUE(wait_until([&] {
    EXPECT_EQ(::prlimit(daemon, RLIMIT_NOFILE, &none_left, nullptr), 0);
    EXPECT_FALSE(client.readable_within(1200ms));  // longer than between two checks
    EXPECT_EQ(::prlimit(daemon, RLIMIT_NOFILE, &before, nullptr), 0);
    return health("failed") >= 1;
  }));
  EXPECT_EQ(health("changes"), 0);
  EXPECT_EQ(daemon_->closed("server_down"), 0u);
  const TcpStream next = connect();
  EXPECT_EQ(next.recv_line(), "mailbox -");
}

// As many flows to one server as there are ports to dial it from.
TEST_P(Fault, AServerIsNotDownForWantOfAPort) {
  constexpr unsigned kPorts = 8;
  std::ofstream("/proc/sys/net/ipv4/ip_local_port_range") << "40000 " << 40000 + kPorts - 1;
  // A check's port stays its own in TIME_WAIT: reused after a second, it would be the next check's each time.
  std::ofstream("/proc/sys/net/ipv4/tcp_tw_reuse") << 0;
  const NamedEcho server("mailbox", at(kAddress, kServerPort));
  ASSERT_TRUE(is_up_for_a_strict_check());
  std::vector<TcpStream> clients;
  while (clients.size() < kPorts) clients.push_back(connect());
  EXPECT_TRUE(wait_until([&] { return health("failed") >= 2; }));
  EXPECT_EQ(health("changes"), 0);
  EXPECT_EQ(daemon_->closed("server_down"), 0u);
}

// Readers that do not read hold every pipe: who waits for one is told in the end, and the pipe that comes
// back then serves whoever is left.
TEST_P(Relayed, PipesRunOut) {
  constexpr unsigned kSpare = 24;
  start();
  const unsigned idle = at_start_.sockets + at_start_.pipes + at_start_.others;
  ASSERT_EQ(daemon_->stop(), 0);
  DaemonOptions options;
  options.tables = mail_tables();
  options.threads = 1;
  options.process.nofile = idle + kSpare;
  start_with(std::move(options));
  const TcpListener server(at(kAddress, kServerPort));
  std::vector<Pair> flows;
  const std::string chunk(64 << 10, 'x');
  for (unsigned i = 0; i < kSpare / 2 - 2; ++i) {
    TcpStream client = connect();
    flows.push_back({std::move(client), server.accept()});
  }
  // Who was refused gets a pipe all the same where another's bytes have all gone to the reader: those hold
  // theirs only once no reader takes any more.
  ASSERT_TRUE(wait_until([&] {
    for (const Pair& flow : flows) {
      while (::send(flow.server.fd(), chunk.data(), chunk.size(), MSG_DONTWAIT | MSG_NOSIGNAL) > 0) {
      }
    }
    return daemon_->closed("fd_limit") > 0;
  })) << daemon_->flows();
  EXPECT_GT(daemon_->totals().at("pipes_refused"), 0);
  unsigned completed = 0;
  for (auto& [client, upstream] : flows) {
    client.half_close();
    upstream.half_close();
    completed += client.recv_to_end() == End::fin;
  }
  EXPECT_GE(completed, 4u);
  EXPECT_TRUE(daemon_->wait_active(0));
  EXPECT_EQ(daemon_->closed("completed"), completed);
  EXPECT_EQ(daemon_->closed("fd_limit"), flows.size() - completed);
}

// A server that comes and goes with every connection: two lines each would be a line for every flow.
TEST_P(Fault, AFlappingServerDoesNotFillTheLog) {
  constexpr unsigned kRounds = 100, kLinesPerS = 8;
  start();
  const auto began = std::chrono::steady_clock::now();
  for (unsigned round = 0; round < kRounds; ++round) {
    connect().recv_to_end();
    const TcpListener server(at(kAddress, kServerPort));
    const TcpStream client = connect();
    server.accept();
  }
  const std::string log = daemon_->log();
  size_t lines = 0;
  for (size_t at = 0; (at = log.find("upstream mailbox: ", at)) != std::string::npos; ++at) ++lines;
  const auto took = std::chrono::ceil<std::chrono::seconds>(std::chrono::steady_clock::now() - began);
  EXPECT_GE(lines, 2u);
  EXPECT_LE(lines, kLinesPerS * static_cast<size_t>(took.count() + 1)) << log;
}

// What this host lacks says nothing of the server.
TEST(FaultOfThisHost, NoMemoryToDialIsNoFailureOfTheServer) {
  const Netns netns;
  const Netns::Inside inside(netns);
  DaemonOptions options;
  options.engine = "io_uring";
  options.tables =
      "[upstream.mailbox]\nservers = [\"127.0.0.1:3525\"]\n"
      "[[listener]]\nname = \"mail\"\nbind = [\"127.0.0.1:2525\"]\nupstream = \"mailbox\"\n";
  options.process.io_uring_refused = EPERM;  // its connect is no system call
  options.process.connect_refused = ENOBUFS;
  Daemon daemon(options);
  for (unsigned i = 0; i < 5; ++i) TcpStream::connect(at("127.0.0.1", 2525)).recv_to_end();
  EXPECT_TRUE(wait_until([&] { return daemon.closed("fd_limit") == 5; })) << daemon.status();
  const Json server = daemon.status().at("upstreams")[0].at("servers")[0];
  EXPECT_FALSE(server.contains("failed_dials")) << server;
  EXPECT_EQ(daemon.stop(), 0);
}

TEST_P(Fault, IdleTooLong) {
  DaemonOptions options;
  options.tables = "[timeouts]\nidle = \"2s\"\n" + mail_tables();
  start_with(std::move(options));
  const TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  for (int i = 0; i < 4; ++i) {  // open for longer than it may be idle, and never idle for so long: stays
    std::this_thread::sleep_for(600ms);
    client.send_all("x");
    ASSERT_EQ(upstream.recv_exactly(1), "x");
  }
  client.recv_to_end();
  EXPECT_TRUE(closed_for("idle_timeout"));
}

TEST_P(Fault, KilledByCommand) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  const std::string cookie = daemon_->flows()[0].at("cookie");
  EXPECT_EQ(daemon_->ask({{"command", "kill"}, {"cookies", {"1", cookie}}}),
            Json({{"killed", {cookie}}, {"not_found", {"1"}}}));
  EXPECT_EQ(client.recv_to_end(), End::reset);
  EXPECT_EQ(upstream.recv_to_end(), End::reset);
  EXPECT_TRUE(closed_for("killed"));
}

}  // namespace
}  // namespace penstock::test
