// SPDX-License-Identifier: Apache-2.0
// What is listened on: addresses and devices that come, go and come back, a host without IPv6, binds that
// lie within each other, and sets of them that change while clients connect.
#include "daemon/listen.h"

#include <sys/mman.h>

#include <atomic>
#include <csignal>
#include <fstream>
#include <numeric>
#include <thread>

#include "netns/edge.h"
#include "route/route.h"
#include "support/named_echo.h"

namespace penstock::test {
namespace {

class Listen : public Edge {
 protected:
  static std::string listener(const std::string& name, const std::string& bind,
                              const std::string& more = "") {
    return "[[listener]]\nname = \"" + name + "\"\nbind = [" + bind + "]\nupstream = \"mailbox\"\n" + more +
           "\n";
  }
  void start_listeners(const std::string& listeners) {
    DaemonOptions options;
    options.tables = "[upstream.mailbox]\nservers = [\"127.0.0.1:3525\"]\n" + listeners;
    start_with(std::move(options));
    echo_.emplace("mailbox", at(kAddress, kServerPort));
  }
  Json listener_status(const std::string& name) const {
    const Json status = daemon_->status();
    for (const Json& l : status.at("listeners"))
      if (l.at("name") == name) return l;
    throw std::runtime_error("no listener " + name);
  }
  // Once it is in this state.
  bool becomes(const std::string& name, const std::string& state, const std::string& reason = "") const {
    return wait_until([&] {
      const Json l = listener_status(name);
      return l.at("state") == state && l.value("reason", "") == reason;
    });
  }
  static std::string greeting(const Endpoint& where) { return TcpStream::connect(where).recv_line(); }
  void TearDown() override {
    at_start_ = {1000, 0, 0};  // listening sockets come and go here
    Edge::TearDown();
  }

