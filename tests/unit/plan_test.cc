// SPDX-License-Identifier: Apache-2.0
// One configuration after another: a name keeps its slot as long as any plan holds it, a server what is known
// of it.
#include "flow/plan.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <latch>
#include <thread>

namespace penstock::flow {
namespace {

using PlanPtr = std::shared_ptr<const Plan>;

struct PlanTest : testing::Test {
  // Every listener goes to the first upstream.
  Result<PlanPtr> try_make(const std::vector<std::string>& listener_names,
                           const std::vector<std::string>& upstream_names,
                           const PlanPtr& previous = nullptr) {
    config::Config c;
    for (const std::string& name : upstream_names) {
      config::Upstream u;
      u.name = name;
      config::Server s;
      s.host = s.text = "server-of-" + name;
      u.servers.push_back(s);
      c.upstreams.push_back(u);
    }
    for (const std::string& name : listener_names) {
      config::Listener l;
      l.name = name;
      l.upstream = upstream_names.at(0);
      c.listeners.push_back(l);
    }
    return Plan::make(std::move(c), listeners, upstreams, previous.get());
  }
  PlanPtr make(const std::vector<std::string>& listener_names, const std::vector<std::string>& upstream_names,
               const PlanPtr& previous = nullptr) {
    auto plan = try_make(listener_names, upstream_names, previous);
    if (!plan) throw std::runtime_error(plan.error().message);
    return plan.value();
  }
  static Server& server_of(const Plan& plan, uint32_t upstream_slot) {
    Server* found = nullptr;
    plan.servers(upstream_slot).for_each_server([&](Server& s) { found = &s; });
    return *found;
  }

  std::vector<std::string> listener_entries = std::vector<std::string>(4);  // as the pinned map shows them
  Names listeners{4, [this](uint32_t slot, std::string_view name) { listener_entries.at(slot) = name; }};
  Names upstreams{4, [](uint32_t, std::string_view) {}};
};

TEST_F(PlanTest, IndicesAreOfTheConfigurationSlotsOfTheNames) {
  const PlanPtr first = make({"mail", "web"}, {"mailbox"});
  EXPECT_EQ(first->listener_slot(0), 0u);
  EXPECT_EQ(first->listener_slot(1), 1u);
  const PlanPtr second = make({"web", "new", "mail"}, {"other", "mailbox"}, first);
  EXPECT_EQ(second->listener_slot(0), 1u);
  EXPECT_EQ(second->listener_slot(1), 2u);
  EXPECT_EQ(second->listener_slot(2), 0u);
  EXPECT_EQ(second->listener(0).name, "mail");
  EXPECT_EQ(second->listener_index(0), 2u);
  EXPECT_EQ(second->upstream_slot(1), first->upstream_slot(0));
  EXPECT_EQ(second->upstream(first->upstream_slot(0)).name, "mailbox");
  EXPECT_EQ(second->find_listener(3), std::nullopt);
  EXPECT_EQ(first->find_listener(2), std::nullopt);
  EXPECT_EQ(listener_entries, (std::vector<std::string>{"mail", "web", "new", ""}));
}

TEST_F(PlanTest, AListenerThatGoesAndComesBackWhileItHasFlows) {
  const PlanPtr of_flows = make({"mail", "web"}, {"mailbox"});
  PlanPtr now = make({"web"}, {"mailbox"}, of_flows);
  EXPECT_EQ(listener_entries[0], "mail");  // counts on for its flows
  now = make({"other", "web"}, {"mailbox"}, now);
  EXPECT_EQ(now->listener_slot(0), 2u);  // not what "mail" still has
  now = make({"web", "mail"}, {"mailbox"}, now);
  EXPECT_EQ(now->listener_slot(1), 0u);
}

TEST_F(PlanTest, AListenerThatGoesWithItsLastFlow) {
  PlanPtr of_flows = make({"mail", "web"}, {"mailbox"});
  PlanPtr now = make({"web"}, {"mailbox"}, of_flows);
  of_flows.reset();
  EXPECT_EQ(listener_entries, (std::vector<std::string>{"", "web", "", ""}));
  now = make({"web", "other", "mail"}, {"mailbox"}, now);
  EXPECT_EQ(now->listener_slot(1), 0u);  // the first that is free
  EXPECT_EQ(now->listener_slot(2), 2u);
}

TEST_F(PlanTest, TheSameOverAndOver) {
  PlanPtr now = make({"a", "b", "c", "d"}, {"u"});
  for (int i = 0; i < 1000; i++) now = make({"d", "c", "b", "a"}, {"u"}, now);
  EXPECT_EQ(now->listener_slot(0), 3u);
  now.reset();
  EXPECT_EQ(listener_entries, std::vector<std::string>(4));
  for (int i = 0; i < 1000; i++) now = make({std::to_string(i), std::to_string(i + 1)}, {"u"}, now);
}

// What was given out for it is given back, and nothing else.
TEST_F(PlanTest, OneThatFindsNoRoomChangesNothing) {
  const PlanPtr now = make({"a", "b"}, {"u"});
  const auto refused = try_make({"c", "d", "a", "e"}, {"u"}, now);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().message,
            "too many listeners while those of the old configuration still have flows");
  EXPECT_EQ(listener_entries, (std::vector<std::string>{"a", "b", "", ""}));
  EXPECT_FALSE(try_make({"a"}, {"v", "w", "x", "y"}, now));
  const PlanPtr next = make({"c", "d", "a"}, {"v", "w", "x"}, now);
  EXPECT_EQ(next->listener_slot(2), 0u);
}

TEST_F(PlanTest, ServersAreThoseOfTheUpstreamBefore) {
  const PlanPtr first = make({"mail"}, {"mailbox", "web"});
  server_of(*first, first->upstream_slot(0)).drained = true;
  const PlanPtr second = make({"mail"}, {"web", "mailbox"}, first);
  EXPECT_EQ(&server_of(*second, second->upstream_slot(1)), &server_of(*first, first->upstream_slot(0)));
  EXPECT_TRUE(server_of(*second, second->upstream_slot(1)).drained);
  EXPECT_FALSE(server_of(*second, second->upstream_slot(0)).drained);
}

// Flows end on their workers' threads while the next configuration is made on another.
TEST(Names, OneOwnerEachOnManyThreads) {
  constexpr uint32_t kThreads = 4;
  std::array<std::atomic<uint32_t>, kThreads + 1> owners{};
  Names names(kThreads + 1, [](uint32_t, std::string_view) {});
  ASSERT_EQ(names.take("everybody's"), 0u);
  std::atomic<uint32_t> wrong = 0;
  std::latch all_there(kThreads);
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < kThreads; t++)
    threads.emplace_back([&, t] {
      all_there.arrive_and_wait();
      for (int i = 0; i < 50'000; i++) {
        const std::string own = std::to_string(t) + "/" + std::to_string(i % 7);
        const uint32_t slot = names.take(own).value_or(0);
        wrong += slot == 0 || owners.at(slot)++ != 0 || names.take("everybody's") != 0u;
        names.give_back("everybody's");
        owners.at(slot)--;
        names.give_back(own);
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0u);
}

}  // namespace
}  // namespace penstock::flow
