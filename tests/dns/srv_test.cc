// SPDX-License-Identifier: Apache-2.0
// Services by name: the message's bytes, and dnsmasq's.
#include <gtest/gtest.h>

#include "ask.h"
#include "dns/srv_reply.h"
#include "dnsmasq.h"

namespace penstock::dns {
namespace {

using namespace std::chrono_literals;
using namespace testing;

constexpr std::string_view kImap = "_imap._tcp.example.test";

std::string srv(const std::string& target_port_priority_weight) {
  return "--srv-host=" + std::string(kImap) + "," + target_port_priority_weight;
}

TEST(Srv, gives_targets_by_priority) {
  uint16_t port = free_port();
  Dnsmasq server(
      port, {srv("c.test,993,20,0"), srv("B.test,143,10,5"), srv("a.test,1143,10,60"), "--local-ttl=300"});
  auto resolver = started({at(port)});
  Answer answer =
      answer_to([&](Resolver::Done done) { resolver->resolve_srv("_IMAP._tcp.Example.test", done); });
  EXPECT_EQ(text(answer), "10 a.test:1143 10 b.test:143 20 c.test:993");
  ASSERT_EQ(answer.targets.size(), 3u);
  EXPECT_EQ(answer.targets[0].weight, 60);
  EXPECT_EQ(answer.expires - answer.obtained, 300s);
  EXPECT_EQ(ask_srv(*resolver, kImap), text(answer));
  EXPECT_EQ(server.queries(std::string(kImap)), 1u);
}

TEST(Srv, says_when_there_is_none) {
  uint16_t port = free_port();
  Dnsmasq server(port, {"--local=/test/", "--host-record=_pop3._tcp.example.test,192.0.2.1",
                        "--srv-host=_xmpp._tcp.example.test"});
  auto resolver = started({at(port)});
  EXPECT_EQ(ask_srv(*resolver, kImap), "error: no such name");
  EXPECT_EQ(ask_srv(*resolver, "_pop3._tcp.example.test"), "error: the name has no SRV record");
  EXPECT_EQ(ask_srv(*resolver, "_xmpp._tcp.example.test"),
            "error: no service: the target of the SRV record is \".\"");
  EXPECT_EQ(ask_srv(*resolver, "_im ap._tcp.test"), "error: not a host name");
}

TEST(Srv, gives_no_more_than_the_first_targets_of_very_many) {
  uint16_t port = free_port();
  std::vector<std::string> records;
  for (int i = 99; i >= 0; --i) records.push_back(srv("t.test,143," + std::to_string(i)));
  Dnsmasq server(port, records);
  auto resolver = started({at(port)});
  auto targets =
      answer_to([&](Resolver::Done done) { resolver->resolve_srv(kImap, done); }).targets;  // by TCP
  ASSERT_EQ(targets.size(), kTargetsMax);
  EXPECT_EQ(targets.front().priority, 0);
  EXPECT_EQ(targets.back().priority, 63);
}

TEST(Srv, is_renewed_and_serves_while_dns_is_down_like_an_address) {
  uint16_t port = free_port();
  std::optional<Dnsmasq> server;
  server.emplace(port, std::vector<std::string>{srv("old.test,143"), "--local-ttl=1"});
  auto resolver = started({at(port)});
  EXPECT_EQ(ask_srv(*resolver, kImap), "0 old.test:143");
  server.reset();
  std::string said = "0 old.test:143";
  while (said == "0 old.test:143") {
    a_moment();
    said = ask_srv(*resolver, kImap);
  }
  EXPECT_EQ(said, "stale 0 old.test:143");
  server.emplace(port, std::vector<std::string>{srv("new.test,143"), "--local-ttl=1"});
  while (said == "stale 0 old.test:143") {
    a_moment();
    said = text(answer_to([&](Resolver::Done done) { resolver->renew_srv(kImap, done); }));
  }
  EXPECT_EQ(said, "0 new.test:143");
}

// ---- the message, byte by byte

using Bytes = std::vector<uint8_t>;

Bytes operator+(Bytes a, const Bytes& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}
Bytes label(std::string_view text) {
  return Bytes{static_cast<uint8_t>(text.size())} + Bytes(text.begin(), text.end());
}

const Bytes kRoot = {0}, kOwner = {0xc0, 12};  // a pointer to the question's name
Bytes message(uint8_t answers, const Bytes& records) {
  const Bytes header = {0, 1, 0x81, 0x80, 0, 1, 0, answers, 0, 0, 0, 0};
  return header + label("s") + label("test") + kRoot + Bytes{0, 33, 0, 1} + records;
}
Bytes record(uint8_t type, const Bytes& ttl, const Bytes& data) {
  return kOwner + Bytes{0, type, 0, 1} + ttl +
         Bytes{static_cast<uint8_t>(data.size() >> 8), static_cast<uint8_t>(data.size())} + data;
}
const Bytes kMinute = {0, 0, 0, 60}, kHour = {0, 0, 0x0e, 0x10};
Bytes srv_record(const Bytes& ttl, uint8_t priority, const Bytes& target, uint8_t port = 143) {
  return record(33, ttl, Bytes{0, priority, 0, 5, 0, port} + target);
}

std::string parsed(const Bytes& bytes) {
  auto reply = parse_srv_reply(bytes);
  if (!reply) return "malformed";
  Answer answer;
  answer.targets = reply->targets;
  return (reply->targets.empty() ? reply->no_service ? "no service" : "nothing" : text(answer)) + " ttl " +
         std::to_string(reply->ttl.count());
}

TEST(SrvReply, takes_the_shortest_ttl_with_that_of_a_cname) {
  EXPECT_EQ(parsed(message(1, srv_record(kHour, 1, label("A") + kOwner))), "1 a.s.test:143 ttl 3600");
  EXPECT_EQ(parsed(message(2, record(5, kMinute, kOwner) + srv_record(kHour, 1, label("a") + kRoot))),
            "1 a:143 ttl 60");
  EXPECT_EQ(parsed(message(1, srv_record({0x80, 0, 0, 1}, 1, label("a") + kRoot))), "1 a:143 ttl 0");
}

TEST(SrvReply, orders_the_targets_whatever_order_they_came_in) {
  const Bytes a = srv_record(kHour, 2, label("a") + kRoot), b = srv_record(kHour, 1, label("b") + kRoot);
  EXPECT_EQ(parsed(message(3, a + b + a)), "1 b:143 2 a:143 ttl 3600");
  EXPECT_EQ(parsed(message(2, b + a)), parsed(message(2, a + b)));
}

TEST(SrvReply, leaves_out_what_cannot_be_dialled) {
  EXPECT_EQ(parsed(message(1, srv_record(kHour, 0, kRoot))), "no service ttl 3600");
  EXPECT_EQ(parsed(message(1, srv_record(kHour, 0, label("a b") + kRoot))), "nothing ttl 3600");
  EXPECT_EQ(parsed(message(1, srv_record(kHour, 0, label("a\n") + kRoot))), "nothing ttl 3600");
  EXPECT_EQ(parsed(message(1, srv_record(kHour, 0, label("a") + kRoot, 0))), "nothing ttl 3600");
  EXPECT_EQ(parsed(message(2, srv_record(kHour, 0, kRoot) + srv_record(kHour, 1, label("a") + kRoot))),
            "1 a:143 ttl 3600");
}

TEST(SrvReply, refuses_every_beginning_of_a_message) {
  const Bytes whole = message(2, record(5, kMinute, kOwner) + srv_record(kHour, 1, label("a") + kOwner));
  ASSERT_EQ(parsed(whole), "1 a.s.test:143 ttl 60");
  for (size_t n = 0; n < whole.size(); ++n) {
    EXPECT_EQ(parsed(Bytes(whole.begin(), whole.begin() + static_cast<long>(n))), "malformed") << n;
  }
}

TEST(SrvReply, refuses_lengths_and_pointers_that_lead_astray) {
  const Bytes data = Bytes{0, 1, 0, 5, 0, 143} + label("a") + kRoot;
  EXPECT_EQ(parsed(message(1, record(33, kHour, data))), "1 a:143 ttl 3600");
  EXPECT_EQ(parsed(message(1, record(33, kHour, data + Bytes{0}))), "malformed");
  EXPECT_EQ(parsed(message(1, record(33, kHour, {0, 1, 0, 5, 0}))), "malformed");
  EXPECT_EQ(parsed(message(1, srv_record(kHour, 1, {0xc0, 0x3e}))), "malformed");  // to itself, or beyond
  EXPECT_EQ(parsed(message(1, srv_record(kHour, 1, {0xff, 0xff}))), "malformed");
  EXPECT_EQ(parsed(message(1, srv_record(kHour, 1, {63, 'a', 0}))), "malformed");
  EXPECT_EQ(parsed(message(255, record(33, kHour, data))), "malformed");
}

// Pointers let a message of 64 KiB say 4000 names of 16 KiB each: none is read beyond what a name can have.
TEST(SrvReply, refuses_names_longer_than_names_are) {
  const std::string sixty_two(62, 'a');
  const Bytes half = label(sixty_two) + label(sixty_two);
  EXPECT_EQ(parsed(message(1, srv_record(kHour, 1, half + half + label("b") + kRoot))),
            "1 " + sixty_two + "." + sixty_two + "." + sixty_two + "." + sixty_two + ".b:143 ttl 3600");
  EXPECT_EQ(parsed(message(1, srv_record(kHour, 1, half + half + label("bcd") + kRoot))), "malformed");
  EXPECT_EQ(parsed(message(1, srv_record(kHour, 1, half + half + kOwner))), "malformed");
}

TEST(SrvReply, takes_no_byte_within_a_label_for_a_dot_or_for_the_root) {
  EXPECT_EQ(parsed(message(1, srv_record(kHour, 1, label("a.b") + kRoot))), "nothing ttl 3600");
  EXPECT_EQ(parsed(message(1, srv_record(kHour, 1, Bytes{1, 0} + kRoot))), "nothing ttl 3600");
}

}  // namespace
}  // namespace penstock::dns
