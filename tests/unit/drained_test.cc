// SPDX-License-Identifier: Apache-2.0
// What `penstock drain` was said to, told to the next worker.
#include "daemon/drained.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>

namespace penstock::daemon {
namespace {

using PlanPtr = std::shared_ptr<const flow::Plan>;

struct Wanted {
  std::string name;
  std::vector<std::string> servers;  // none: by DNS
};

struct DrainedTest : testing::Test {
  DrainedTest() {
    void* memory =
        mmap(nullptr, sizeof(DrainedNames), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("mmap");
    names = static_cast<DrainedNames*>(memory);
  }
  ~DrainedTest() override { munmap(names, sizeof(DrainedNames)); }

  // As another worker makes it: nothing is known of any server.
  PlanPtr make(const std::vector<Wanted>& wanted) {
    config::Config c;
    for (const Wanted& w : wanted) {
      config::Upstream& u = c.upstreams.emplace_back();
      u.name = w.name;
      if (w.servers.empty()) u.srv = "_" + w.name + "._tcp.test";
      for (const std::string& text : w.servers) {
        config::Server& s = u.servers.emplace_back();
        s.host = s.text = text;
      }
    }
    auto plan = flow::Plan::make(std::move(c), listeners, upstreams, nullptr);
    if (!plan) throw std::runtime_error(plan.error().message);
    return *plan;
  }
  static std::set<std::string> drained(const flow::Plan& plan) {
    std::set<std::string> all;
    for (size_t i = 0; i < plan.config().upstreams.size(); i++) {
      if (plan.servers_at(i).is_drained()) all.insert(plan.config().upstreams[i].name);
      plan.servers_at(i).for_each_server([&](flow::Server& s) {
        if (s.drained) all.insert(s.upstream() + "/" + s.what().text);
      });
    }
    return all;
  }
  std::set<std::string> drained_in_the_next(const std::vector<Wanted>& wanted) {
    const PlanPtr next = make(wanted);
    drain_again(*names, *next);
    return drained(*next);
  }

  flow::Names listeners{2048, [](uint32_t, std::string_view) {}};
  flow::Names upstreams{2048, [](uint32_t, std::string_view) {}};
  DrainedNames* names = nullptr;
};

const std::vector<Wanted> kTwo = {{"mailbox", {"a:25", "b:25"}}, {"web", {"a:25"}}};

TEST_F(DrainedTest, AServerOrAllOfAnUpstream) {
  const PlanPtr plan = make(kTwo);
  std::vector<DrainedServer> servers;
  EXPECT_TRUE(set_drained(*plan, "mailbox/b:25", true, &servers));
  ASSERT_EQ(servers.size(), 1u);
  EXPECT_EQ(servers[0].server->what().text, "b:25");
  EXPECT_TRUE(servers[0].changed);
  servers.clear();
  EXPECT_TRUE(set_drained(*plan, "mailbox", true, &servers));
  ASSERT_EQ(servers.size(), 2u);
  EXPECT_TRUE(servers[0].changed);
  EXPECT_FALSE(servers[1].changed);
  EXPECT_EQ(drained(*plan), (std::set<std::string>{"mailbox", "mailbox/a:25", "mailbox/b:25"}));
  for (const char* nobodys : {"", "mail", "mailbox/", "mailbox/c:25", "a:25"})
    EXPECT_FALSE(set_drained(*plan, nobodys, true, nullptr)) << nobodys;
}

TEST_F(DrainedTest, TheNextWorkerDrainsAgain) {
  EXPECT_EQ(drained_in_the_next(kTwo), std::set<std::string>{});
  const PlanPtr plan = make(kTwo);
  set_drained(*plan, "mailbox", true, nullptr);
  set_drained(*plan, "web/a:25", true, nullptr);
  keep_drained(*names, *plan);
  EXPECT_EQ(drained_in_the_next(kTwo), drained(*plan));
  set_drained(*plan, "mailbox", false, nullptr);
  keep_drained(*names, *plan);
  EXPECT_EQ(drained_in_the_next(kTwo), std::set<std::string>{"web/a:25"});
  set_drained(*plan, "web/a:25", false, nullptr);
  keep_drained(*names, *plan);
  EXPECT_EQ(drained_in_the_next(kTwo), std::set<std::string>{});
}

// The configuration may have changed: who is gone is forgotten, who came to a drained upstream is drained.
TEST_F(DrainedTest, UnderAnotherConfiguration) {
  const PlanPtr plan = make(kTwo);
  set_drained(*plan, "mailbox", true, nullptr);
  set_drained(*plan, "web/a:25", true, nullptr);
  keep_drained(*names, *plan);
  EXPECT_EQ(drained_in_the_next({{"mailbox", {"c:25"}}, {"web", {"d:25"}}}),
            (std::set<std::string>{"mailbox", "mailbox/c:25"}));
}

// What DNS names only after the next worker has begun; told again before that, by whatever is drained next.
TEST_F(DrainedTest, AServerThatDnsNames) {
  const auto named = [](const PlanPtr& plan) -> const PlanPtr& {
    plan->servers_at(1).set_targets({{0, "a", 25, 1}, {0, "b", 25, 1}});
    return plan;
  };
  const std::vector<Wanted> wanted = {{"mailbox", {"a:25"}}, {"imap", {}}};
  const PlanPtr first = named(make(wanted));
  EXPECT_FALSE(set_drained(*first, "imap/c:25", true, nullptr));
  EXPECT_TRUE(set_drained(*first, "imap/b:25", true, nullptr));
  keep_drained(*names, *first);
  const PlanPtr second = make(wanted);
  drain_again(*names, *second);
  set_drained(*second, "mailbox/a:25", true, nullptr);
  keep_drained(*names, *second);
  const PlanPtr third = make(wanted);
  drain_again(*names, *third);
  EXPECT_EQ(drained(*named(third)), (std::set<std::string>{"imap/b:25", "mailbox/a:25"}));
  for (const char* resumed : {"imap/b:25", "imap"}) {
    const PlanPtr plan = make(wanted);
    drain_again(*names, *plan);
    EXPECT_TRUE(set_drained(*plan, resumed, false, nullptr)) << resumed;
    EXPECT_EQ(drained(*named(plan)), std::set<std::string>{"mailbox/a:25"}) << resumed;
  }
}

// Its flows keep it while DNS does not name it; what is said of it then is true when DNS names it again.
TEST_F(DrainedTest, AServerThatDnsNamesAgain) {
  for (const char* resumed : {"imap/b:25", "imap"}) {
    const PlanPtr plan = make({{"imap", {}}});
    flow::Upstream& imap = plan->servers_at(0);
    imap.set_targets({{0, "a", 25, 1}, {0, "b", 25, 1}});
    imap.for_each_server([](flow::Server& s) { s.flows = 1; });
    set_drained(*plan, "imap/b:25", true, nullptr);
    imap.set_targets({{0, "a", 25, 1}});
    set_drained(*plan, resumed, false, nullptr);
    imap.set_targets({{0, "a", 25, 1}, {0, "b", 25, 1}});
    EXPECT_EQ(drained(*plan), std::set<std::string>{}) << resumed;
    imap.set_targets({{0, "b", 25, 1}});
    set_drained(*plan, "imap", true, nullptr);
    imap.set_targets({{0, "a", 25, 1}, {0, "b", 25, 1}});
    EXPECT_EQ(drained(*plan), (std::set<std::string>{"imap", "imap/a:25", "imap/b:25"})) << resumed;
  }
}

TEST_F(DrainedTest, MoreThanThereIsRoomForIsCutBehindAName) {
  std::vector<Wanted> many;
  for (int i = 0; i < 700; i++) many.push_back({std::to_string(i) + std::string(90, 'u'), {"a:25"}});
  const PlanPtr plan = make(many);
  for (const Wanted& w : many) set_drained(*plan, w.name + "/a:25", true, nullptr);
  keep_drained(*names, *plan);
  const std::set<std::string> before = drained(*plan), after = drained_in_the_next(many);
  size_t bytes = 0;
  for (const std::string& name : after) bytes += name.size() + 1;
  EXPECT_LE(bytes, DrainedNames::kBytesMax);
  EXPECT_GT(bytes, DrainedNames::kBytesMax - 100);
  EXPECT_TRUE(std::includes(before.begin(), before.end(), after.begin(), after.end()));
}

TEST_F(DrainedTest, WhateverIsInThereEnds) {
  memset(static_cast<void*>(names), 'x', sizeof *names);
  EXPECT_EQ(drained_in_the_next(kTwo), std::set<std::string>{});
  memset(static_cast<void*>(names), '\n', sizeof *names);
  EXPECT_EQ(drained_in_the_next(kTwo), std::set<std::string>{});
}

// The worker is killed while it drains now these, now those, now none: the next one finds one of them, never
// a mixture. Three, so that each list holds each.
TEST_F(DrainedTest, AListThatWasNotWrittenWholeIsNotThere) {
  constexpr int kDeaths = 300;
  std::vector<Wanted> many;
  for (int i = 0; i < 60; i++) many.push_back({std::to_string(i) + std::string(1000, 'u'), {"a:25", "b:25"}});
  const PlanPtr plans[] = {make(many), make(many), make(many)};
  for (const Wanted& w : many) {
    set_drained(*plans[0], w.name + "/a:25", true, nullptr);
    set_drained(*plans[1], w.name + "/b:25", true, nullptr);
  }
  std::map<std::set<std::string>, int> times;
  for (const PlanPtr& plan : plans) times[drained(*plan)] = 0;
  for (int death = 0; death < kDeaths; death++) {
    const uint32_t before = names->current;
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0)
      for (;;)
        for (const PlanPtr& plan : plans) keep_drained(*names, *plan);
    while (names->current == before) usleep(10);
    usleep(static_cast<useconds_t>(death * 7 % 500));
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    const auto found = times.find(drained_in_the_next(many));
    ASSERT_NE(found, times.end()) << "after death " << death;
    found->second++;
  }
  for (const auto& [found, deaths] : times) EXPECT_GT(deaths, 0) << found.size() << " names";
}

}  // namespace
}  // namespace penstock::daemon
