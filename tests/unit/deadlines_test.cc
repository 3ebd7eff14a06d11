// SPDX-License-Identifier: Apache-2.0
#include "io/deadlines.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace penstock::io {
namespace {

TEST(Deadlines, EarliestFirstAndOnlyWhenDue) {
  Deadlines d;
  d.set(7, 30);
  d.set(3, 10);
  d.set(5, 20);
  EXPECT_EQ(d.next_ns(), 10u);
  EXPECT_EQ(d.pop_due(9), std::nullopt);
  EXPECT_EQ(d.pop_due(25), 3u);
  EXPECT_EQ(d.pop_due(25), 5u);
  EXPECT_EQ(d.pop_due(25), std::nullopt);
  EXPECT_TRUE(d.is_set(7));
  EXPECT_FALSE(d.is_set(3));
}

TEST(Deadlines, OneEntryAnId) {
  Deadlines d;
  d.set(1, 10);
  d.set(1, 50);
  EXPECT_EQ(d.pop_due(40), std::nullopt);
  d.set(1, 5);
  EXPECT_EQ(d.pop_due(40), 1u);
  EXPECT_EQ(d.next_ns(), Deadlines::kNever);
}

// Against the plainest model that can be right.
TEST(Deadlines, ManyOfThem) {
  std::mt19937_64 random(20261121);
  Deadlines d;
  std::map<Deadlines::Id, uint64_t> model;
  for (uint64_t now = 0; now < 20'000; now++) {
    Deadlines::Id id = static_cast<Deadlines::Id>(random() % 200);
    switch (random() % 3) {
      case 0:
        d.clear(id);
        model.erase(id);
        break;
      default:
        d.set(id, now + random() % 100);
        model[id] = 0;
        break;
    }
    uint64_t before = 0;
    while (d.next_ns() <= now) {
      uint64_t due = d.next_ns();
      EXPECT_GE(due, before);
      before = due;
      auto popped = d.pop_due(now);
      ASSERT_TRUE(popped);
      EXPECT_EQ(model.erase(*popped), 1u);
    }
    ASSERT_EQ(d.is_set(id), model.contains(id));
  }
  while (auto id = d.pop_due(Deadlines::kNever - 1)) EXPECT_EQ(model.erase(*id), 1u);
  EXPECT_TRUE(model.empty());
}

}  // namespace
}  // namespace penstock::io
