// SPDX-License-Identifier: Apache-2.0
#include "flow/line_limit.h"

#include <gtest/gtest.h>

namespace penstock::flow {
namespace {

constexpr uint64_t kNow = 5'000'000'000, kSecond = 1'000'000'000;

TEST(LineLimit, SoManyASecond) {
  LineLimit limit(2);
  for (uint64_t second = 0; second < 3; second++) {
    EXPECT_TRUE(limit.allow(kNow + second * kSecond));
    EXPECT_TRUE(limit.allow(kNow + second * kSecond + 1));
  }
  EXPECT_EQ(limit.due_ns(), LineLimit::kNever);
}

TEST(LineLimit, WhatIsLeftOutIsToldOnceTheSecondIsOver) {
  LineLimit limit(1);
  EXPECT_TRUE(limit.allow(kNow));
  for (int i = 0; i < 7; i++) EXPECT_FALSE(limit.allow(kNow + 10));
  EXPECT_EQ(limit.due_ns(), kNow + kSecond);
  EXPECT_EQ(limit.take_left_out(), 7u);
  EXPECT_EQ(limit.due_ns(), LineLimit::kNever);
  EXPECT_TRUE(limit.allow(kNow + kSecond));
}

// Nothing is forgotten by who is late to tell.
TEST(LineLimit, LeftOutUntilItIsTold) {
  LineLimit limit(1);
  EXPECT_TRUE(limit.allow(kNow));
  EXPECT_FALSE(limit.allow(kNow));
  EXPECT_FALSE(limit.allow(kNow + 3 * kSecond));
  EXPECT_EQ(limit.take_left_out(), 2u);
}

}  // namespace
}  // namespace penstock::flow
