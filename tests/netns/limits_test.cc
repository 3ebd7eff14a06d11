// SPDX-License-Identifier: Apache-2.0
// Who may come: allow and deny, and each limit refuses exactly the surplus, with a RST, and lets the next one
// in when there is place again.
#include <fmt/format.h>

#include <system_error>

#include "netns/edge.h"
#include "support/named_echo.h"

namespace penstock::test {
namespace {

class Limits : public Edge {
 protected:
  // Listener "mail" on :2525 with `keys`, listener "other" on :2526 without.
  void start_limits(const std::string& keys, const std::string& limits = "") {
    for (const char* address : {"10.1.0.1/32", "10.2.0.1/32"})
      netns_.ip(std::string("addr add ") + address + " dev lo");
    for (const char* address :
         {"2001:db8:0:1::1", "2001:db8:0:1:ffff::2", "2001:db8:0:2::1", "2001:db8:66::1"})
      netns_.ip(std::string("addr add ") + address + "/128 dev lo nodad");
    DaemonOptions options;
    options.tables = "[upstream.mailbox]\nservers = [\"127.0.0.1:3525\"]\n" + limits +
                     "\n[[listener]]\nname = \"mail\"\nbind = \":2525\"\nupstream = \"mailbox\"\n" + keys +
                     "\n[[listener]]\nname = \"other\"\nbind = \":2526\"\nupstream = \"mailbox\"\n";
    start_with(std::move(options));
    echo_.emplace("mailbox", at(kAddress, kServerPort));
  }
  // A flow that is served, or nothing: reset.
  static std::optional<TcpStream> come(const std::string& from = "127.0.0.1", uint16_t port = 2525) {
    try {
      TcpStream stream =
          TcpStream::connect(at(from.find(':') == from.npos ? "127.0.0.1" : "::1", port), at(from, 0));
      std::string said;
      char byte;
      while (stream.recv_some(&byte, 1) == 1)
        if (byte == '\n') return stream;
    } catch (const std::system_error& e) {
      EXPECT_EQ(e.code().value(), ECONNRESET) << e.what();  // faster than connect(2) was back
    }
    return std::nullopt;
  }
  // So many were refused; a client may know before they are counted.
  void expect_refused(const std::string& reason, uint64_t times) const {
    EXPECT_TRUE(wait_until([&] { return daemon_->closed(reason) >= times; })) << daemon_->totals();
    EXPECT_EQ(daemon_->closed(reason), times);
  }
  static unsigned lines_with(const std::string& log, const std::string& what) {
    unsigned n = 0;
    for (size_t at = 0; (at = log.find(what, at)) != log.npos; at++) n++;
    return n;
  }

