// SPDX-License-Identifier: Apache-2.0
// Which of a name's addresses and of an upstream's servers a flow gets, after how long, and that the search
// leaves nothing behind. A name server on this side of the cable, everything it names on the other.
#include <dirent.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <sstream>
#include <vector>

#include "dns/dnsmasq.h"
#include "netns/edge.h"
#include "support/lost_time.h"
#include "support/named_echo.h"

namespace penstock::test {
namespace {

using Clock = std::chrono::steady_clock;
using dns::testing::Dnsmasq;

constexpr uint16_t kDnsPort = 5353;
constexpr milliseconds kAttemptDelay = 240ms;  // RFC 8305 8
constexpr milliseconds kBusy = 700ms;          // what a busy machine may add
constexpr milliseconds kTurn = 10ms;           // what a clock that ticks once a turn may take away

milliseconds since(Clock::time_point began) {
  return std::chrono::duration_cast<milliseconds>(Clock::now() - began);
}

// The daemon's workers stand still while this lives; what comes for them meanwhile comes to them at once.
class WorkersStopped {
 public:
  explicit WorkersStopped(pid_t daemon) {
    const std::string tasks = "/proc/" + std::to_string(daemon) + "/task";
    DIR* directory = ::opendir(tasks.c_str());
    while (const dirent* entry = ::readdir(directory)) {
      if (!read_file(tasks + "/" + entry->d_name + "/comm").starts_with("worker-")) continue;
      threads_.push_back(std::stoi(entry->d_name));
      if (::ptrace(PTRACE_SEIZE, threads_.back(), nullptr, nullptr) != 0 ||
          ::ptrace(PTRACE_INTERRUPT, threads_.back(), nullptr, nullptr) != 0 ||
          ::waitpid(threads_.back(), nullptr, __WALL) != threads_.back())
        throw std::system_error(errno, std::generic_category(), "ptrace");
    }
    ::closedir(directory);
  }
  ~WorkersStopped() {
    for (const pid_t thread : threads_) ::ptrace(PTRACE_DETACH, thread, nullptr, nullptr);
  }
  WorkersStopped(const WorkersStopped&) = delete;
  WorkersStopped& operator=(const WorkersStopped&) = delete;

 private:
  std::vector<pid_t> threads_;
};

class Dial : public Edge {
 protected:
  // 192.0.2.0/24 and 2001:db8:1::1 are there, and refuse where nobody listens; 198.51.100.0/24 and
  // 2001:db8:dead::/64 never answer.
  const std::string kEdgeMac = "02:00:00:00:00:01", kFarMac = "02:00:00:00:00:02";
  static constexpr const char *kHere4 = "192.0.2.1", *kHere6 = "2001:db8:1::1";

  Dial() {
    Netns::join(netns_, "edge0", {"10.9.0.1/24", "10.9.0.11/24", "fd09::1/64"},  //
                far_, "far0", {"10.9.0.2/24", "fd09::2/64"});
    // Found out by nobody: a neighbour that is yet unknown would look like a server that is slow.
    netns_.ip("link set edge0 address " + kEdgeMac);
    far_.ip("link set far0 address " + kFarMac);
    for (const std::string end : {"10.9.0.", "fd09::"}) {
      netns_.ip("neigh replace " + end + "2 lladdr " + kFarMac + " dev edge0 nud permanent");
      far_.ip("neigh replace " + end + "1 lladdr " + kEdgeMac + " dev far0 nud permanent");
    }
    far_.ip("route add local 192.0.2.0/24 dev lo");
    far_.ip("addr add 2001:db8:1::1/128 dev lo nodad");
    far_.ip("route add blackhole 198.51.100.0/24");
    far_.ip("-6 route add blackhole 2001:db8:dead::/64");
    for (const char* there : {"192.0.2.0/24", "198.51.100.0/24"})
      netns_.ip("route add " + std::string(there) + " via 10.9.0.2");
    for (const char* there : {"2001:db8:1::/64", "2001:db8:dead::/64"})
      netns_.ip("-6 route add " + std::string(there) + " via fd09::2");
  }