  std::optional<NamedEcho> echo_;
};
FOR_BOTH_ENGINES(Listen);

TEST_P(Listen, AddressesThatComeLater) {
  start_listeners(listener("mail", "\"192.0.2.25:2525\", \"[2001:db8::25]:2525\""));
  const std::string v4 = "192.0.2.25:2525: 192.0.2.25 is no address of this host",
                    v6 = "[2001:db8::25]:2525: 2001:db8::25 is no address of this host";
  for (int round = 0; round < 2; round++) {
    EXPECT_TRUE(becomes("mail", "waiting", v4 + "; " + v6)) << listener_status("mail");
    netns_.ip("addr add 192.0.2.25/32 dev lo");
    EXPECT_TRUE(becomes("mail", "waiting", v6)) << listener_status("mail");
    EXPECT_EQ(greeting(at("192.0.2.25", 2525)), "mailbox -");
    netns_.ip("addr add 2001:db8::25/128 dev lo nodad");
    EXPECT_TRUE(becomes("mail", "listening")) << listener_status("mail");
    // Its route comes after the address (net/ipv6/addrconf.c).
    EXPECT_TRUE(wait_until([] { return TcpStream::try_connect(at("2001:db8::25", 2525)) == 0; }));
    EXPECT_EQ(greeting(at("2001:db8::25", 2525)), "mailbox -");
    netns_.ip("addr del 192.0.2.25/32 dev lo");
    netns_.ip("addr del 2001:db8::25/128 dev lo");
  }
  // The log needs nobody to ask for the state.
  netns_.ip("addr add 192.0.2.25/32 dev lo");
  EXPECT_TRUE(daemon_->process().wait_for("listener mail: 192.0.2.25:2525: listening"));
  EXPECT_TRUE(daemon_->process().wait_for("listener mail: " + v4.substr(0, 17) + "waiting: "));
}

TEST_P(Listen, ADeviceThatComesLaterAndComesBack) {
  start_listeners(listener("wan", "\":2525\"", "interface = \"wan0\"") + listener("all", "\":2526\""));
  for (int round = 0; round < 2; round++) {
    EXPECT_TRUE(becomes("wan", "waiting", ":2525: no device wan0; :2525: no device wan0"))
        << listener_status("wan");
    EXPECT_EQ(TcpStream::try_connect(at(kAddress, 2525)), ECONNREFUSED);
    const Netns outside;
    Netns::join(netns_, "wan0", {"192.0.2.1/24", "2001:db8::1/64"}, outside, "far",
                {"192.0.2.2/24", "2001:db8::2/64"});
    EXPECT_TRUE(becomes("wan", "listening")) << listener_status("wan");
    {
      const Netns::Inside there(outside);
      EXPECT_EQ(greeting(at("192.0.2.1", 2525)), "mailbox -");
      EXPECT_EQ(greeting(at("2001:db8::1", 2525)), "mailbox -");
    }
    EXPECT_TRUE(daemon_->wait_active(0));  // a client cut off before its last ACK keeps its flow
    EXPECT_EQ(TcpStream::try_connect(at(kAddress, 2525)), ECONNREFUSED);  // another device
    netns_.ip("link del wan0");
  }
  EXPECT_TRUE(becomes("all", "listening"));
}

// Between two looks of the daemon, so that it never sees it missing: the name is the same, the device is not.
TEST_P(Listen, ADeviceReplacedWhileNobodyLooks) {
  const Netns first, second;
  Netns::join(netns_, "wan0", {"192.0.2.1/24"}, first, "far", {"192.0.2.2/24"});
  start_listeners(listener("wan", "\":2525\"", "interface = \"wan0\""));
  EXPECT_TRUE(becomes("wan", "listening"));
  const pid_t worker = daemon_->worker();
  ASSERT_EQ(::kill(worker, SIGSTOP), 0);
  netns_.ip("link del wan0");
  Netns::join(netns_, "wan0", {"192.0.2.1/24"}, second, "far", {"192.0.2.2/24"});
  ASSERT_EQ(::kill(worker, SIGCONT), 0);
  EXPECT_TRUE(becomes("wan", "listening"));
  const Netns::Inside there(second);
  EXPECT_EQ(greeting(at("192.0.2.1", 2525)), "mailbox -");
}

TEST_P(Listen, AHostWithoutIPv6SaysSoOnce) {
  const auto disable_ipv6 = [](const char* value) {
    std::ofstream file("/proc/sys/net/ipv6/conf/all/disable_ipv6");
    file << value;
    ASSERT_TRUE(file.flush().good());
  };
  disable_ipv6("1");
  start_listeners(listener("mail", "\":2525\", \":2526\"") + listener("web", "\":2527\""));
  const std::string said = "this host has no IPv6 address: listening on IPv4 only";
  EXPECT_TRUE(becomes("mail", "listening"));
  EXPECT_EQ(listener_status("web").at("sockets")[1].at("reason"), "this host has no IPv6 address");
  EXPECT_EQ(greeting(at(kAddress, 2526)), "mailbox -");
  const std::string log = daemon_->log();
  const size_t first = log.find(said);
  ASSERT_NE(first, std::string::npos) << log;
  EXPECT_EQ(log.find(said, first + 1), std::string::npos) << log;
  disable_ipv6("0");
  netns_.ip("link set lo down");
  netns_.ip("link set lo up");  // with ::1
  EXPECT_TRUE(daemon_->process().wait_for("this host has IPv6 now"));
  EXPECT_EQ(greeting(at("::1", 2527)), "mailbox -");
}

// One address and all addresses, one device and all devices: the nearer one is reached.
TEST_P(Listen, BindsWithinEachOther) {
  netns_.ip("addr add 192.0.2.25/32 dev lo");
  const NamedEcho other("other", at(kAddress, 3526));
  start_listeners("[upstream.other]\nservers = [\"127.0.0.1:3526\"]\n" + listener("all", "\":2525\"") +
                  "[[listener]]\nname = \"one\"\nbind = \"192.0.2.25:2525\"\nupstream = \"other\"\n");
  EXPECT_EQ(greeting(at(kAddress, 2525)), "mailbox -");
  EXPECT_EQ(greeting(at("192.0.2.25", 2525)), "other -");
}

// ---- sets that change ----

// Workers and a table as the daemon has them, everything relayed.
class Site {
 public:
  explicit Site(const std::string& toml) {
    config::Parsed parsed = config::parse(toml, "test", [](std::string_view) { return std::nullopt; });
    for (const auto& d : parsed.diagnostics) ADD_FAILURE() << d.text;
    config_ = std::move(parsed.config).value();
    resolver_ = std::move(dns::Resolver::start()).value();
    shared.resolver = resolver_.get();
    shared.memory_limit_bytes = 1 << 30;
    shared.statistics = {&totals, listeners, upstreams};
    clients_.emplace(kFlows, 4);
    shared.clients = &*clients_;
    table_.emplace(std::move(flow::FlowTable::create(kFlows)).value());
    shared.table = &*table_;
    flows_.resize(kFlows);
    shared.flows = flows_.data();
    for (uint32_t slot = kFlows; slot-- > 0;) shared.free_slots.push_back(slot);
    for (uint32_t t = 0; t < 2; t++) shared.workers.push_back(std::make_unique<flow::Worker>(shared, t));
    for (auto& w : shared.workers) EXPECT_TRUE(w->start());
  }
  ~Site() {
    for (auto& w : shared.workers) w->stop(flow::CloseReason::shutdown);
    for (auto& w : shared.workers) w->join();
    resolver_.reset();
    shared.workers.clear();
    uint64_t closed = 0;
    for (size_t i = 0; i < flow::kCloseReasons; i++) closed += reinterpret_cast<uint64_t*>(&totals.closed)[i];
    EXPECT_EQ(totals.accepted, totals.active + closed);
    EXPECT_EQ(totals.active, 0u);
  }
  // Its configuration with other binds.
  std::shared_ptr<const flow::Plan> with(const std::vector<std::vector<std::string>>& binds) {
    config::Config c = config_;
    for (size_t i = 0; i < binds.size(); i++) {
      c.listeners[i].bind.clear();
      for (const std::string& address : binds[i]) {
        const size_t colon = address.find(':');
        config::Bind b{{}, static_cast<uint16_t>(std::stoi(address.substr(colon + 1))), address};
        if (colon) b.address = IpAddress::parse(address.substr(0, colon));
        c.listeners[i].bind.push_back(b);
      }
    }
    shared.set_plan(flow::Plan::make(c, listener_names_, upstream_names_, shared.plan().get()).value());
    return shared.plan();
  }

