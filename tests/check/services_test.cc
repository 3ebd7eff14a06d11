// SPDX-License-Identifier: Apache-2.0
// Upstreams with `srv`: the daemon follows what DNS (dnsmasq) says of them, flows or no flows, and checks
// those servers and no others.
#include <fstream>
#include <map>

#include "mail_site.h"

namespace penstock::test {
namespace {

class Services : public MailSite {
 protected:
  static constexpr const char* kA = kServerV4;
  static constexpr const char* kB = "198.51.100.26";
  static constexpr const char* kC = "198.51.100.27";
  static constexpr uint16_t kPort = 7;

  Services() {
    for (const char* address : {kB, kC}) servers_.ip(std::string("address add ") + address + "/32 dev lo");
  }

  // {host, port, priority}: "a" is a.example.net.
  static std::string srv(const std::string& host_port_priority, const std::string& service = "_imap") {
    return "--srv-host=" + service + "._tcp.example.net," + host_port_priority;
  }
  // Only these records are there from now on.
  void start_dns(const std::vector<std::string>& records, const std::string& ttl_s = "1") {
    const Netns::Inside inside(edge_);
    std::vector<std::string> options{
        "--cache-size=0", "--local-ttl=" + ttl_s, std::string("--host-record=a.example.net,") + kA,
        std::string("--host-record=b.example.net,") + kB, std::string("--host-record=c.example.net,") + kC};
    options.insert(options.end(), records.begin(), records.end());
    dns_.reset();
    dns_.emplace(dnsmasq(options));
    if (!dns_->wait_for("started, version")) throw std::runtime_error("dnsmasq: " + dns_->output());
  }
  size_t asked() const {
    const std::string log = dns_->output(), wanted = "query[SRV] _imap._tcp.example.net ";
    size_t count = 0;
    for (size_t at = log.find(wanted); at != log.npos; at = log.find(wanted, at + 1)) count++;
    return count;
  }
  static std::string edge(const std::string& more = "") {
    return std::string(R"(
[dns]
servers = ["127.0.0.1:53"]
[upstream.imap]
srv = "_imap._tcp.example.net"
check = { type = "tcp", interval = "1s", rise = 1, fall = 1 }
[[listener]]
name = "all"
bind = [":143"]
upstream = "imap"
)") + more;
  }
  TcpListener listen(const char* address) const {
    const Netns::Inside inside(servers_);
    return TcpListener(at(address, kPort));
  }
  Json upstream(const std::string& name = "imap") const {
    const Json status = daemon_->status();
    for (const Json& u : status.at("upstreams"))
      if (u.at("name") == name) return u;
    throw std::runtime_error("no upstream " + name);
  }
  Json health(const std::string& server) const {
    const Json imap = upstream();
    for (const Json& s : imap.at("servers"))
      if (s.at("server") == server) return s.at("health");
    throw std::runtime_error("no server " + server);
  }
  uint64_t checks(const std::string& server) const { return health(server).at("checks"); }
  // They are these, and as well as this.
  using States = std::map<std::string, std::string>;
  bool servers_are(const States& wanted, const std::string& name = "imap") const {
    States states;
    const bool are = wait_until([&] {
      states.clear();
      const Json all = upstream(name);
      for (const Json& s : all.at("servers"))
        states[s.at("server")] = s.contains("health") && s.at("state") != s.at("health").at("state")
                                     ? "undecided"
                                     : s.at("state").get<std::string>();
      return states == wanted;
    });
    if (!are) ADD_FAILURE() << Json(states);
    return are;
  }