  TcpListener far(const std::string& address, uint16_t port = kServerPort) const {
    const Netns::Inside inside(far_);
    return TcpListener(at(address, port));
  }
  static std::string tables(const std::string& name, const std::string& upstream, uint16_t port) {
    return "[upstream." + name + "]\n" + upstream + "\n[[listener]]\nname = \"" + name +
           "\"\nbind = [\"127.0.0.1:" + std::to_string(port) + "\"]\nupstream = \"" + name + "\"\n";
  }
  void start_dial(const std::string& tables, const std::string& dns_keys = "") {
    DaemonOptions options;
    options.tables = "[dns]\nservers = [\"127.0.0.1:5353\"]\n" + dns_keys + "\n" + tables;
    start_with(std::move(options));
  }
  void start_mail(const std::string& upstream) { start_dial(tables("mailbox", upstream, kMailPort)); }
  static TcpStream connect(uint16_t port = kMailPort) { return TcpStream::connect(at(kAddress, port)); }

  uint64_t counted(const std::string& what, size_t upstream = 0) const {
    return daemon_->status().at("upstreams").at(upstream).at(what);
  }
  // As many as fit into one datagram.
  static constexpr int kMany = 28;
  static std::vector<std::string> many(const std::string& network) {
    std::vector<std::string> records;
    for (int i = 1; i <= kMany; ++i)
      records.push_back("--host-record=mx.test," + network + std::to_string(i));
    return records;
  }
  // Connects by IPv4 under way in the daemon's namespace.
  static int attempts() {
    std::istringstream lines(read_file("/proc/thread-self/net/tcp"));
    std::string line, number, from, to, state;
    int count = 0;
    while (std::getline(lines, line)) {
      std::istringstream(line) >> number >> from >> to >> state;
      count += state == "02";  // TCP_SYN_SENT
    }
    return count;
  }
  uint64_t dialed(size_t upstream = 0) const { return counted("dialed", upstream); }