  std::optional<NamedEcho> echo_;
};
FOR_BOTH_ENGINES(Limits);

TEST_P(Limits, AllowAndDeny) {
  start_limits(
      "allow = [\"127.0.0.0/8\", \"10.1.0.0/16\", \"2001:db8::/32\"]\ndeny = [\"127.0.0.66\", "
      "\"2001:db8:66::/48\"]");
  for (const char* client : {"127.0.0.1", "127.0.0.67", "10.1.0.1", "2001:db8:0:1::1"})
    EXPECT_TRUE(come(client)) << client;
  for (const char* client : {"127.0.0.66", "10.2.0.1", "2001:db8:66::1", "::1"})
    EXPECT_FALSE(come(client)) << client;
  EXPECT_TRUE(come("127.0.0.66", 2526));  // another listener's matter
  expect_refused("denied", 4);
  EXPECT_TRUE(wait_until([&] { return lines_with(daemon_->log(), "reason=denied") == 4; })) << daemon_->log();
}

TEST_P(Limits, DenyAlone) {
  start_limits("deny = \"127.0.0.66\"");
  EXPECT_TRUE(come("10.2.0.1"));
  EXPECT_TRUE(come("2001:db8:66::1"));
  EXPECT_FALSE(come("127.0.0.66"));
}

TEST_P(Limits, MaxFlowsOfAllAndOfAListener) {
  start_limits("max_flows = 2", "[limits]\nmax_flows = 3");
  std::optional<TcpStream> first = come(), second = come();
  ASSERT_TRUE(first && second);
  EXPECT_FALSE(come());  // the listener's
  const std::optional<TcpStream> third = come("127.0.0.1", 2526);
  ASSERT_TRUE(third);
  EXPECT_FALSE(come("127.0.0.1", 2526));  // all
  first.reset();
  EXPECT_TRUE(daemon_->wait_active(2));
  const std::optional<TcpStream> fourth = come();
  EXPECT_TRUE(fourth);
  EXPECT_FALSE(come());
  expect_refused("max_flows", 3);
}

TEST_P(Limits, FlowsPerClient) {
  start_limits("max_flows_per_client = 2", "[limits]\nmax_flows_per_client = 3");
  std::vector<TcpStream> flows;
  const auto comes = [&](const char* client, uint16_t port = 2525) {
    std::optional<TcpStream> stream = come(client, port);
    if (!stream) return false;
    flows.push_back(std::move(*stream));
    return true;
  };
  for (const char* client : {"10.1.0.1", "10.2.0.1"}) {
    EXPECT_TRUE(comes(client) && comes(client));
    EXPECT_FALSE(comes(client));
    EXPECT_TRUE(comes(client, 2526));
    EXPECT_FALSE(comes(client, 2526));
  }
  EXPECT_TRUE(comes("2001:db8:0:1::1") && comes("2001:db8:0:1:ffff::2"));
  EXPECT_FALSE(comes("2001:db8:0:1:ffff::2"));  // of the same /64
  EXPECT_TRUE(comes("2001:db8:0:2::1"));
  flows.clear();
  EXPECT_TRUE(daemon_->wait_active(0));
  EXPECT_TRUE(comes("2001:db8:0:1:ffff::2") && comes("2001:db8:0:1::1"));
  EXPECT_FALSE(comes("2001:db8:0:1:ffff::2"));
  expect_refused("max_flows_per_client", 6);
}

TEST_P(Limits, NewFlowsPerClient) {
  start_limits("new_flows_per_client = \"2/1h\"", "[limits]\nnew_flows_per_client = \"4/2s\"");
  EXPECT_TRUE(come("10.1.0.1") && come("10.1.0.1"));
  EXPECT_FALSE(come("10.1.0.1"));
  EXPECT_TRUE(come("10.2.0.1"));
  EXPECT_TRUE(come("2001:db8:0:1::1") && come("2001:db8:0:1:ffff::2"));
  EXPECT_FALSE(come("2001:db8:0:1::1"));
  unsigned served = 0;
  while (come("10.1.0.1", 2526)) served++;
  EXPECT_GE(served, 2u);
  EXPECT_TRUE(wait_until([] { return come("10.1.0.1", 2526).has_value(); }));  // one more every half second
  EXPECT_FALSE(come("10.1.0.1"));
  EXPECT_TRUE(wait_until([&] { return daemon_->closed("new_flows_per_client") >= 4; }));
}

// Every refusal is counted, few are logged, and the log says how many are not.
TEST_P(Limits, AFloodOfRefusalsDoesNotFloodTheLog) {
  start_limits("deny = \"10.0.0.0/8\"");
  constexpr unsigned kFlood = 300;
  for (unsigned i = 0; i < kFlood; i++) EXPECT_FALSE(come("10.1.0.1"));
  EXPECT_TRUE(closed_for("denied", kFlood));
  const auto told = [&] {
    const std::string log = daemon_->log(), words = " more refused connections";
    unsigned sum = lines_with(log, "reason=denied");
    for (size_t at = 0; (at = log.find(words, at)) != log.npos; at++)
      sum += static_cast<unsigned>(std::stoul(log.substr(log.rfind(' ', at - 1) + 1)));
    return sum;
  };
  EXPECT_TRUE(wait_until([&] { return told() == kFlood; })) << told();
  EXPECT_LT(lines_with(daemon_->log(), "reason=denied"), kFlood / 2);
}

}  // namespace
}  // namespace penstock::test
