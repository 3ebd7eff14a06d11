// SPDX-License-Identifier: Apache-2.0
// Who gets the next flow: shares by weight, backups, servers tried before, and how few clients move.
#include "route/balance.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <latch>
#include <map>
#include <string>
#include <thread>

namespace penstock::route {
namespace {

using How = config::Balance;

constexpr uint32_t kClients = 100'000;

// What is known of the servers.
struct State {
  std::vector<bool> down = std::vector<bool>(config::kServersMax);
  std::vector<uint32_t> open = std::vector<uint32_t>(config::kServersMax);
  std::vector<bool> tried = std::vector<bool>(config::kServersMax);
};

std::optional<uint32_t> choose(Balance* balance, const IpAddress& client, const State& state) {
  return balance->choose(
      client, [&](uint32_t i) { return !state.down[i] && !state.tried[i]; },
      [&](uint32_t i) { return state.open[i]; });
}

// "a", "b", ... of these weights.
std::vector<Member> of_weights(const std::vector<uint32_t>& weights) {
  std::vector<Member> servers;
  for (const uint32_t weight : weights) {
    servers.push_back({std::string(1, static_cast<char>('a' + servers.size())), weight});
  }
  return servers;
}

std::vector<Member> many(uint32_t count) {
  std::vector<Member> servers;
  for (uint32_t i = 0; i < count; ++i) servers.push_back({"10.0.0." + std::to_string(i) + ":25"});
  return servers;
}

// Some of a v4 /8 and of a v6 /64, in turn.
IpAddress client(uint32_t n) {
  if (n % 2 == 0) return IpAddress::v4(0x0a000000 + n);
  IpAddress a = *IpAddress::parse("2001:db8::");
  for (int i = 0; i < 4; ++i) a.bytes[15 - i] = static_cast<uint8_t>(n >> 8 * i);
  return a;
}

// The keys of the next `count` choices.
std::string chosen(Balance* balance, const std::vector<Member>& servers, const State& state, int count) {
  std::string out;
  for (int i = 0; i < count; ++i) {
    const auto server = choose(balance, {}, state);
    out += server ? servers[*server].key : "-";
  }
  return out;
}

// The server of each of kClients clients, by key: indices change with the configuration.
std::vector<std::string> map_of(const std::vector<Member>& servers, const State& state = {}) {
  Balance balance(How::source_hash, servers);
  std::vector<std::string> out;
  for (uint32_t i = 0; i < kClients; ++i) out.push_back(servers[*choose(&balance, client(i), state)].key);
  return out;
}

// Of the clients that `lost` did not serve before and `found` does not serve after.
uint32_t others_moved(const std::vector<std::string>& before, const std::vector<std::string>& after,
                      const std::string& lost, const std::string& found = "") {
  uint32_t moved = 0;
  for (size_t i = 0; i < before.size(); ++i) {
    moved += before[i] != lost && after[i] != found && before[i] != after[i];
  }
  return moved;
}

// ---- round_robin

TEST(RoundRobin, TakesTurns) {
  const auto servers = of_weights({1, 1, 1});
  Balance balance(How::round_robin, servers);
  EXPECT_EQ(chosen(&balance, servers, {}, 7), "abcabca");
}

// nginx's own example of what is smooth.
TEST(RoundRobin, SpreadsWeights) {
  const auto servers = of_weights({5, 1, 1});
  Balance balance(How::round_robin, servers);
  EXPECT_EQ(chosen(&balance, servers, {}, 14), "aabacaaaabacaa");
}

TEST(RoundRobin, WeightsAreRelative) {
  const auto servers = of_weights({200, 100});
  Balance balance(How::round_robin, servers);
  EXPECT_EQ(chosen(&balance, servers, {}, 6), "abaaba");
}

TEST(RoundRobin, EveryRoundHasExactlyTheWeights) {
  const std::vector<uint32_t> weights = {256, 255, 1, 77, 13};
  const auto servers = of_weights(weights);
  Balance balance(How::round_robin, servers);
  for (int round = 0; round < 3; ++round) {
    std::vector<uint32_t> counts(weights.size());
    for (uint32_t i = 0; i < 256 + 255 + 1 + 77 + 13; ++i) ++counts[*choose(&balance, {}, State())];
    EXPECT_EQ(counts, weights);
  }
}

// Not all to its neighbour.
TEST(RoundRobin, TurnsOfAServerThatIsDownGoToAllOthers) {
  const auto servers = of_weights({1, 1, 1, 2});
  Balance balance(How::round_robin, servers);
  State state;
  state.down[0] = true;
  const std::string all = chosen(&balance, servers, state, 40);
  EXPECT_EQ(std::count(all.begin(), all.end(), 'b'), 10);
  EXPECT_EQ(std::count(all.begin(), all.end(), 'c'), 10);
  EXPECT_EQ(std::count(all.begin(), all.end(), 'd'), 20);
}

TEST(RoundRobin, ThreadsShareTheTurns) {
  const std::vector<uint32_t> weights = {7, 3, 1, 1};
  const auto servers = of_weights(weights);
  Balance balance(How::round_robin, servers);
  State state;
  state.down[3] = true;
  constexpr uint32_t kRounds = 400'000;  // of 11 turns, divided among 4 threads
  std::vector<std::vector<uint32_t>> counts(4, std::vector<uint32_t>(weights.size()));
  std::latch all_there(4);
  std::vector<std::jthread> threads;
  for (auto& mine : counts) {
    threads.emplace_back([&] {
      all_there.arrive_and_wait();
      for (uint32_t i = 0; i < kRounds * 11 / 4; ++i) ++mine[*choose(&balance, {}, state)];
    });
  }
  threads.clear();
  for (size_t i = 0; i < weights.size(); ++i) {
    uint32_t all = 0;
    for (const auto& mine : counts) all += mine[i];
    EXPECT_EQ(all, i == 3 ? 0 : kRounds * weights[i]) << servers[i].key;
  }
}

TEST(RoundRobin, TheMostServersOfTheGreatestWeights) {
  auto servers = many(config::kServersMax);
  for (size_t i = 0; i < servers.size(); ++i) servers[i].weight = i % 2 == 0 ? 256 : 255;
  Balance balance(How::round_robin, servers);
  State state;
  state.down.assign(config::kServersMax, true);
  state.down[1023] = false;
  for (int i = 0; i < 1000; ++i) ASSERT_EQ(choose(&balance, {}, state), 1023u);
}

// ---- least_flows

TEST(LeastFlows, TakesTheOneWithFewest) {
  const auto servers = of_weights({1, 1, 1});
  Balance balance(How::least_flows, servers);
  State state;
  state.open = {3, 2, 4};
  EXPECT_EQ(chosen(&balance, servers, state, 3), "bbb");
  state.down[1] = true;
  EXPECT_EQ(chosen(&balance, servers, state, 3), "aaa");
}

TEST(LeastFlows, CountsFlowsByWeight) {
  const auto servers = of_weights({1, 4});
  Balance balance(How::least_flows, servers);
  State state;
  state.open = {2, 7};
  EXPECT_EQ(chosen(&balance, servers, state, 1), "b");  // 7 / 4 is less than 2
  state.open = {2, 9};
  EXPECT_EQ(chosen(&balance, servers, state, 1), "a");
}

TEST(LeastFlows, EqualsTakeTurnsByWeight) {
  const auto servers = of_weights({1, 1, 2});
  Balance balance(How::least_flows, servers);
  State state;
  const std::string idle = chosen(&balance, servers, state, 8);
  EXPECT_EQ(std::count(idle.begin(), idle.end(), 'c'), 4) << idle;
  state.open = {5, 5, 11};
  EXPECT_EQ(chosen(&balance, servers, state, 4), "abab");
}

TEST(LeastFlows, EveryFlowThatStaysIsShared) {
  const auto servers = of_weights({1, 2, 5});
  Balance balance(How::least_flows, servers);
  State state;
  for (int i = 0; i < 800; ++i) ++state.open[*choose(&balance, {}, state)];
  EXPECT_EQ(state.open[0], 100u);
  EXPECT_EQ(state.open[1], 200u);
  EXPECT_EQ(state.open[2], 500u);
}

// ---- source_hash

TEST(SourceHash, TheSameClientTheSameServer) {
  const auto servers = many(10);
  Balance one(How::source_hash, servers), two(How::source_hash, servers);
  for (uint32_t i = 0; i < 1000; ++i) {
    const auto server = choose(&one, client(i), State());
    EXPECT_EQ(choose(&one, client(i), State()), server);
    EXPECT_EQ(choose(&two, client(i), State()), server);
  }
}

// The hash may not change from version to version or from machine to machine.
TEST(SourceHash, TheseClientsHaveTheseServersForEver) {
  const auto servers = many(10);
  Balance balance(How::source_hash, servers);
  std::string all;
  for (const char* address : {"192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "2001:db8::1",
                              "2001:db8::2", "2001:db8:0:1::1", "::1", "0.0.0.0", "255.255.255.255"}) {
    all += std::to_string(*choose(&balance, *IpAddress::parse(address), State()));
  }
  EXPECT_EQ(all, "5418810760");
}

TEST(SourceHash, TheOrderInTheFileDoesNotMatter) {
  auto servers = many(7);
  const auto before = map_of(servers);
  std::reverse(servers.begin(), servers.end());
  EXPECT_EQ(map_of(servers), before);
}

TEST(SourceHash, SharesAreByWeight) {
  const std::vector<uint32_t> weights = {1, 2, 3, 10};
  std::map<std::string, uint32_t> counts;
  for (const auto& text : map_of(of_weights(weights))) ++counts[text];
  for (size_t i = 0; i < weights.size(); ++i) {
    const double share = counts[std::string(1, static_cast<char>('a' + i))] * 16.0 / kClients;
    EXPECT_NEAR(share, weights[i], weights[i] * 0.03) << i;
  }
}

TEST(SourceHash, OnlyTheClientsOfALostServerMoveAndToAllOthers) {
  for (const uint32_t count : {2u, 3u, 10u, 100u, 1024u}) {
    const auto servers = many(count);
    const auto before = map_of(servers);
    State state;
    state.down[1] = true;
    const auto after = map_of(servers, state);
    EXPECT_EQ(others_moved(before, after, servers[1].key), 0u) << count;
    std::map<std::string, uint32_t> heirs;
    for (size_t i = 0; i < before.size(); ++i) {
      if (before[i] == servers[1].key) ++heirs[after[i]];
    }
    EXPECT_FALSE(heirs.contains(servers[1].key)) << count;
    EXPECT_GE(heirs.size(), std::min(count - 1, 60u)) << count;
  }
}

TEST(SourceHash, OneLossAfterAnotherMovesOnlyTheLostOnes) {
  const auto servers = many(200);
  State state;
  for (uint32_t left = 199; left > 0; left = left > 12 ? left / 2 : left - 1) {
    for (uint32_t i = left + 1; i < 200; ++i) state.down[i] = true;
    const auto before = map_of(servers, state);
    state.down[left] = true;
    const auto after = map_of(servers, state);
    ASSERT_EQ(others_moved(before, after, servers[left].key), 0u) << left;
    ASSERT_EQ(std::count(after.begin(), after.end(), servers[left].key), 0);
  }
}

TEST(SourceHash, TheClientsOfALostServerAreSharedByWeight) {
  const auto servers = of_weights({3, 1, 8});
  const auto before = map_of(servers);
  State state;
  state.down[0] = true;
  const auto after = map_of(servers, state);
  double b = 0, c = 0;
  for (size_t i = 0; i < before.size(); ++i) {
    if (before[i] == "a") ++(after[i] == "b" ? b : c);
  }
  EXPECT_NEAR(c / b, 8, 0.4);
}

TEST(SourceHash, TheLastTwoOf1024ShareTheClients) {
  const auto servers = many(1024);
  State state;
  state.down.assign(config::kServersMax, true);
  state.down[7] = state.down[1000] = false;
  const auto all = map_of(servers, state);
  EXPECT_NEAR(static_cast<double>(std::count(all.begin(), all.end(), servers[7].key)) / kClients, 0.5, 0.03);
}

TEST(SourceHash, FewClientsOfOthersMoveWhenTheConfigurationChanges) {
  for (const uint32_t count : {3u, 4u, 5u, 10u, 20u, 50u, 100u}) {
    const auto all = many(count);
    const auto with = map_of(all);
    for (const uint32_t changed : {0u, count / 2, count - 1}) {
      auto servers = all;
      servers.erase(servers.begin() + changed);
      const auto without = map_of(servers);
      const uint32_t removed = others_moved(with, without, all[changed].key);
      const uint32_t added = others_moved(without, with, "", all[changed].key);
      const double share = 100.0 * std::max(removed, added) / kClients;
      std::printf("%u servers, without %s: %.2f %% of %u clients of the others move\n", count,
                  all[changed].key.c_str(), share, kClients);
      EXPECT_LE(share, 1.0) << count;
    }
  }
}

// ---- whatever the balance

class EveryBalance : public testing::TestWithParam<How> {};
INSTANTIATE_TEST_SUITE_P(balance, EveryBalance,
                         testing::Values(How::round_robin, How::least_flows, How::source_hash));

TEST_P(EveryBalance, BackupsServeWhileNoOtherCan) {
  const std::vector<Member> servers = {{"a"}, {"y", 1, true}, {"b"}, {"z", 1, true}};
  Balance balance(GetParam(), servers);
  State state;
  const auto seen = [&] {
    std::map<std::string, int> counts;
    for (uint32_t i = 0; i < 100; ++i) ++counts[servers[*choose(&balance, client(i), state)].key];
    std::string out;
    for (const auto& [text, count] : counts) out += text;
    return out;
  };
  EXPECT_EQ(seen(), "ab");
  state.down[0] = true;
  EXPECT_EQ(seen(), "b");
  state.down[2] = true;
  EXPECT_EQ(seen(), "yz");
  state.down[1] = true;
  EXPECT_EQ(seen(), "z");
  state.down[3] = true;
  EXPECT_EQ(choose(&balance, client(0), state), std::nullopt);
  state.down[0] = false;
  EXPECT_EQ(seen(), "a");
}

// As a flow goes on from a server that did not answer to the next.
TEST_P(EveryBalance, EachServerIsTriedOnceTheBackupLast) {
  const std::vector<Member> servers = {{"a"}, {"z", 1, true}, {"b"}};
  Balance balance(GetParam(), servers);
  State state;
  for (int i = 0; i < 3; ++i) {
    const auto server = choose(&balance, client(0), state);
    ASSERT_TRUE(server);
    EXPECT_EQ(servers[*server].backup, i == 2);
    state.tried[*server] = true;
  }
  EXPECT_EQ(choose(&balance, client(0), state), std::nullopt);
}

TEST_P(EveryBalance, SixtyFourOf1024AreTried) {
  Balance balance(GetParam(), many(1024));
  for (uint32_t flow = 0; flow < 20; ++flow) {
    State state;
    for (int i = 0; i < 64; ++i) {
      const auto server = choose(&balance, client(flow), state);
      ASSERT_TRUE(server);
      ASSERT_FALSE(state.tried[*server]);
      state.tried[*server] = true;
    }
  }
}

TEST_P(EveryBalance, TheLastOneIsFound) {
  const auto servers = many(1024);
  Balance balance(GetParam(), servers);
  State state;
  state.down.assign(config::kServersMax, true);
  for (uint32_t last = 0; last < 1024; last += 31) {
    state.down[last] = false;
    EXPECT_EQ(choose(&balance, client(last), state), last);
    state.down[last] = true;
    EXPECT_EQ(choose(&balance, client(last), state), std::nullopt);
  }
}

TEST_P(EveryBalance, NobodyThere) {
  Balance balance(GetParam(), {});
  EXPECT_EQ(choose(&balance, client(0), State()), std::nullopt);
}

}  // namespace
}  // namespace penstock::route