  Netns far_;
  LostTime lost_;
};
FOR_ENGINE(Dial, "auto");

TEST_P(Dial, AnAaaaNobodyAnswersCosts250MsThenNothing) {
  const Dnsmasq dns(kDnsPort, {"--host-record=mx.test,192.0.2.1,2001:db8:dead::1"});
  const TcpListener server = far(kHere4);
  start_mail("servers = [\"mx.test:3525\"]");
  const auto began = Clock::now();
  const TcpStream first = connect(), at_server = server.accept();
  const milliseconds took = since(began);
  EXPECT_GE(took, kAttemptDelay - kTurn);
  EXPECT_LT(took, kAttemptDelay + kBusy + lost_.so_far());
  EXPECT_EQ(dialed(), 2u);
  daemon_->wait_flow("open");
  const TcpStream second = connect(), at_server_too = server.accept();  // the one that answered goes first
  EXPECT_TRUE(wait_until([&] { return daemon_->flows().size() == 2; }));
  EXPECT_EQ(dialed(), 3u);
}

TEST_P(Dial, AnAaaaThatRefusesCostsNothing) {
  const Dnsmasq dns(kDnsPort, {"--host-record=a.test,192.0.2.1,2001:db8:1::1",
                               "--host-record=b.test,192.0.2.1,2001:db8:1::1",
                               "--host-record=c.test,192.0.2.1,2001:db8:1::1"});
  const TcpListener server = far(kHere4);
  start_dial(tables("a", "servers = [\"a.test:3525\"]", 2001) +
             tables("b", "servers = [\"b.test:3525\"]", 2002) +
             tables("c", "servers = [\"c.test:3525\"]", 2003));
  milliseconds least = kPatience;  // of what a busy machine makes of it
  for (const uint16_t port : {2001, 2002, 2003}) {
    const auto began = Clock::now();
    const TcpStream client = connect(port), at_server = server.accept();
    least = std::min(least, since(began));
  }
  EXPECT_LT(least, kAttemptDelay);
  for (size_t upstream = 0; upstream < 3; ++upstream) EXPECT_EQ(dialed(upstream), 2u);
}

TEST_P(Dial, TheOneThatAnswersIsTheOnlyOneDialled) {
  const Dnsmasq dns(kDnsPort, {"--host-record=mx.test,198.51.100.1,2001:db8:1::1"});
  const TcpListener server = far(kHere6);
  start_mail("servers = [\"mx.test:3525\"]");
  const TcpStream client = connect(), at_server = server.accept();
  daemon_->wait_flow("open");
  EXPECT_EQ(dialed(), 1u);
}

TEST_P(Dial, BothDeadAreOneConnectTimeout) {
  const Dnsmasq dns(kDnsPort, {"--host-record=mx.test,198.51.100.1,2001:db8:dead::1"});
  start_mail("servers = [\"mx.test:3525\"]\nconnect = \"800ms\"");
  const auto began = Clock::now();
  EXPECT_EQ(connect().recv_to_end(), End::reset);
  const milliseconds took = since(began);
  EXPECT_GE(took, 800ms - kTurn);
  EXPECT_LT(took, 800ms + kBusy + lost_.so_far());
  EXPECT_TRUE(closed_for("connect_timeout"));
  EXPECT_EQ(dialed(), 2u);
  EXPECT_EQ(counted("dial_failed"), 2u);
}

TEST_P(Dial, FamilyAndSource) {
  const Dnsmasq dns(kDnsPort, {"--host-record=mx.test,192.0.2.1,2001:db8:1::1"});
  const TcpListener four = far(kHere4), six = far(kHere6);
  start_dial(tables("four", "servers = [\"mx.test:3525\"]\nfamily = \"v4\"", 2004) +
             tables("six", "servers = [\"mx.test:3525\"]\nfamily = \"v6\"", 2006) +
             tables("from", "servers = [\"mx.test:3525\"]\nsource = \"10.9.0.11\"", 2011));
  {
    const TcpStream client = connect(2004);
    EXPECT_EQ(four.accept().peer().address.text(), "10.9.0.1");
  }
  {
    const TcpStream client = connect(2006);
    EXPECT_EQ(six.accept().peer().address.text(), "fd09::1");
  }
  const TcpStream client = connect(2011);
  EXPECT_EQ(four.accept().peer().address.text(), "10.9.0.11");
  for (size_t upstream = 0; upstream < 3; ++upstream) EXPECT_EQ(dialed(upstream), 1u);
}

TEST_P(Dial, ASourceThatIsNotHere) {
  start_mail("servers = [\"192.0.2.1:3525\"]\nsource = \"10.9.0.12\"");
  connect().recv_to_end();
  EXPECT_TRUE(closed_for("connect_unreachable"));
  EXPECT_TRUE(daemon_->process().wait_for("192.0.2.1:3525: Cannot assign requested address"));
  netns_.ip("addr add 10.9.0.12/24 dev edge0");
  const TcpListener server = far(kHere4);
  const TcpStream client = connect();
  EXPECT_EQ(server.accept().peer().address.text(), "10.9.0.12");
}

// The kernel then says EADDRNOTAVAIL to every IPv6 address.
TEST_P(Dial, AHostWithoutIpv6) {
  std::ofstream("/proc/sys/net/ipv6/conf/all/disable_ipv6") << "1";
  const Dnsmasq dns(
      kDnsPort, {"--host-record=mx.test,192.0.2.1,2001:db8:1::1", "--host-record=six.test,2001:db8:1::1"});
  const TcpListener server = far(kHere4);
  start_dial(tables("mx", "servers = [\"mx.test:3525\"]", 2001) +
             tables("six", "servers = [\"six.test:3525\"]", 2002));
  connect(2002).recv_to_end();
  EXPECT_TRUE(closed_for("connect_unreachable"));
  const TcpStream client = connect(2001), at_server = server.accept();
  client.send_all("x");
  EXPECT_EQ(at_server.recv_exactly(1), "x");
}

TEST_P(Dial, AsManyServersAsRetriesSay) {
  const std::string servers =
      "servers = [\"192.0.2.1:3001\", \"192.0.2.1:3002\", \"192.0.2.1:3003\", \"192.0.2.1:3004\"]\nretries "
      "= ";
  start_dial(tables("none", servers + "0", 2000) + tables("one", servers + "1", 2001) +
             tables("more", servers + "10", 2002));
  for (const uint16_t port : {2000, 2001, 2002}) connect(port).recv_to_end();
  EXPECT_TRUE(closed_for("connect_refused", 3));
  EXPECT_EQ(dialed(0), 1u);
  EXPECT_EQ(dialed(1), 2u);
  EXPECT_EQ(dialed(2), 4u);
}

TEST_P(Dial, NoOtherServerOnceOneHasHadTheHeader) {
  const TcpListener first = far(kHere4, 3001), second = far(kHere4, 3002);
  start_mail(
      "servers = [\"192.0.2.1:3001\", { address = \"192.0.2.1:3002\", backup = true }]\n"
      "proxy_protocol = \"v1\"");
  const TcpStream client = connect();
  TcpStream at_server = first.accept();
  EXPECT_TRUE(at_server.recv_line().starts_with("PROXY TCP4 127.0.0.1 "));
  at_server.reset();
  EXPECT_EQ(client.recv_to_end(), End::reset);
  EXPECT_TRUE(closed_for("upstream_reset"));
  EXPECT_EQ(dialed(), 1u);
  EXPECT_FALSE(second.accept_within(0ms));
}

TEST_P(Dial, AServerThatIsSilentLeavesItsShareToTheNext) {
  const TcpListener server = far(kHere4);
  start_mail(
      "servers = [\"198.51.100.1:3525\", { address = \"192.0.2.1:3525\", backup = true }]\n"
      "connect = \"2s\"");
  const auto began = Clock::now();
  const TcpStream client = connect(), at_server = server.accept();
  const milliseconds took = since(began);
  EXPECT_GE(took, 1s - kTurn);
  EXPECT_LT(took, 1s + kBusy + lost_.so_far());
}

TEST_P(Dial, AClientThatLeavesAmidThreeAttempts) {
  const Dnsmasq dns(kDnsPort, {"--host-record=mx.test,198.51.100.1", "--host-record=mx.test,198.51.100.2",
                               "--host-record=mx.test,198.51.100.3"});
  start_mail("servers = [\"mx.test:3525\"]\nconnect = \"20s\"");
  TcpStream client = connect();
  EXPECT_TRUE(wait_until([&] { return attempts() == 3; }));
  client.reset();
  EXPECT_TRUE(closed_for("client_reset"));
  EXPECT_EQ(attempts(), 0);
}

TEST_P(Dial, ManyAddressesNobodyAnswersAt) {
  const Dnsmasq dns(kDnsPort, many("198.51.100."));
  start_mail("servers = [\"mx.test:3525\"]\nconnect = \"1600ms\"\nretries = 0");
  const TcpStream client = connect();
  int most = 0;
  const auto began = Clock::now();
  while (!client.readable_within(1ms)) most = std::max(most, attempts());
  EXPECT_LT(since(began), 1600ms + kBusy + lost_.so_far());
  EXPECT_TRUE(closed_for("connect_timeout"));
  if (lost_.so_far() == 0ms) {
    EXPECT_GE(dialed(), 4u);
  }
  EXPECT_LE(dialed(), 1u + 1600 / 250);
  EXPECT_LE(most, 3 + 1);  // one that is given up may be seen while it closes
}

TEST_P(Dial, ManyAddressesThatRefuse) {
  const Dnsmasq dns(kDnsPort, many("192.0.2."));
  start_mail("servers = [\"mx.test:3525\"]\nretries = 0");
  const auto began = Clock::now();
  EXPECT_EQ(connect().recv_to_end(), End::reset);
  EXPECT_LT(since(began),
            5s + lost_.so_far());  // the answer is as old as the first of them: it is asked for once more
  EXPECT_TRUE(closed_for("connect_refused"));
  EXPECT_EQ(dialed(), uint64_t{kMany});
}

// The attempt that finds no descriptor leaves the one in flight its time, and no more than that.
TEST_P(Dial, DescriptorsThatRunOutAmidADial) {
  const Dnsmasq dns(kDnsPort, {"--host-record=mx.test,198.51.100.1", "--host-record=mx.test,198.51.100.2"});
  start_mail("servers = [\"mx.test:3525\"]\nconnect = \"1s\"\nretries = 0");
  const pid_t daemon = daemon_->worker();
  const auto began = Clock::now();
  const TcpStream client = connect();
  ASSERT_TRUE(wait_until([&] { return attempts() >= 1; }));
  rlimit before{};
  ASSERT_EQ(::prlimit(daemon, RLIMIT_NOFILE, nullptr, &before), 0);
  const rlimit none_left{16, before.rlim_max};
  ASSERT_EQ(::prlimit(daemon, RLIMIT_NOFILE, &none_left, nullptr), 0);
  EXPECT_TRUE(client.readable_within(kPatience));
  EXPECT_LT(since(began), 1s + kBusy + lost_.so_far());
  ASSERT_EQ(::prlimit(daemon, RLIMIT_NOFILE, &before, nullptr), 0);
  EXPECT_TRUE(closed_for("connect_timeout"));
}

// A name is asked again while its last address is still being tried. What it then means is nobody's business
// if that address answers first.
TEST_P(Dial, AnAnswerThatComesTooLate) {
  Dnsmasq dns(kDnsPort, {"--host-record=mx.test,10.9.0.2,2001:db8:dead::1"});
  const TcpListener server = far("10.9.0.2");
  netns_.ip("neigh del 10.9.0.2 dev edge0");
  far_.ip("addr del 10.9.0.2/24 dev far0");  // the segment to it waits for its address on the cable
  std::ofstream("/proc/sys/net/ipv4/neigh/edge0/mcast_solicit") << 100;  // a question a second
  start_mail("servers = [\"mx.test:3525\"]\nretries = 0\nconnect = \"20s\"");
  const TcpStream client = connect();
  ASSERT_TRUE(wait_until([&] { return dialed() >= 1; }));
  dns.pause();
  ASSERT_TRUE(wait_until([&] { return daemon_->flows().at(0).at("age_ms") >= 1600; }));  // asked again
  std::optional<TcpStream> at_server;
  {
    const WorkersStopped stopped(daemon_->worker());
    far_.ip("addr add 10.9.0.2/24 dev far0");
    netns_.ip("neigh replace 10.9.0.2 lladdr " + kFarMac + " dev edge0 nud permanent");
    at_server = server.accept();
    dns.resume();
    EXPECT_FALSE(client.readable_within(600ms));  // by then the resolver has told the worker
  }
  daemon_->wait_flow("open");
  at_server->send_all("x");
  EXPECT_EQ(client.recv_exactly(1), "x");
}

// ---- servers by SRV

class DialSrv : public Dial {
 protected:
  static std::string srv(const std::string& port_and_priority) {
    return "--srv-host=_mx._tcp.test,here.test," + port_and_priority;
  }
  const std::string here_ = "--host-record=here.test,192.0.2.1";
  const std::string upstream_ = "srv = \"_mx._tcp.test\"\n";
};
FOR_ENGINE(DialSrv, "auto");

TEST_P(DialSrv, TheLowestPriorityServesTheOthersAreItsBackups) {
  const Dnsmasq dns(kDnsPort, {here_, srv("3001,10,1"), srv("3002,20,1")});
  std::optional<TcpListener> first(far(kHere4, 3001));
  const TcpListener second = far(kHere4, 3002);
  start_mail(upstream_);
  for (int i = 0; i < 4; ++i) {
    const TcpStream client = connect();
    ASSERT_TRUE(first->accept_within(kPatience));
  }
  EXPECT_TRUE(daemon_->wait_active(0));
  first.reset();
  const auto began = Clock::now();
  const TcpStream client = connect(), at_server = second.accept();
  EXPECT_LT(since(began), kBusy + lost_.so_far());  // before its name may be asked again
}

TEST_P(DialSrv, AQuestionNobodyAnswers) {
  Dnsmasq dns(kDnsPort, {here_, srv("3525,10,1")});
  dns.pause();
  start_mail(upstream_ + "connect = \"300ms\"");
  const auto began = Clock::now();
  EXPECT_EQ(connect().recv_to_end(), End::reset);
  EXPECT_GE(since(began), 300ms - kTurn);
  EXPECT_TRUE(closed_for("resolve_failed"));
  EXPECT_EQ(counted("resolve_failed"), 1u);
  dns.resume();
  const TcpListener server = far(kHere4);
  EXPECT_TRUE(wait_until([&] {
    const TcpStream client = connect();
    return server.accept_within(300ms).has_value();
  }));
}

TEST_P(DialSrv, AServiceThatIsNoneIsOneLineNotOneForEachFlow) {
  const Dnsmasq dns(kDnsPort, {"--local=/test/"});
  start_mail(upstream_);
  constexpr unsigned kFlows = 20;
  for (unsigned i = 0; i < kFlows; ++i) connect().recv_to_end();
  EXPECT_TRUE(closed_for("resolve_failed", kFlows));
  EXPECT_TRUE(daemon_->process().wait_for("upstream mailbox: _mx._tcp.test: no such name"));
  const std::string log = daemon_->log(), line = " warn  upstream mailbox: _mx._tcp.test";
  unsigned lines = 0;
  for (size_t i = log.find(line); i != log.npos; i = log.find(line, i + 1)) ++lines;
  EXPECT_EQ(lines, 1u) << log;
}

// Its TTL is an hour.
TEST_P(DialSrv, IsAskedAgainWhenNoServerCanBeReached) {
  std::optional<Dnsmasq> dns(std::in_place, kDnsPort, std::vector{here_, srv("3001,10,1")});
  std::optional<TcpListener> old_server(far(kHere4, 3001));
  const TcpListener server = far(kHere4, 3002);
  start_dial(tables("mailbox", upstream_, kMailPort), "ttl_min = \"1h\"");
  {
    const TcpStream client = connect();
    ASSERT_TRUE(old_server->accept_within(kPatience));
  }
  old_server.reset();
  dns.emplace(kDnsPort, std::vector{here_, srv("3002,10,1")});
  const auto began = Clock::now();
  const TcpStream client = connect(), at_server = server.accept();
  EXPECT_LT(since(began), 1s + kBusy + lost_.so_far());  // a name is asked once a second at most
}

}  // namespace
}  // namespace penstock::test