 private:
  static constexpr uint32_t kFlows = 1024;
  flow::Names listener_names_{4, [](uint32_t, std::string_view) {}};  // they outlive every plan
  flow::Names upstream_names_{4, [](uint32_t, std::string_view) {}};

 public:
  flow::Shared shared;
  penstock_totals totals{};
  penstock_listener listeners[4]{};
  penstock_upstream upstreams[4]{};

 private:
  config::Config config_;
  std::unique_ptr<dns::Resolver> resolver_;
  std::optional<flow::Clients> clients_;
  std::optional<flow::FlowTable> table_;
  std::vector<flow::Flow> flows_;
};

struct Swap : testing::Test {
  const std::string toml =
      "[upstream.a]\nservers = [\"127.0.0.1:3001\"]\n[upstream.b]\nservers = [\"127.0.0.1:3002\"]\n"
      "[[listener]]\nname = \"a\"\nbind = \":1\"\nupstream = \"a\"\n"
      "[[listener]]\nname = \"b\"\nbind = \":2\"\nupstream = \"b\"\n";
  Netns netns;
  Netns::Inside inside{netns};
  NamedEcho a{"a", at("127.0.0.1", 3001)}, b{"b", at("127.0.0.1", 3002)};
  Site site{toml};
  daemon::Listeners listeners{site.shared.workers, nullptr};
};

// A port that changes hands, and one that is bound now on one address, now on all. Each connection is served.
TEST_F(Swap, AHundredTimesWhileClientsConnect) {
  EXPECT_TRUE(listeners.apply(site.with({{":2001", ":2003"}, {":2002"}})).empty());
  ASSERT_TRUE(listeners.watch());
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> served{0}, by_a{0};
  std::vector<std::string> failures(3);
  std::vector<std::thread> clients;
  for (uint16_t i = 0; i < 3; i++) {
    clients.emplace_back([&, i] {
      while (!stop) {
        try {
          const std::string name =
              TcpStream::connect(at("127.0.0.1", static_cast<uint16_t>(2001 + i))).recv_line();
          by_a += name == "a -";
          served++;
        } catch (const std::exception& e) {
          failures[i] = e.what();
          return;
        }
      }
    });
  }
  for (int round = 0; round < 100; round++) {
    const uint64_t before = served;
    const std::string third = round % 4 < 2 ? "127.0.0.1:2003" : ":2003";
    const auto failed = listeners.apply(round % 2 ? site.with({{":2001", third}, {":2002"}})
                                                  : site.with({{":2002"}, {":2001", third}}));
    EXPECT_TRUE(failed.empty()) << failed[0];
    EXPECT_TRUE(wait_until([&] { return served >= before + 6; }));
  }
  stop = true;
  for (auto& c : clients) c.join();
  for (const std::string& f : failures) EXPECT_EQ(f, "");
  EXPECT_GT(by_a, 100u);
  EXPECT_GT(served - by_a, 100u);
  listeners.stop();
}

// Who connected before its port went is served; after that a connect is refused, or comes to the port again.
TEST_F(Swap, APortThatGoesAndComesBack) {
  EXPECT_TRUE(listeners.apply(site.with({{":2001"}, {":2002"}})).empty());
  ASSERT_TRUE(listeners.watch());
  for (int round = 0; round < 10; round++) {
    std::vector<TcpStream> clients;
    for (int i = 0; i < 20; i++) clients.push_back(TcpStream::connect(at("127.0.0.1", 2002)));
    EXPECT_TRUE(listeners.apply(site.with({{":2001"}, {}})).empty());
    for (const TcpStream& c : clients) EXPECT_EQ(c.recv_line(), "b -");
    EXPECT_TRUE(listeners.apply(site.with({{":2001"}, {":2002"}})).empty());
    EXPECT_EQ(TcpStream::connect(at("127.0.0.1", 2002)).recv_line(), "b -");
  }
  EXPECT_TRUE(listeners.apply(site.with({{":2001"}, {}})).empty());
  EXPECT_TRUE(wait_until([] { return TcpStream::try_connect(at("127.0.0.1", 2002)) == ECONNREFUSED; }));
  EXPECT_EQ(TcpStream::connect(at("127.0.0.1", 2001)).recv_line(), "a -");
  listeners.stop();
}

// A port that somebody else holds is a state that ends by itself, and nothing else suffers.
TEST_F(Swap, APortInUse) {
  std::optional<TcpListener> owner(std::in_place, at("127.0.0.1", 2002));
  const auto failures = listeners.apply(site.with({{":2001"}, {":2002"}}));
  ASSERT_EQ(failures.size(), 1u);
  EXPECT_EQ(failures[0], "listener b: cannot listen on :2002: Address already in use (see who: ss -ltnp)");
  ASSERT_TRUE(listeners.watch());
  EXPECT_EQ(TcpStream::connect(at("127.0.0.1", 2001)).recv_line(), "a -");
  owner.reset();
  EXPECT_TRUE(wait_until([&] {
    for (const auto& s : listeners.states())
      if (!s.waits.empty()) return false;
    return true;
  }));
  EXPECT_EQ(TcpStream::connect(at("127.0.0.1", 2002)).recv_line(), "b -");
  listeners.stop();
}

}  // namespace
}  // namespace penstock::test
