// SPDX-License-Identifier: Apache-2.0
// DNS is down, slow or back; the address has moved within its TTL. Against dnsmasq, and against a server that
// refuses as dnsmasq cannot.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <map>

#include "ask.h"
#include "dnsmasq.h"

namespace penstock::dns {
namespace {

using namespace std::chrono_literals;
using namespace testing;
using Clock = std::chrono::steady_clock;

const std::vector<std::string> kShortLived = {"--host-record=mail.test,192.0.2.1,1", "--local=/test/"};
const std::vector<std::string> kLongLived = {"--host-record=mail.test,192.0.2.1,600"};
const std::vector<std::string> kMoved = {"--host-record=mail.test,192.0.2.2,600"};

TEST(Outage, the_last_answer_serves_until_dns_is_back) {
  uint16_t port = free_port();
  std::optional<Dnsmasq> server;
  server.emplace(port, kShortLived);
  auto resolver = started({at(port)});
  EXPECT_EQ(ask(*resolver, "mail.test", Family::v4), "192.0.2.1");
  EXPECT_EQ(ask(*resolver, "nobody.test", Family::v4), "error: no such name");
  EXPECT_EQ(resolver->counters().answered, 1u);
  EXPECT_EQ(resolver->counters().no_such_name, 1u);
  EXPECT_EQ(resolver->counters().failed + resolver->counters().stale, 0u);
  server.reset();
  EXPECT_EQ(ask_until(*resolver, "mail.test", "stale 192.0.2.1"), "stale 192.0.2.1");
  EXPECT_GE(resolver->counters().failed, 1u);
  EXPECT_GE(resolver->counters().stale, 1u);
  Answer answer = answer_to(of(*resolver, "mail.test"));
  EXPECT_EQ(answer.error, "no DNS server could be reached, or none would answer");
  EXPECT_GE(Clock::now() - answer.obtained, 1s);
  server.emplace(port, kMoved);
  EXPECT_EQ(ask_until(*resolver, "mail.test", "192.0.2.2"), "192.0.2.2");
  EXPECT_EQ(answer_to(of(*resolver, "mail.test")).error, "");
}

TEST(Outage, a_silent_server_costs_one_caller_half_a_second_and_the_others_nothing) {
  uint16_t port = free_port();
  Dnsmasq server(port, kShortLived);
  auto resolver = started({at(port)});
  Answer fresh = answer_to(of(*resolver, "mail.test"));
  server.pause();
  std::string said = "192.0.2.1";
  Clock::time_point before;
  while (said == "192.0.2.1") {
    a_moment();
    before = Clock::now();
    said = ask(*resolver, "mail.test", Family::v4);
  }
  EXPECT_EQ(said, "stale 192.0.2.1");
  EXPECT_GE(before + 1ms, fresh.expires);
  EXPECT_GE(Clock::now() - before, kStaleWait);
  EXPECT_LE(Clock::now() - before, 2s);
  EXPECT_EQ(cached(*resolver, "mail.test", Family::v4), "stale 192.0.2.1");  // the question goes on behind
  server.resume();
  EXPECT_EQ(ask_until(*resolver, "mail.test", "192.0.2.1"), "192.0.2.1");
}

TEST(Outage, who_joins_a_question_does_not_wait_longer) {
  uint16_t port = free_port();
  Dnsmasq server(port, kShortLived);
  auto resolver = started({at(port)});
  Answer fresh = answer_to(of(*resolver, "mail.test"));
  server.pause();
  while (Clock::now() < fresh.expires) a_moment();
  Answers renewed;
  resolver->renew("mail.test", Family::v4, renewed.one());
  a_moment();
  auto before = Clock::now();
  EXPECT_EQ(ask(*resolver, "mail.test", Family::v4), "stale 192.0.2.1");
  EXPECT_LE(Clock::now() - before, 1300ms);  // before c-ares' first try is over, at 1.5 s
  server.resume();
  EXPECT_EQ(renewed.wait_for(1).size(), 1u);
}

TEST(Outage, after_a_timeout_nobody_waits) {
  uint16_t port = free_port();
  Dnsmasq server(port, kShortLived);
  auto resolver = started({at(port)});
  EXPECT_EQ(ask(*resolver, "mail.test", Family::v4), "192.0.2.1");
  server.pause();
  EXPECT_EQ(ask_until(*resolver, "mail.test", "stale 192.0.2.1"), "stale 192.0.2.1");
  Answer at_the_end =
      answer_to([&](Resolver::Done done) { resolver->renew("mail.test", Family::v4, std::move(done)); });
  EXPECT_EQ(text(at_the_end), "stale 192.0.2.1");
  EXPECT_EQ(at_the_end.error, "timeout");
  EXPECT_EQ(cached(*resolver, "mail.test", Family::v4), "stale 192.0.2.1");  // and a new question behind
  EXPECT_EQ(cached(*resolver, "mail.test", Family::v4), "stale 192.0.2.1");
}

TEST(Outage, the_name_is_asked_once_a_second) {
  uint16_t port = free_port();
  std::mutex mutex;
  std::map<uint16_t, Clock::time_point> refused;  // by the question's id: c-ares tries each twice
  std::atomic<int> answered = 0;
  FaultyServer server(port, [&](FaultyServer::Packet* packet) {
    if (answered++ == 0) return FaultyServer::answer(packet, 1);
    std::lock_guard lock(mutex);
    refused.try_emplace(static_cast<uint16_t>((*packet)[0] << 8 | (*packet)[1]), Clock::now());
    return FaultyServer::fail(packet, kServfail);
  });
  auto resolver = started({at(port)});
  EXPECT_EQ(ask(*resolver, "mail.test.", Family::v4), "192.0.2.1");
  std::vector<Clock::time_point> times;
  while (times.size() < 4) {
    EXPECT_NE(ask(*resolver, "mail.test.", Family::v4).find("192.0.2.1"), std::string::npos);
    a_moment();
    std::lock_guard lock(mutex);
    times.clear();
    for (auto& [id, time] : refused) times.push_back(time);
  }
  std::sort(times.begin(), times.end());
  EXPECT_GE(times[3] - times[0], 2900ms);
  EXPECT_LE(times[3] - times[0], 6s);
}

TEST(Outage, refused_and_servfail_are_no_answers_nxdomain_and_nodata_are) {
  uint16_t port = free_port();
  std::atomic<int> rcode = -1;  // -1: an address
  FaultyServer server(port, [&](FaultyServer::Packet* packet) {
    if (rcode >= 0) return FaultyServer::fail(packet, static_cast<uint8_t>(rcode));
    return FaultyServer::answer(packet, 1);
  });
  auto resolver = started({at(port)});
  for (uint8_t down : {kServfail, kRefused}) {
    rcode = -1;
    EXPECT_EQ(ask_until(*resolver, "mail.test.", "192.0.2.1"), "192.0.2.1");
    rcode = down;
    EXPECT_EQ(ask_until(*resolver, "mail.test.", "stale 192.0.2.1"), "stale 192.0.2.1");
  }
  rcode = kNxdomain;
  EXPECT_EQ(ask_until(*resolver, "mail.test.", "error: no such name"), "error: no such name");
  rcode = kServfail;  // what is gone does not come back
  EXPECT_EQ(ask_until(*resolver, "mail.test.", "error: no DNS server could be reached, or none would answer"),
            "error: no DNS server could be reached, or none would answer");
  rcode = -1;
  EXPECT_EQ(ask_until(*resolver, "mail.test.", "192.0.2.1"), "192.0.2.1");
  rcode = 0;
  EXPECT_EQ(ask_until(*resolver, "mail.test.", "error: the name has no IPv4 address"),
            "error: the name has no IPv4 address");
}

TEST(Outage, one_family_that_is_not_there_is_no_answer_for_the_other) {
  uint16_t port = free_port();
  std::atomic<bool> down = false;
  FaultyServer server(port, [&](FaultyServer::Packet* packet) {
    if (packet->at(packet->size() - 3) != 1) return FaultyServer::fail(packet, 0);  // QTYPE is not A
    return down ? FaultyServer::fail(packet, kServfail) : FaultyServer::answer(packet, 1);
  });
  auto resolver = started({at(port)});
  EXPECT_EQ(ask(*resolver, "mail.test."), "192.0.2.1");
  down = true;
  std::string said = "192.0.2.1";
  while (said == "192.0.2.1") {
    a_moment();
    said = ask(*resolver, "mail.test.");
  }
  EXPECT_EQ(said, "stale 192.0.2.1");
}

TEST(Outage, the_last_answer_does_not_serve_longer_than_stale) {
  uint16_t port = free_port();
  std::optional<Dnsmasq> server;
  server.emplace(port, kShortLived);
  Options options;
  options.servers = {at(port)};
  options.stale = 2s;
  auto resolver = started(options);
  Answer fresh = answer_to(of(*resolver, "mail.test"));
  server.reset();
  EXPECT_EQ(ask_until(*resolver, "mail.test", "stale 192.0.2.1"), "stale 192.0.2.1");
  const char* down = "error: no DNS server could be reached, or none would answer";
  EXPECT_EQ(ask_until(*resolver, "mail.test", down), down);
  EXPECT_GE(Clock::now(), fresh.expires + options.stale);
}

TEST(Renew, finds_the_new_address_whatever_the_ttl) {
  uint16_t port = free_port();
  std::optional<Dnsmasq> server;
  server.emplace(port, kLongLived);
  Options options;
  options.servers = {at(port)};
  auto resolver = started(options);
  auto asked = Clock::now();
  EXPECT_EQ(ask(*resolver, "mail.test", Family::v4), "192.0.2.1");
  server.reset();
  server.emplace(port, kMoved);
  std::string said = "192.0.2.1";
  while (said == "192.0.2.1") {
    a_moment();
    said = renew(*resolver, "mail.test");  // what was asked less than a second ago is not asked again
  }
  EXPECT_EQ(said, "192.0.2.2");
  EXPECT_GE(Clock::now() - asked, 1s);
  EXPECT_EQ(cached(*resolver, "mail.test", Family::v4), "192.0.2.2");  // the next flow uses it
  EXPECT_EQ(server->queries("mail.test"), 1u);
}

TEST(Renew, asks_once_for_all_who_want_it) {
  uint16_t port = free_port();
  Dnsmasq server(port, kMoved);
  auto resolver = started({at(port)});
  Answers answers;
  server.pause();
  for (int i = 0; i < 100; ++i) resolver->renew("mail.test", Family::v4, answers.one());
  EXPECT_EQ(answers.count(), 0u);
  server.resume();
  auto all = answers.wait_for(100);
  ASSERT_EQ(all.size(), 100u);
  for (const auto& a : all) EXPECT_EQ(text(a), "192.0.2.2");
  EXPECT_EQ(server.queries("mail.test"), 1u);
}

TEST(Renew, the_old_answer_stays_when_dns_is_down) {
  uint16_t port = free_port();
  std::optional<Dnsmasq> server;
  server.emplace(port, kLongLived);
  auto resolver = started({at(port)});
  EXPECT_EQ(ask(*resolver, "mail.test", Family::v4), "192.0.2.1");
  server.reset();
  Answer renewed;
  while (renewed.error.empty()) {
    a_moment();
    renewed = answer_to([&](Resolver::Done done) { resolver->renew("mail.test", Family::v4, done); });
    ASSERT_EQ(text(renewed), "192.0.2.1");
  }
  EXPECT_EQ(renewed.error, "no DNS server could be reached, or none would answer");
  EXPECT_EQ(cached(*resolver, "mail.test", Family::v4), "192.0.2.1");
}

}  // namespace
}  // namespace penstock::dns
