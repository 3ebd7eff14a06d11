// SPDX-License-Identifier: Apache-2.0
// When a server is up and when it is down. In-process for the exact counts, with the daemon for what it logs
// and shows.
#include "check/checker.h"

#include <signal.h>

#include <condition_variable>
#include <mutex>

#include "mail_site.h"
#include "support/lost_time.h"

namespace penstock::test {
namespace {

using check::Health;
using check::State;
using check::Target;

constexpr uint16_t kPort = 7;
constexpr milliseconds kSeldom = 1h;  // an interval no test sees the end of

// A checker on the edge, and everything it has told.
class Checks : public MailSite {
 protected:
  void SetUp() override { ::signal(SIGPIPE, SIG_IGN); }
  void TearDown() override {
    checker_.reset();
    resolver_.reset();
    MailSite::TearDown();
  }
  void start(const std::vector<Target>& targets, const std::vector<std::string>& records = {}) {
    const Netns::Inside inside(edge_);
    if (!programs_.emplace_back(dnsmasq(records)).wait_for("started, version"))
      throw std::runtime_error("dnsmasq");
    auto resolver = dns::Resolver::start({.servers = {at("127.0.0.1", 53)}});
    ASSERT_TRUE(resolver.ok()) << resolver.error().message;
    resolver_ = std::move(*resolver);
    auto checker = check::Checker::start(*resolver_, [this](const std::string& key, const Health& health) {
      const std::lock_guard lock(mutex_);
      told_.emplace_back(key, health);
      changed_.notify_all();
    });
    ASSERT_TRUE(checker.ok()) << checker.error().message;
    checker_ = std::move(*checker);
    checker_->set(targets);
  }
  static Target target(const std::string& host, milliseconds interval,
                       const std::string& upstream = "mailbox") {
    Target t;
    t.upstream = upstream;
    t.server.host = host;
    t.server.address = IpAddress::parse(host);
    t.server.port = kPort;
    t.server.text = host + ":7";
    t.check.interval = interval;
    t.check.timeout = 300ms;
    return t;
  }
  TcpListener listen() const {
    const Netns::Inside inside(servers_);
    return TcpListener(at(kServerV4, kPort));
  }
  // The n-th thing that was told, from 0.
  std::pair<std::string, Health> told(size_t n) {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, kPatience, [&] { return told_.size() > n; }))
      throw std::runtime_error("not told");
    return told_[n];
  }
  size_t told_count() {
    const std::lock_guard lock(mutex_);
    return told_.size();
  }
  Health health(const std::string& key) const { return checker_->health(key).value(); }
  bool checked(const std::string& key, uint64_t checks) const {
    return wait_until([&] { return health(key).checks >= checks; });
  }

  std::unique_ptr<dns::Resolver> resolver_;
  std::unique_ptr<check::Checker> checker_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::pair<std::string, Health>> told_;  // guarded by mutex_
};

const std::string kKey = "mailbox/198.51.100.25:7";

TEST_F(Checks, RiseAndFallAreExact) {
  TcpListener server = listen();
  Target t = target(kServerV4, 40ms);
  t.check.rise = 3;
  t.check.fall = 4;
  start({t});
  auto [key, health] = told(0);
  EXPECT_EQ(key, kKey);
  EXPECT_EQ(health.state, State::up);
  EXPECT_EQ(health.checks, 1u);  // the first one decides
  EXPECT_EQ(health.address->text(), kKey.substr(8));
  server.close();
  health = told(1).second;
  EXPECT_EQ(health.state, State::down);
  EXPECT_EQ(health.failed, 4u);
  EXPECT_EQ(health.failure, check::Failure::refused);
  EXPECT_EQ(health.reason, "connection refused");
  const uint64_t passed = health.checks - health.failed;
  server = listen();
  health = told(2).second;
  EXPECT_EQ(health.state, State::up);
  EXPECT_EQ(health.checks - health.failed - passed, 3u);
}

TEST_F(Checks, DownAtBootAndRecoveryIsSeenWithinOneInterval) {
  Target t = target(kServerV4, 2s);
  start({t});
  EXPECT_EQ(told(0).second.state, State::down);
  EXPECT_EQ(told(0).second.checks, 1u);
  const TcpListener server = listen();
  const LostTime lost;
  const auto since = std::chrono::steady_clock::now();
  EXPECT_EQ(told(1).second.state, State::up);
  EXPECT_LE(std::chrono::steady_clock::now() - since, 2s + lost.so_far());
}

