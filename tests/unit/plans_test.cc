// SPDX-License-Identifier: Apache-2.0
// Configurations that outlive the worker that made them.
#include "daemon/plans.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <stdexcept>

namespace penstock::daemon {
namespace {

using PlanPtr = std::shared_ptr<const flow::Plan>;

struct PlansTest : testing::Test {
  // Each listener has an upstream of its name.
  PlanPtr make(uint32_t id, const std::vector<std::string>& listener_names) {
    config::Config c;
    for (const std::string& name : listener_names) {
      c.upstreams.emplace_back().name = name;
      config::Listener& l = c.listeners.emplace_back();
      l.name = l.upstream = name;
    }
    auto plan = flow::Plan::make(std::move(c), listeners, upstreams, nullptr, id);
    if (!plan) throw std::runtime_error(plan.error().message);
    return *plan;
  }
  static Plans create() {
    auto plans = Plans::create();
    if (!plans) throw std::runtime_error(plans.error().message);
    return std::move(*plans);
  }
  static Plans reopen(const Plans& other) {
    auto plans = Plans::reopen(other.memory());
    if (!plans) throw std::runtime_error(plans.error().message);
    return std::move(*plans);
  }
  // Text that tells of which configuration it is, and whether it is whole.
  static config::Source source(uint32_t id) {
    return {std::string(1000 * (id % 97), static_cast<char>('a' + id % 26)), "ID=" + std::to_string(id)};
  }
  static std::vector<uint32_t> ids(const Plans& plans) {
    std::vector<uint32_t> ids;
    for (const Plans::Kept& kept : plans.all()) ids.push_back(kept.id);
    return ids;
  }

  flow::Names listeners{64, [](uint32_t, std::string_view) {}};
  flow::Names upstreams{64, [](uint32_t, std::string_view) {}};
};

TEST_F(PlansTest, AnotherProgramReadsWhatIsKept) {
  Plans plans = create();
  EXPECT_EQ(ids(plans), std::vector<uint32_t>{});
  const PlanPtr first = make(7, {"mail", "web"}), second = make(8, {"web", "imap", "mail"});
  plans.keep({"first", "A=1"}, first);
  plans.keep({"second", ""}, second);
  const std::vector<Plans::Kept> kept = reopen(plans).all();
  ASSERT_EQ(kept.size(), 2u);
  EXPECT_EQ(kept[0].id, 7u);
  EXPECT_EQ(kept[0].source.toml, "first");
  EXPECT_EQ(kept[0].source.env, "A=1");
  EXPECT_EQ(kept[0].listener_slots, (std::vector<uint32_t>{0, 1}));
  EXPECT_EQ(kept[1].source.toml, "second");
  EXPECT_EQ(kept[1].source.env, "");
  EXPECT_EQ(kept[1].listener_slots, (std::vector<uint32_t>{1, 2, 0}));
  EXPECT_EQ(kept[1].upstream_slots, (std::vector<uint32_t>{1, 2, 0}));
}

TEST_F(PlansTest, TheStartStaysBesideThem) {
  Plans plans = create();
  EXPECT_EQ(plans.start().toml, "");
  plans.keep_start({"start", "B=2"});
  const PlanPtr plan = make(1, {"mail"});
  for (int i = 0; i < 3; i++) plans.keep({"plan", ""}, plan);
  EXPECT_EQ(ids(plans), std::vector<uint32_t>{1});
  EXPECT_EQ(reopen(plans).start().toml, "start");
  EXPECT_EQ(reopen(plans).start().env, "B=2");
}

TEST_F(PlansTest, OneWithoutFlowsGoesWithTheNextReload) {
  Plans plans = create();
  PlanPtr first = make(1, {"mail"}), second = make(2, {"mail"});
  plans.keep(source(1), first);
  plans.keep(source(2), second);
  second.reset();
  const PlanPtr third = make(3, {"mail"});
  plans.keep(source(3), third);
  EXPECT_EQ(ids(plans), (std::vector<uint32_t>{1, 3}));
}

// They are of the worker before, too: whoever takes over keeps each once more.
TEST_F(PlansTest, KeptAgainByAnotherWorkerTheyGoWithItsFlows) {
  Plans plans = create();
  PlanPtr first = make(1, {"mail"}), second = make(2, {"mail"});
  plans.keep(source(1), first);
  plans.keep(source(2), second);
  Plans next = reopen(plans);
  next.keep(source(1), first);
  next.keep(source(2), second);
  EXPECT_EQ(ids(next), (std::vector<uint32_t>{1, 2}));
  first.reset();
  const PlanPtr third = make(3, {"mail"});
  next.keep(source(3), third);
  EXPECT_EQ(ids(next), (std::vector<uint32_t>{2, 3}));
}

TEST_F(PlansTest, OfOthersThanTheNeededOnesNothingIsLeft) {
  Plans plans = create();
  std::vector<PlanPtr> in_use;
  for (uint32_t id = 1; id <= 4; id++) plans.keep(source(id), in_use.emplace_back(make(id, {"mail"})));
  std::vector<Plans::Kept> needed = plans.all();
  needed.erase(needed.begin() + 1, needed.begin() + 3);
  Plans next = reopen(plans);
  next.keep_only(needed);
  EXPECT_EQ(ids(next), (std::vector<uint32_t>{1, 4}));
  EXPECT_EQ(next.all()[1].source.toml, source(4).toml);
}

TEST_F(PlansTest, WhereAllAreInUseTheOldestGivesWay) {
  Plans plans = create();
  std::vector<PlanPtr> in_use;
  std::vector<uint32_t> wanted;
  for (uint32_t id = 1; id <= Plans::kPlansMax + 3; id++) {
    in_use.push_back(make(id, {"mail"}));
    plans.keep(source(id), in_use.back());
    if (id > 3) wanted.push_back(id);
  }
  EXPECT_EQ(ids(plans), wanted);
  for (const Plans::Kept& kept : plans.all()) EXPECT_EQ(kept.source.toml, source(kept.id).toml);
}

// The worker is killed while it keeps one configuration after another: each that is there is whole.
TEST_F(PlansTest, OneThatWasNotWrittenWholeIsNotThere) {
  constexpr int kDeaths = 200;
  Plans plans = create();
  uint32_t id = 1, most = 0;
  for (int death = 0; death < kDeaths; death++) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      for (uint32_t next = id;; next++) plans.keep(source(next), make(next, {"mail"}));
    }
    const auto begun = [&] {
      const std::vector<uint32_t> now = ids(plans);
      return !now.empty() && now.back() >= id;
    };
    while (!begun()) usleep(100);
    usleep(static_cast<useconds_t>(death * 7 % 500));
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    for (const Plans::Kept& kept : plans.all()) {
      ASSERT_EQ(kept.source.toml, source(kept.id).toml) << "after death " << death;
      ASSERT_EQ(kept.source.env, source(kept.id).env) << "after death " << death;
      ASSERT_EQ(kept.listener_slots, std::vector<uint32_t>{0});
      most = std::max(most, kept.id - id + 1);
      id = std::max(id, kept.id + 1);
    }
  }
  RecordProperty("most_kept_before_a_death", static_cast<int>(most));
  EXPECT_GT(most, 1u);
}

}  // namespace
}  // namespace penstock::daemon