  std::optional<Process> dns_;
};

size_t take_all(const TcpListener& server) {
  size_t count = 0;
  while (server.accept_within(0ms)) count++;
  return count;
}

size_t lines_with(const std::string& log, const std::string& text) {
  size_t n = 0;
  for (size_t at = log.find(text); at != log.npos; at = log.find(text, at + 1)) n++;
  return n;
}

TEST_F(Services, AnIdleSetIsFollowedAndEachServerHasItsCheck) {
  const TcpListener a = listen(kA), b = listen(kB), c = listen(kC);
  start_dns({srv("a.example.net,7,10"), srv("b.example.net,7,20")});
  start_edge(edge(R"([upstream.imap-too]
srv = "_imap._tcp.example.net"
check = { type = "tcp", interval = "1s", rise = 1, fall = 1 }
)"));
  ASSERT_TRUE(servers_are({{"a.example.net:7", "up"}, {"b.example.net:7", "up"}}));
  ASSERT_TRUE(servers_are({{"a.example.net:7", "up"}, {"b.example.net:7", "up"}}, "imap-too"));
  const Json since = health("a.example.net:7").at("since");

  start_dns({srv("a.example.net,7,10"), srv("c.example.net,7,20")});
  ASSERT_TRUE(servers_are({{"a.example.net:7", "up"}, {"c.example.net:7", "up"}}));
  EXPECT_EQ(health("a.example.net:7").at("since"), since) << "it has lost the check it had";
  take_all(b);
  const uint64_t before = checks("a.example.net:7");
  ASSERT_TRUE(wait_until([&] { return checks("a.example.net:7") >= before + 3; }));
  EXPECT_EQ(take_all(b), 0u) << "it is checked though it has left";

  EXPECT_EQ(daemon_->totals().at("accepted"), 0);
  const uint64_t checked = checks("a.example.net:7"), came = take_all(a);
  EXPECT_LE(came, checked + 1) << "one check for both upstreams";
  EXPECT_GE(came, checked);
}

TEST_F(Services, WhatWasSaidLastServesWhileDnsIsDown) {
  const TcpListener a = listen(kA), c = listen(kC);
  std::optional<TcpListener> b(listen(kB));
  start_dns({srv("a.example.net,7,10"), srv("b.example.net,7,10")});
  start_edge(edge());
  ASSERT_TRUE(servers_are({{"a.example.net:7", "up"}, {"b.example.net:7", "up"}}));
  EXPECT_FALSE(upstream().contains("error"));
  dns_.reset();
  ASSERT_TRUE(wait_until([&] { return upstream().contains("error"); }));
  b.reset();
  ASSERT_TRUE(servers_are({{"a.example.net:7", "up"}, {"b.example.net:7", "down"}}));
  const uint64_t before = checks("a.example.net:7");
  ASSERT_TRUE(wait_until([&] { return checks("a.example.net:7") >= before + 3; }));
  EXPECT_EQ(lines_with(daemon_->log(), "upstream imap: _imap._tcp.example.net: "), 1u) << daemon_->log();

  start_dns({srv("c.example.net,7,10")});
  ASSERT_TRUE(servers_are({{"c.example.net:7", "up"}}));
  EXPECT_FALSE(upstream().contains("error"));
}

TEST_F(Services, DnsIsAskedByTtlUnlessNobodyIsUp) {
  std::optional<TcpListener> a(listen(kA));
  const TcpListener c = listen(kC);
  start_dns({srv("a.example.net,7,10")}, "600");
  start_edge(edge());
  ASSERT_TRUE(servers_are({{"a.example.net:7", "up"}}));
  ASSERT_TRUE(wait_until([&] { return checks("a.example.net:7") >= 4; }));
  EXPECT_EQ(asked(), 1u);

  start_dns({srv("c.example.net,7,10")}, "600");
  a.reset();
  ASSERT_TRUE(servers_are({{"c.example.net:7", "up"}}));
  EXPECT_EQ(asked(), 1u);
}

// DNS is asked once a second while it is down: a flow is sooner.
TEST_F(Services, AServerThatAFlowHeardOfFirstIsCheckedToo) {
  const TcpListener a = listen(kA), c = listen(kC);
  start_dns({srv("a.example.net,7,10")});
  start_edge(edge());
  ASSERT_TRUE(servers_are({{"a.example.net:7", "up"}}));
  dns_.reset();
  ASSERT_TRUE(wait_until([&] { return upstream().contains("error"); }));
  start_dns({srv("c.example.net,7,10")});
  ASSERT_TRUE(wait_until([&] {
    connect(kEdgeV4, 143).reset();
    return upstream().at("servers").at(0).at("server") == "c.example.net:7";
  }));
  ASSERT_TRUE(servers_are({{"c.example.net:7", "up"}}));
}

TEST_F(Services, AReloadToAnotherService) {
  const TcpListener a = listen(kA), b = listen(kB);
  start_dns({srv("a.example.net,7,10"), srv("b.example.net,7,10", "_imaps")}, "600");
  start_edge(edge());
  ASSERT_TRUE(servers_are({{"a.example.net:7", "up"}}));
  const auto reload = [&](const std::string& from, const std::string& to) {
    std::string text = read_file(daemon_->config_file());
    text.replace(text.find(from), from.size(), to);
    std::ofstream(daemon_->config_file()) << text;
    EXPECT_EQ(daemon_->ask({{"command", "reload"}}).at("reloaded"), true);
  };
  reload("_imap.", "_imaps.");
  ASSERT_TRUE(servers_are({{"b.example.net:7", "up"}}));
  reload("check =", "#");
  ASSERT_TRUE(servers_are({{"b.example.net:7", "unchecked"}}));
  EXPECT_FALSE(upstream().at("servers").at(0).contains("health"));
}

TEST_F(Services, TheCommandsKnowTheServers) {
  start_dovecot();
  start_dns({srv("a.example.net,143,10"), srv("a.example.net,1143,20")});
  start_edge(edge(R"([upstream.none]
srv = "_none._tcp.example.net"
)"));
  ASSERT_TRUE(servers_are({{"a.example.net:143", "up"}, {"a.example.net:1143", "up"}}));
  ASSERT_TRUE(wait_until([&] { return upstream("none").contains("error"); }));
  const auto said = [&](std::vector<std::string> words, int code) {
    words.insert(words.begin(), command_program());
    words.insert(words.end(), {"--socket", daemon_->admin_socket()});
    Process command(words);
    EXPECT_EQ(command.wait_exit(60s), code) << command.output();
    return command.output();
  };
  const Json first = Json::parse(said({"doctor", "imap", "--json"}, 0));
  EXPECT_EQ(first.at("server"), "a.example.net:143");
  EXPECT_EQ(first.at("verdict"), "as_configured");
  const Json second = Json::parse(said({"doctor", "imap", "a.example.net:1143", "--json"}, 1));
  EXPECT_EQ(second.at("expects"), "v2") << second;
  const auto says = [](const std::string& text, const std::string& what) {
    EXPECT_NE(text.find(what), text.npos) << text;
  };
  says(said({"doctor", "imap", "elsewhere"}, 1),
       "upstream imap has no server elsewhere (it has: a.example.net:143, a.example.net:1143)");
  says(said({"doctor", "none"}, 1),
       "upstream none has no server yet: DNS has named none for _none._tcp.example.net");
  const std::string status = said({"status"}, 0);
  says(status, "  a.example.net:143   up ");
  says(status, "none                  waiting ");
  says(status, "  SRV _none._tcp.example.net  DNS: no such name\n");
}

}  // namespace
}  // namespace penstock::test