TEST_F(Checks, AFailedDialOfAFlowCountsOnceASecondAndBringsTheNextCheckForward) {
  std::optional<TcpListener> server(listen());
  Target t = target(kServerV4, kSeldom);
  t.check.fall = 2;
  start({t});
  EXPECT_EQ(told(0).second.state, State::up);
  for (int i = 0; i < 100; i++) checker_->suspect(kKey, "connection refused");
  EXPECT_TRUE(checked(kKey, 2));  // long before its hour
  EXPECT_EQ(health(kKey).state, State::up);
  server.reset();
  EXPECT_TRUE(wait_until([&] {
    checker_->suspect(kKey, "connection refused");
    return told_count() > 1;
  }));
  EXPECT_EQ(told(1).second.state, State::down);
  EXPECT_EQ(told(1).second.checks, 3u);  // one mark, one check
  checker_->suspect("mailbox/nobody", "connection refused");
}

TEST_F(Checks, OneCheckServesEveryUpstreamOfAServer) {
  TcpListener server = listen();
  start({target(kServerV4, 100ms), target(kServerV4, 100ms, "mailbox-too")});
  EXPECT_TRUE(checked(kKey, 3));
  EXPECT_EQ(told(0).second.state, State::up);
  EXPECT_EQ(told(1).second.state, State::up);
  EXPECT_NE(told(0).first, told(1).first);
  checker_.reset();
  size_t dials = 0;
  while (server.accept_within(0ms)) dials++;
  EXPECT_GE(dials, 3u);
  EXPECT_LE(dials, 3u + 2);  // those that came since we looked; two checks would have made six
}

TEST_F(Checks, AReloadKeepsWhatIsKnown) {
  const TcpListener server = listen();
  const Target old = target(kServerV4, kSeldom);
  start({old});
  EXPECT_EQ(told(0).second.state, State::up);
  Target dead = target("198.51.100.26", kSeldom);
  checker_->set({old, dead, target(kServerV4, kSeldom, "joins")});
  EXPECT_EQ(told(1).first, "joins/198.51.100.25:7");  // at once: its check is known
  EXPECT_EQ(told(1).second.state, State::up);
  EXPECT_EQ(told(2).first, "mailbox/198.51.100.26:7");
  EXPECT_EQ(told(2).second.state, State::down);
  EXPECT_EQ(health(kKey).checks, 1u);  // not checked again
  Target other = old;
  other.check.fall = 5;
  checker_->set({other});
  EXPECT_FALSE(checker_->health("joins/198.51.100.25:7"));
  EXPECT_EQ(health(kKey).state, State::unknown);  // another check
  EXPECT_EQ(told(3).first, kKey);
  EXPECT_EQ(told(3).second.checks, 1u);
}

TEST_F(Checks, OneAddressOfTwoIsEnough) {
  make_void();
  const TcpListener server = listen();
  Target t = target("two.example.net", 100ms);
  start({t}, {"--host-record=two.example.net,203.0.113.7", "--host-record=two.example.net,198.51.100.25"});
  const Health first = told(0).second;
  EXPECT_EQ(first.state, State::up);
  EXPECT_EQ(first.address->text(), "198.51.100.25:7");
  EXPECT_TRUE(checked("mailbox/two.example.net:7", 3));
  EXPECT_LT(health("mailbox/two.example.net:7").took.count(), 300);  // the one that served goes first
  EXPECT_EQ(told_count(), 1u);
}

TEST_F(Checks, ARefusedAddressBeforeAGoodOne) {
  const TcpListener server = listen();
  Target t = target("both.example.net", kSeldom);
  start({t}, {"--host-record=both.example.net,198.51.100.25,2001:db8:2::25"});
  EXPECT_EQ(told(0).second.state, State::up);
  EXPECT_EQ(told(0).second.reason, "[2001:db8:2::25]:7: connection refused");
}

// Its DNS says ten minutes. The mailbox has moved all the same.
TEST_F(Checks, ANameNobodyAnswersAtIsAskedAgain) {
  Target t = target("moves.example.net", 1s);
  const std::string hosts = directory_.write("hosts", "198.51.100.26 moves.example.net\n");
  start({t}, {"--addn-hosts=" + hosts, "--local-ttl=600"});
  EXPECT_EQ(told(0).second.state, State::down);
  const TcpListener server = listen();
  directory_.write("hosts", "198.51.100.25 moves.example.net\n");
  programs_.back().signal(SIGHUP);
  const LostTime lost;
  const auto since = std::chrono::steady_clock::now();
  EXPECT_EQ(told(1).second.state, State::up);
  EXPECT_EQ(told(1).second.address->text(), "198.51.100.25:7");
  EXPECT_LE(std::chrono::steady_clock::now() - since,
            3s + lost.so_far());  // an interval, and once a second for a name
}

TEST_F(Checks, ANameThatIsNone) {
  start({target("gone.example.net", kSeldom)});
  EXPECT_EQ(told(0).second.state, State::down);
  EXPECT_EQ(told(0).second.failure, check::Failure::resolve);
  EXPECT_EQ(told(0).second.reason, "gone.example.net: no such name");
}

