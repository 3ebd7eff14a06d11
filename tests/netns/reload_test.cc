// SPDX-License-Identifier: Apache-2.0
// A new configuration while flows go on; servers that are drained, or marked down.
#include <fstream>

#include "netns/edge.h"
#include "support/named_echo.h"

namespace penstock::test {
namespace {

class Reload : public Edge {
 protected:
  void start_mail(const std::string& upstream_keys = "") {
    DaemonOptions options;
    options.tables = mail_tables(upstream_keys);
    start_with(std::move(options));
    text_ = read_file(daemon_->config_file());
  }
  // Of the file it started with.
  void replace(const std::string& what, const std::string& with) const {
    std::string text = text_;
    ASSERT_NE(text.find(what), std::string::npos) << text;
    std::ofstream(daemon_->config_file()) << text.replace(text.find(what), what.size(), with);
  }
  Json reload() const { return daemon_->ask({{"command", "reload"}}); }
  std::string greeting(uint16_t port = kMailPort) const {
    return TcpStream::connect(at(kAddress, port)).recv_line();
  }

  NamedEcho a_{"a", at(kAddress, kServerPort)}, b_{"b", at(kAddress, 3526)};
  std::string text_;
};

TEST_P(Reload, NewFlowsTakeTheNewServerOpenOnesStay) {
  start_mail();
  const TcpStream old = connect();
  EXPECT_EQ(old.recv_line(), "a -");
  replace("127.0.0.1:3525", "127.0.0.1:3526");
  EXPECT_EQ(reload().at("reloaded"), true);
  EXPECT_EQ(greeting(), "b -");
  old.send_all("still here\n");
  EXPECT_EQ(old.recv_line(), "still here");
  EXPECT_EQ(daemon_->status().at("configuration").at("reloads"), 1);
}

TEST_P(Reload, BySighup) {
  start_mail();
  replace("127.0.0.1:3525", "127.0.0.1:3526");
  daemon_->process().signal(SIGHUP);
  EXPECT_TRUE(daemon_->process().wait_for("reloaded " + daemon_->config_file()));
  EXPECT_EQ(greeting(), "b -");
}

TEST_P(Reload, AMistakeChangesNothing) {
  start_mail();
  replace("servers", "sevrers");
  const Json answer = reload();
  EXPECT_EQ(answer.at("reloaded"), false);
  EXPECT_NE(answer.at("diagnostics").dump().find("unknown key \\\"sevrers\\\""), std::string::npos) << answer;
  EXPECT_EQ(greeting(), "a -");
  EXPECT_NE(daemon_->status().at("configuration").at("error"), "");
}

TEST_P(Reload, ListenersComeAndGo) {
  start_mail();
  replace("127.0.0.1:2525\"", "127.0.0.1:2526\", \"127.0.0.1:2527\"");
  EXPECT_EQ(reload().at("waiting"), Json::array());
  EXPECT_EQ(greeting(2526), "a -");
  EXPECT_EQ(greeting(2527), "a -");
  EXPECT_TRUE(wait_until([] { return TcpStream::try_connect(at(kAddress, kMailPort)) == ECONNREFUSED; }));
  replace("127.0.0.1:2525", "127.0.0.1:2525");
  EXPECT_EQ(reload().at("waiting"), Json::array());
  EXPECT_EQ(greeting(), "a -");
}

TEST_P(Reload, WhatOnlyAStartReadsIsPending) {
  start_mail();
  replace("threads = 2", "threads = 1");
  EXPECT_EQ(reload().at("pending"), Json({"daemon.threads"}));
  EXPECT_EQ(daemon_->status().at("configuration").at("pending"), Json({"daemon.threads"}));
  replace("threads = 2", "threads = 2");
  EXPECT_EQ(reload().at("pending"), Json::array());
}

// The listener and its counters go with their last flow.
TEST_P(Reload, AListenerThatIsRenamed) {
  start_mail();
  const TcpStream old = connect();
  EXPECT_EQ(old.recv_line(), "a -");
  replace("name = \"mail\"", "name = \"post\"");
  EXPECT_EQ(reload().at("reloaded"), true);
  EXPECT_EQ(greeting(), "a -");
  EXPECT_TRUE(daemon_->wait_active(1));
  EXPECT_EQ(daemon_->flows().at(0).at("listener"), "mail");
  EXPECT_TRUE(wait_until([&] {
    const Json l = daemon_->status().at("listeners").at(0);
    return l.at("name") == "post" && l.at("accepted") == 1 && l.at("active") == 0;
  }));
}

TEST_P(Reload, AServerThatIsDrained) {
  start_mail("retries = 0");
  const TcpStream old = connect();
  EXPECT_EQ(old.recv_line(), "a -");
  EXPECT_EQ(daemon_->ask({{"command", "drain"}, {"name", "mailbox"}}).at("drained").at(0).at("flows"), 1);
  EXPECT_EQ(connect().recv_to_end(), End::reset);
  EXPECT_TRUE(wait_until([&] { return daemon_->closed("no_server") == 1; }));
  EXPECT_EQ(reload().at("reloaded"), true);
  EXPECT_EQ(connect().recv_to_end(), End::reset);
  daemon_->ask({{"command", "resume"}, {"name", "mailbox/127.0.0.1:3525"}});
  EXPECT_EQ(greeting(), "a -");
  old.send_all("still here\n");
  EXPECT_EQ(old.recv_line(), "still here");
}

TEST_P(Reload, TheNextServerWhenOneRefuses) {
  start_mail();
  replace("[\"127.0.0.1:3525\"]", "[\"127.0.0.1:3999\", \"127.0.0.1:3526\"]");
  EXPECT_EQ(reload().at("reloaded"), true);
  for (int i = 0; i < 4; i++) EXPECT_EQ(greeting(), "b -");
}

TEST_P(Reload, AServerMarkedDownTakesItsFlowsWithIt) {
  std::optional<TcpListener> server(std::in_place, at(kAddress, 3527));
  start_mail();
  replace("[\"127.0.0.1:3525\"]",
          "[\"127.0.0.1:3527\"]\ncheck = { type = \"tcp\", interval = \"1s\", timeout = \"1s\", fall = 1 }\n"
          "on_marked_down = \"close\"\non_down = \"close\"");
  EXPECT_EQ(reload().at("reloaded"), true);
  EXPECT_TRUE(wait_until(
      [&] { return daemon_->status().at("upstreams").at(0).at("servers").at(0).at("state") == "up"; }));
  const TcpStream client = connect();
  daemon_->wait_flow("open");
  server.reset();
  EXPECT_EQ(client.recv_to_end(), End::reset);
  EXPECT_TRUE(wait_until(
      [&] { return daemon_->status().at("upstreams").at(0).at("servers").at(0).at("state") == "down"; }));
  EXPECT_EQ(connect().recv_to_end(), End::fin);
  EXPECT_EQ(daemon_->closed("no_server"), 1u);
}

FOR_BOTH_ENGINES(Reload);

}  // namespace
}  // namespace penstock::test
