// SPDX-License-Identifier: Apache-2.0
#include "flow/clients.h"

#include <gtest/gtest.h>

#include <fmt/format.h>

#include <thread>
#include <vector>

namespace penstock::flow {
namespace {

using namespace std::chrono_literals;

constexpr uint64_t kNow = 1'000'000'000'000, kSecond = 1'000'000'000;

IpAddress address(const std::string& text) {
  return *IpAddress::parse(text);
}
config::Limits flows_at_most(uint32_t n) {
  config::Limits l;
  l.max_flows = n;
  return l;
}
config::Limits per_client(uint32_t n) {
  config::Limits l;
  l.max_flows_per_client = n;
  return l;
}
config::Limits rate(uint32_t count, config::milliseconds per) {
  config::Limits l;
  l.new_flows_per_client = config::Rate{count, per};
  return l;
}

struct ClientsTest : testing::Test {
  // Why it may not come; "" when it may.
  std::string enter(const std::string& client, const config::Limits& all, const config::Limits& own = {},
                    uint64_t now_ns = kNow, uint32_t listener = 0) {
    Clients::Place place;
    const auto refusal = clients.enter(address(client), listener, all, own, now_ns, &place);
    if (refusal) return text(*refusal);
    last = place;
    return "";
  }
  void leave(const std::string& client, uint32_t listener = 0) {
    clients.leave(address(client), listener, &last);
  }
  Clients clients{1024, 4};
  Clients::Place last;  // of the flow that entered last
};

TEST_F(ClientsTest, WithoutLimitsEverybodyMayCome) {
  for (int i = 0; i < 5000; i++) EXPECT_EQ(enter("192.0.2.1", {}), "");
  EXPECT_EQ(clients.forgotten(), 0u);
}

TEST_F(ClientsTest, MaxFlows) {
  EXPECT_EQ(enter("192.0.2.1", flows_at_most(2)), "");
  EXPECT_EQ(enter("192.0.2.2", flows_at_most(2)), "");
  EXPECT_EQ(enter("192.0.2.3", flows_at_most(2)), "max_flows");
  leave("192.0.2.2");
  EXPECT_EQ(enter("192.0.2.3", flows_at_most(2)), "");
  EXPECT_EQ(enter("192.0.2.3", flows_at_most(2)), "max_flows");
}

// Flows that came while there was no limit count as well.
TEST_F(ClientsTest, MaxFlowsIsLowered) {
  for (int i = 0; i < 5; i++) EXPECT_EQ(enter("192.0.2.1", {}), "");
  EXPECT_EQ(enter("192.0.2.1", flows_at_most(5)), "max_flows");
  leave("192.0.2.1");
  EXPECT_EQ(enter("192.0.2.1", flows_at_most(5)), "");
}

TEST_F(ClientsTest, AListenersLimitCountsItsOwnFlows) {
  EXPECT_EQ(enter("192.0.2.1", flows_at_most(3), flows_at_most(1), kNow, 0), "");
  EXPECT_EQ(enter("192.0.2.1", flows_at_most(3), flows_at_most(1), kNow, 0), "max_flows");
  EXPECT_EQ(enter("192.0.2.1", flows_at_most(3), flows_at_most(1), kNow, 1), "");
  EXPECT_EQ(enter("192.0.2.1", flows_at_most(3), {}, kNow, 2), "");
  EXPECT_EQ(enter("192.0.2.1", flows_at_most(3), {}, kNow, 2), "max_flows");
}

TEST_F(ClientsTest, FlowsOfOneClient) {
  for (const char* client : {"192.0.2.1", "192.0.2.2"}) {
    EXPECT_EQ(enter(client, per_client(2)), "");
    EXPECT_EQ(enter(client, per_client(2)), "");
    EXPECT_EQ(enter(client, per_client(2)), "max_flows_per_client");
    leave(client);
    EXPECT_EQ(enter(client, per_client(2)), "");
    EXPECT_EQ(enter(client, per_client(2)), "max_flows_per_client");
  }
}

TEST_F(ClientsTest, AnIPv6ClientIsItsSlash64) {
  EXPECT_EQ(enter("2001:db8:0:1::1", per_client(1)), "");
  EXPECT_EQ(enter("2001:db8:0:1:ffff:ffff:ffff:ffff", per_client(1)), "max_flows_per_client");
  EXPECT_EQ(enter("2001:db8:0:2::1", per_client(1)), "");
  EXPECT_EQ(enter("::", per_client(1)), "");
  EXPECT_EQ(enter("::1", per_client(1)), "max_flows_per_client");
  EXPECT_EQ(enter("0.0.0.1", per_client(1)), "");  // ::ffff:0.0.0.1 is another
  EXPECT_EQ(enter("0.0.0.2", per_client(1)), "");
}

TEST_F(ClientsTest, BothLimitsOfAClientHold) {
  EXPECT_EQ(enter("192.0.2.1", per_client(3), per_client(1), kNow, 0), "");
  EXPECT_EQ(enter("192.0.2.1", per_client(3), per_client(1), kNow, 0), "max_flows_per_client");
  EXPECT_EQ(enter("192.0.2.1", per_client(3), per_client(1), kNow, 1), "");
  EXPECT_EQ(enter("192.0.2.1", per_client(3), {}, kNow, 2), "");
  EXPECT_EQ(enter("192.0.2.1", per_client(3), {}, kNow, 3), "max_flows_per_client");
}

TEST_F(ClientsTest, RateIsABurstAndThenOneAtATime) {
  const config::Limits l = rate(3, 30s);
  for (int i = 0; i < 3; i++) EXPECT_EQ(enter("192.0.2.1", l), "");
  EXPECT_EQ(enter("192.0.2.1", l), "new_flows_per_client");
  EXPECT_EQ(enter("192.0.2.2", l), "");
  EXPECT_EQ(enter("192.0.2.1", l, {}, kNow + 10 * kSecond - 1), "new_flows_per_client");
  EXPECT_EQ(enter("192.0.2.1", l, {}, kNow + 10 * kSecond), "");
  EXPECT_EQ(enter("192.0.2.1", l, {}, kNow + 10 * kSecond), "new_flows_per_client");
  for (int i = 0; i < 3; i++) EXPECT_EQ(enter("192.0.2.1", l, {}, kNow + 90 * kSecond), "");
  EXPECT_EQ(enter("192.0.2.1", l, {}, kNow + 90 * kSecond), "new_flows_per_client");
}

// The clocks of two threads differ a little.
TEST_F(ClientsTest, RateWhenTimeStepsBack) {
  const config::Limits l = rate(2, 2s);
  EXPECT_EQ(enter("192.0.2.1", l, {}, kNow + 1000), "");
  EXPECT_EQ(enter("192.0.2.1", l, {}, kNow), "new_flows_per_client");  // by a hair: one is due in a second
  EXPECT_EQ(enter("192.0.2.1", l, {}, kNow + 1000), "");
  EXPECT_EQ(enter("192.0.2.1", l, {}, kNow + 1000), "new_flows_per_client");
}

TEST_F(ClientsTest, ExtremeRates) {
  for (const auto& l : {rate(1'000'000, 1ms), rate(1, 24h), rate(7, 1ms)}) {
    const uint32_t n = l.new_flows_per_client->count;
    Clients fresh(64, 1);
    uint32_t entered = 0;
    for (uint32_t i = 0; i < n + 10; i++) {
      Clients::Place place;
      entered += !fresh.enter(address("192.0.2.1"), 0, l, {}, kNow, &place);
    }
    EXPECT_EQ(entered, n);
  }
}

// A refusal counts nowhere: neither its client's rate nor anybody's place.
TEST_F(ClientsTest, WhoIsRefusedUsesUpNothing) {
  config::Limits all = rate(3, 1h);
  all.max_flows = 3;
  EXPECT_EQ(enter("192.0.2.1", all, per_client(1)), "");
  for (int i = 0; i < 5; i++) EXPECT_EQ(enter("192.0.2.1", all, per_client(1)), "max_flows_per_client");
  for (int i = 0; i < 5; i++) EXPECT_EQ(enter("192.0.2.2", all, flows_at_most(1)), "max_flows");
  for (int i = 0; i < 2; i++) EXPECT_EQ(enter("192.0.2.1", all), "");
  EXPECT_EQ(enter("192.0.2.1", all), "new_flows_per_client");
}

TEST_F(ClientsTest, LimitsThatGoAndComeWhileFlowsLive) {
  EXPECT_EQ(enter("192.0.2.1", {}), "");
  const Clients::Place uncounted = last;
  EXPECT_EQ(enter("192.0.2.1", per_client(1)), "");
  EXPECT_EQ(enter("192.0.2.1", per_client(1)), "max_flows_per_client");
  const Clients::Place counted = std::exchange(last, uncounted);
  leave("192.0.2.1");
  EXPECT_EQ(enter("192.0.2.1", per_client(1)), "max_flows_per_client");
  last = counted;
  leave("192.0.2.1");
  EXPECT_EQ(enter("192.0.2.1", per_client(1)), "");
}

// As many clients as there may be flows, each with a listener's limit as well: every one is counted.
TEST_F(ClientsTest, RoomForAllThatMayLive) {
  std::vector<Clients::Place> places(1024);
  for (uint32_t i = 0; i < places.size(); i++)
    ASSERT_FALSE(
        clients.enter(IpAddress::v4(0x0a000000 + i), 0, per_client(1), per_client(1), kNow, &places[i]));
  for (uint32_t i = 0; i < places.size(); i++) {
    Clients::Place place;
    ASSERT_EQ(clients.enter(IpAddress::v4(0x0a000000 + i), 0, per_client(1), per_client(1), kNow, &place),
              CloseReason::max_flows_per_client);
  }
  EXPECT_EQ(clients.forgotten(), 0u);
  for (uint32_t i = 0; i < places.size(); i++) clients.leave(IpAddress::v4(0x0a000000 + i), 0, &places[i]);
  EXPECT_EQ(enter("10.0.0.1", flows_at_most(1)), "");
}

// More clients than can be remembered: who has flows stays counted, whose rate is forgotten is counted as
// such, and nobody is refused for want of room.
TEST_F(ClientsTest, AFloodOfClients) {
  EXPECT_EQ(enter("192.0.2.1", per_client(1)), "");
  const config::Limits l = rate(1, 24h);
  for (uint32_t i = 0; i < 200'000; i++) {
    Clients::Place place;
    const IpAddress flooder = IpAddress::v4(0x0a000000 + i);
    ASSERT_FALSE(clients.enter(flooder, 0, l, {}, kNow, &place));
    clients.leave(flooder, 0, &place);
  }
  EXPECT_GT(clients.forgotten(), 180'000u);
  EXPECT_LT(clients.forgotten(), 200'000u);
  EXPECT_EQ(enter("192.0.2.1", per_client(1)), "max_flows_per_client");
  EXPECT_EQ(enter("192.0.2.2", l), "");
  EXPECT_EQ(enter("192.0.2.2", l), "new_flows_per_client");
}

// Threads that come and go at once, some as the same client: never more in than a limit says, and with no
// refusal that was not due, which the last round shows: as many get in as there is place for.
TEST_F(ClientsTest, ExactUnderConcurrency) {
  constexpr uint32_t kThreads = 4, kRounds = 20'000, kPlaces = 3;
  config::Limits all = per_client(2);
  all.max_flows = kPlaces;
  std::atomic<uint32_t> in{0}, too_many{0}, entered{0};
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < kThreads; t++) {
    threads.emplace_back([&, t] {
      const IpAddress client = IpAddress::v4(0x0a000000 + t % 2);
      for (uint32_t i = 0; i < kRounds; i++) {
        Clients::Place place;
        if (clients.enter(client, 0, all, per_client(1), kNow, &place)) continue;
        entered++;
        too_many += ++in > kPlaces;
        in--;
        clients.leave(client, 0, &place);
      }
    });
  }
  for (auto& t : threads) t.join();
  EXPECT_EQ(too_many, 0u);
  EXPECT_GE(entered, kRounds);  // whoever is alone gets in
  for (uint32_t i = 0; i < kPlaces; i++)
    EXPECT_EQ(enter(fmt::format("10.0.0.{}", i), all, per_client(1)), "");
  EXPECT_EQ(enter("10.0.0.9", all, per_client(1)), "max_flows");
}

}  // namespace
}  // namespace penstock::flow