size_t count(const std::string& log, const std::string& text) {
  size_t n = 0;
  for (size_t at = log.find(text); at != log.npos; at = log.find(text, at + 1)) n++;
  return n;
}

// The whole daemon.
class Checked : public MailSite {
 protected:
  static std::string edge(const std::string& check, const std::string& proxy_protocol = "off") {
    return "[upstream.mailbox]\nservers = [\"198.51.100.25:7\"]\nproxy_protocol = \"" + proxy_protocol +
           "\"\ncheck = " + check +
           "\n[[listener]]\nname = \"all\"\nbind = [\":25\"]\nupstream = \"mailbox\"\n";
  }
  Json server() const { return daemon_->status().at("upstreams").at(0).at("servers").at(0); }
  bool is(const std::string& state) const {
    return wait_until(
        [&] { return server().at("health").at("state") == state && server().at("state") == state; });
  }
  bool logged(const std::string& text) { return daemon_->process().wait_for(text); }
};

TEST_F(Checked, EveryChangeIsLoggedOnceWithItsReason) {
  start_edge(edge(R"({ type = "tcp", interval = "1s", rise = 1, fall = 1 })"));
  ASSERT_TRUE(is("down"));
  for (int i = 0; i < 3; i++) {
    std::optional<TcpListener> server;
    {
      const Netns::Inside inside(servers_);
      server.emplace(at(kServerV4, 7));
    }
    ASSERT_TRUE(is("up"));
    server.reset();
    ASSERT_TRUE(is("down"));
  }
  const Json health = server().at("health");
  EXPECT_EQ(health.at("failure"), "refused");
  EXPECT_EQ(health.at("reason"), "connection refused");
  EXPECT_EQ(daemon_->stop(), 0);
  EXPECT_EQ(count(daemon_->log(), "upstream mailbox: server 198.51.100.25:7 is up (1 check)"), 3u);
  EXPECT_EQ(
      count(daemon_->log(), "upstream mailbox: server 198.51.100.25:7 is down: connection refused (1 check)"),
      4u);
  daemon_.reset();
}

TEST_F(Checked, ThreeInARow) {
  std::optional<TcpListener> server;
  {
    const Netns::Inside inside(servers_);
    server.emplace(at(kServerV4, 7));
  }
  start_edge(edge(R"({ type = "tcp", interval = "1s" })"));
  ASSERT_TRUE(is("up"));
  server.reset();
  EXPECT_TRUE(logged("server 198.51.100.25:7 is down: connection refused (3 checks in a row)"));
}

// postfix answers 421 to version 1's UNKNOWN, so what a check says by default is what a flow would.
TEST_F(Checked, PostfixWithVersion1) {
  start_postfix();
  start_edge(R"(
[upstream.mailbox]
servers = ["198.51.100.25:2525"]
proxy_protocol = "v1"
check = { type = "smtp", interval = "1s" }
[[listener]]
name = "mail"
bind = [":25"]
upstream = "mailbox"
)");
  ASSERT_TRUE(is("up"));
  ASSERT_TRUE(wait_until([&] { return server().at("health").at("checks") >= 3; }));
  EXPECT_EQ(server().at("health").at("failed"), 0);
  EXPECT_TRUE(mail_logged("disconnect from unknown[198.51.100.1] ehlo=1 quit=1"));
  EXPECT_EQ(mail_log().find("haproxy"), std::string::npos) << "a header it does not understand";
}

TEST_F(Checked, TheMailboxBootsAfterTheEdge) {
  start_edge(R"(
[upstream.mailbox]
servers = ["198.51.100.25"]
proxy_protocol = "v2"
check = { type = "smtp", port = 2525, interval = "1s" }
[upstream.submission]
servers = ["198.51.100.25:465"]
check = { type = "tls", interval = "1s" }
[[listener]]
name = "mail"
bind = [":25"]
upstream = "mailbox"
[[listener]]
name = "submissions"
bind = [":465"]
upstream = "submission"
)");
  EXPECT_TRUE(logged("upstream mailbox: server 198.51.100.25 is down: connection refused (1 check)"));
  start_postfix();
  EXPECT_TRUE(logged("upstream mailbox: server 198.51.100.25 is up (2 checks in a row)"));
  EXPECT_TRUE(logged("upstream submission: server 198.51.100.25:465 is up (2 checks in a row)"));
  const Json certificate =
      daemon_->status().at("upstreams").at(1).at("servers").at(0).at("health").at("certificate");
  EXPECT_EQ(certificate.at("issuer"), "CN=mailbox.example.net");
  EXPECT_EQ(certificate.at("self_signed"), true);
  EXPECT_EQ(certificate.at("days_left"), 1);
  EXPECT_EQ(mail_log().find("lost connection"), std::string::npos);
}

}  // namespace
}  // namespace penstock::test
