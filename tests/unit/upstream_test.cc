// SPDX-License-Identifier: Apache-2.0
// Which server a flow gets from what is known of them, and what outlives a change of their set. How the
// choice is spread is balance_test.cc's; what DNS says of a set, srv_set_test.cc's.
#include "flow/upstream.h"

#include <gtest/gtest.h>

#include <map>

namespace penstock::flow {
namespace {

constexpr uint64_t kNow = 1'000'000'000'000, kSecond = 1'000'000'000;

config::Server server(const std::string& text, uint32_t weight = 1, bool backup = false) {
  config::Server s;
  s.host = s.text = text;
  s.weight = weight;
  s.backup = backup;
  return s;
}
config::Server backup(const std::string& text) {
  return server(text, 1, true);
}
config::Upstream upstream(const std::vector<config::Server>& servers,
                          config::Balance balance = config::Balance::round_robin,
                          config::OnDown on_down = config::OnDown::attempt) {
  config::Upstream u;
  u.name = "u";
  u.servers = servers;
  u.balance = balance;
  u.on_down = on_down;
  return u;
}
config::Upstream by_srv(const std::string& name = "_imap._tcp.test") {
  config::Upstream u;
  u.name = "u";
  u.srv = name;
  return u;
}
IpAddress address(const std::string& text) {
  return *IpAddress::parse(text);
}

// The text of the server that is chosen, "-": none. The flow ends at once, unless `stays`.
std::string choose(Upstream& u, const std::vector<const Server*>& tried = {}, uint64_t now_ns = kNow,
                   const std::string& client = "192.0.2.1", bool stays = false) {
  Server* s = u.choose(address(client), tried, now_ns);
  if (!s) return "-";
  if (!stays) Upstream::give_back(s);
  return s->what().text;
}
std::map<std::string, int> choose_many(Upstream& u, int times) {
  std::map<std::string, int> chosen;
  for (int i = 0; i < times; i++) chosen[choose(u)]++;
  return chosen;
}
using Shares = std::map<std::string, int>;

Server& find(const Upstream& u, const std::string& text) {
  Server* found = nullptr;
  u.for_each_server([&](Server& s) {
    if (s.what().text == text) found = &s;
  });
  if (!found) throw std::runtime_error("no server " + text);
  return *found;
}
std::string texts(const Upstream& u) {
  std::string all;
  u.for_each_server([&](Server& s) { all += s.what().text + " "; });
  return all;
}
void fail(Server& s, uint32_t times) {
  for (uint32_t i = 0; i < times; i++) s.dial_failed(kNow);
}

TEST(Upstream, ByWeight) {
  Upstream u(upstream({server("a", 3), server("b")}), nullptr);
  EXPECT_EQ(choose_many(u, 40), (Shares{{"a", 30}, {"b", 10}}));
}

TEST(Upstream, LeastFlowsCountsThoseThatAreOpen) {
  Upstream u(upstream({server("a"), server("b")}, config::Balance::least_flows), nullptr);
  find(u, "a").flows = 5;
  for (int i = 0; i < 5; i++) EXPECT_EQ(choose(u, {}, kNow, "192.0.2.1", true), "b");
  EXPECT_EQ(find(u, "b").flows, 5u);
  Upstream::give_back(&find(u, "a"));
  EXPECT_EQ(choose(u), "a");
}

TEST(Upstream, SourceHashIsOfTheClient) {
  Upstream u(upstream({server("a"), server("b"), server("c")}, config::Balance::source_hash), nullptr);
  Shares shares;
  for (int i = 1; i < 100; i++) {
    const std::string client = "192.0.2." + std::to_string(i);
    const std::string first = choose(u, {}, kNow, client);
    EXPECT_EQ(choose(u, {}, kNow, client), first);
    shares[first]++;
  }
  EXPECT_EQ(shares.size(), 3u);
}

TEST(Upstream, BackupsServeOnceAllOthersAreDownOrTried) {
  Upstream u(upstream({server("a"), backup("spare"), server("b")}), nullptr);
  EXPECT_EQ(choose_many(u, 10), (Shares{{"a", 5}, {"b", 5}}));
  find(u, "a").health = Health::down;
  EXPECT_EQ(choose_many(u, 10), (Shares{{"b", 10}}));
  EXPECT_EQ(choose(u, {&find(u, "b")}), "spare");
  find(u, "b").health = Health::down;
  EXPECT_EQ(choose_many(u, 10), (Shares{{"spare", 10}}));
  find(u, "b").health = Health::up;
  EXPECT_EQ(choose(u), "b");
}

TEST(Upstream, EachIsTriedOnce) {
  Upstream u(upstream({server("a"), server("b")}), nullptr);
  const std::vector<const Server*> both = {&find(u, "a"), &find(u, "b")};
  EXPECT_EQ(choose(u, {both[0]}), "b");
  EXPECT_EQ(choose(u, both), "-");
  EXPECT_EQ(find(u, "a").flows, 0u);
}

TEST(Upstream, ADrainedOneGetsNothingWhateverElseIsDown) {
  Upstream u(upstream({server("a"), server("b")}), nullptr);
  find(u, "a").drained = true;
  EXPECT_EQ(choose_many(u, 10), (Shares{{"b", 10}}));
  find(u, "b").health = Health::down;
  EXPECT_EQ(choose_many(u, 10), (Shares{{"b", 10}}));
  find(u, "b").drained = true;
  EXPECT_EQ(choose(u), "-");
  find(u, "a").drained = false;
  EXPECT_EQ(choose(u), "a");
}

TEST(Upstream, WithAllDownOnDownDecides) {
  for (const auto& [on_down, chosen] : {std::pair{config::OnDown::attempt, "a"},
                                        {config::OnDown::refuse, "-"},
                                        {config::OnDown::close, "-"}}) {
    Upstream u(upstream({server("a"), backup("spare")}, config::Balance::round_robin, on_down), nullptr);
    find(u, "a").health = find(u, "spare").health = Health::down;
    EXPECT_EQ(choose(u), chosen);
    find(u, "spare").health = Health::unknown;  // not checked yet: may be there
    EXPECT_EQ(choose(u), "spare");
  }
}

TEST(Upstream, ThreeFailedDialsShunForTenSeconds) {
  Upstream u(upstream({server("a"), server("b")}), nullptr);
  Server& a = find(u, "a");
  fail(a, kFailuresMax - 1);
  EXPECT_EQ(choose_many(u, 10), (Shares{{"a", 5}, {"b", 5}}));
  fail(a, 1);
  EXPECT_EQ(choose_many(u, 10), (Shares{{"b", 10}}));
  EXPECT_EQ(choose(u, {&find(u, "b")}), "a");  // rather than nobody
  EXPECT_TRUE(a.shunned(kNow + 10 * kSecond - 1));
  EXPECT_FALSE(a.shunned(kNow + 10 * kSecond));
  a.dial_failed(kNow + 10 * kSecond);  // tried once more, in vain
  EXPECT_TRUE(a.shunned(kNow + 20 * kSecond - 1));
  a.dial_succeeded();
  EXPECT_FALSE(a.shunned(kNow));
  EXPECT_EQ(choose_many(u, 10), (Shares{{"a", 5}, {"b", 5}}));
}

TEST(Upstream, ShunnedByDialsIsNotDown) {
  Upstream u(upstream({server("a")}, config::Balance::round_robin, config::OnDown::refuse), nullptr);
  fail(find(u, "a"), kFailuresMax);
  EXPECT_EQ(choose(u), "a");
}

TEST(Server, TheFirstFailureAndTheFirstSuccessAfterAreTold) {
  Server s("u", server("a"));
  EXPECT_FALSE(s.dial_succeeded());
  EXPECT_TRUE(s.dial_failed(kNow));
  EXPECT_FALSE(s.dial_failed(kNow));
  EXPECT_EQ(s.failures(), 2u);
  EXPECT_TRUE(s.dial_succeeded());
  EXPECT_FALSE(s.dial_succeeded());
  EXPECT_TRUE(s.dial_failed(kNow));
}

TEST(Upstream, ThatIsDrainedDrainsWhoComesLater) {
  Upstream before(upstream({server("a")}), nullptr);
  before.set_drained(true);
  find(before, "a").drained = true;
  Upstream after(upstream({server("b")}), &before);
  EXPECT_TRUE(find(after, "b").drained);
  Upstream again(upstream({server("a")}), &after);
  EXPECT_TRUE(find(again, "a").drained);
  again.set_drained(false);
  EXPECT_FALSE(find(Upstream(upstream({server("c")}), &again), "c").drained);
}

TEST(Server, EightLinesASecondAboutAddressesThatFail) {
  Server server("u", {});
  for (const uint64_t second : {1, 2}) {
    uint32_t lines = 0;
    for (uint64_t i = 0; i < 100; i++) lines += server.worth_a_line(second * 1'000'000'000 + i * 9'000'000);
    EXPECT_EQ(lines, 8u);
  }
}

TEST(Server, TheAddressThatServedGoesFirstForAMinute) {
  Server s("u", server("a"));
  const std::vector<IpAddress> as_said = {address("2001:db8::1"), address("192.0.2.1"),
                                          address("2001:db8::2")};
  const auto ordered = [&](uint64_t now_ns) {
    std::vector<IpAddress> addresses = as_said;
    s.order(&addresses, now_ns);
    std::string all;
    for (const IpAddress& a : addresses) all += a.text() + " ";
    return all;
  };
  EXPECT_EQ(ordered(kNow), "2001:db8::1 192.0.2.1 2001:db8::2 ");
  s.prefer(address("192.0.2.1"), kNow);
  EXPECT_EQ(ordered(kNow + 60 * kSecond - 1), "192.0.2.1 2001:db8::1 2001:db8::2 ");
  EXPECT_EQ(ordered(kNow + 60 * kSecond), "2001:db8::1 192.0.2.1 2001:db8::2 ");
  s.prefer(address("2001:db8::2"), kNow);
  EXPECT_EQ(ordered(kNow), "2001:db8::2 2001:db8::1 192.0.2.1 ");
  s.prefer(address("192.0.2.9"), kNow);  // no longer among them
  EXPECT_EQ(ordered(kNow), "2001:db8::1 192.0.2.1 2001:db8::2 ");
}

// ---- over a reload

TEST(Upstream, WhatIsKnownOfAServerOutlivesAReload) {
  Upstream before(upstream({server("a"), server("b")}), nullptr);
  Server& a = find(before, "a");
  a.drained = true;
  a.flows = 7;
  const Upstream after(upstream({server("c"), server("a", 9, true)}), &before);
  EXPECT_EQ(texts(after), "c a ");
  EXPECT_EQ(&find(after, "a"), &a);
  EXPECT_FALSE(find(after, "c").drained);
}

TEST(Upstream, AServerThatComesBackToItsFlowsIsNotDrainedByWhatWasSaidBefore) {
  Upstream before(upstream({server("a"), server("b")}), nullptr);
  Server& a = find(before, "a");
  a.drained = true;
  a.flows = 7;
  Upstream without(upstream({server("b")}), &before);
  Upstream with(upstream({server("a"), server("b")}), &without);
  EXPECT_EQ(&find(with, "a"), &a);
  EXPECT_FALSE(a.drained);
  without.set_drained(true);
  EXPECT_TRUE(find(Upstream(upstream({server("a")}), &without), "a").drained);
}

TEST(Upstream, WeightsAreThoseOfTheNewConfiguration) {
  Upstream before(upstream({server("a"), server("b")}), nullptr);
  Upstream after(upstream({server("a", 3), server("b")}), &before);
  EXPECT_EQ(choose_many(after, 40), (Shares{{"a", 30}, {"b", 10}}));
  Upstream last(upstream({server("a", 1, true), server("b")}), &after);
  EXPECT_EQ(choose_many(last, 10), (Shares{{"b", 10}}));
}

// ---- by SRV

TEST(UpstreamBySrv, NobodyUntilDnsHasSaid) {
  Upstream u(by_srv(), nullptr);
  EXPECT_EQ(u.size(), 0u);
  EXPECT_EQ(choose(u), "-");
  EXPECT_TRUE(u.set_targets({{10, "a.test", 993, 3}, {10, "b.test", 993, 1}, {20, "spare.test", 1993, 9}}));
  EXPECT_EQ(texts(u), "a.test:993 b.test:993 spare.test:1993 ");
  EXPECT_EQ(choose_many(u, 40), (Shares{{"a.test:993", 30}, {"b.test:993", 10}}));
  find(u, "a.test:993").health = find(u, "b.test:993").health = Health::down;
  EXPECT_EQ(choose(u), "spare.test:1993");
  EXPECT_EQ(find(u, "spare.test:1993").what().port, 1993);
}

TEST(UpstreamBySrv, WeightZeroIsOneAndAnotherPortIsAnotherServer) {
  Upstream u(by_srv(), nullptr);
  u.set_targets({{10, "a.test", 993, 0}, {10, "a.test", 994, 0}, {10, "a.test", 993, 7}});
  EXPECT_EQ(choose_many(u, 10), (Shares{{"a.test:993", 5}, {"a.test:994", 5}}));
}

TEST(UpstreamBySrv, ANewSetKeepsWhatIsKnownOfThoseThatStay) {
  Upstream u(by_srv(), nullptr);
  u.set_targets({{10, "a.test", 993, 1}, {10, "b.test", 993, 1}});
  Server& b = find(u, "b.test:993");
  b.drained = true;
  EXPECT_FALSE(u.set_targets({{10, "a.test", 993, 1}, {10, "b.test", 993, 1}}));
  EXPECT_TRUE(u.set_targets({{10, "b.test", 993, 1}, {10, "c.test", 993, 1}}));
  EXPECT_EQ(&find(u, "b.test:993"), &b);
  EXPECT_EQ(choose_many(u, 10), (Shares{{"c.test:993", 10}}));
}

// A flow has nothing but a pointer.
TEST(UpstreamBySrv, AServerThatIsGoneStaysWhileItHasFlows) {
  Upstream u(by_srv(), nullptr);
  u.set_targets({{10, "a.test", 993, 1}});
  Server* held = u.choose(address("192.0.2.1"), {}, kNow);
  ASSERT_TRUE(held);
  for (const uint16_t port : {1001, 1002, 1003}) u.set_targets({{10, "b.test", port, 1}});
  EXPECT_EQ(texts(u), "b.test:1003 ");
  EXPECT_EQ(held->what().text, "a.test:993");
  u.set_targets({{10, "a.test", 993, 1}});
  EXPECT_EQ(&find(u, "a.test:993"), held);  // and is the same when it returns
  Upstream::give_back(held);
}

TEST(UpstreamBySrv, AReloadKeepsTheSetOfTheSameName) {
  Upstream before(by_srv(), nullptr);
  before.set_targets({{10, "a.test", 993, 1}});
  Upstream after(by_srv(), &before);
  EXPECT_EQ(texts(after), "a.test:993 ");
  EXPECT_EQ(&find(after, "a.test:993"), &find(before, "a.test:993"));
  EXPECT_FALSE(after.set_targets({{10, "a.test", 993, 1}}));
  const Upstream other(by_srv("_imaps._tcp.test"), &after);
  EXPECT_EQ(other.size(), 0u);
}

}  // namespace
}  // namespace penstock::flow
