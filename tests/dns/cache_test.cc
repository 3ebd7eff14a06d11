// SPDX-License-Identifier: Apache-2.0
#include "dns/cache.h"

#include <gtest/gtest.h>

namespace penstock::dns {
namespace {

using namespace std::chrono_literals;

const Cache::TimePoint kStart{1000s};
const Key kMail{"mail.test", Family::any};

Answer answer(uint32_t v4) {
  return {{IpAddress::v4(v4)}, ""};
}

TEST(Cache, keeps_an_answer_for_its_ttl) {
  Cache cache(10);
  cache.store(kMail, answer(1), 60s, kStart);
  ASSERT_NE(cache.find(kMail, kStart + 59999ms), nullptr);
  EXPECT_EQ(cache.find(kMail, kStart + 59999ms)->addresses[0], IpAddress::v4(1));
  EXPECT_EQ(cache.find(kMail, kStart + 60s), nullptr);
  EXPECT_EQ(cache.size(), 0u);
}

TEST(Cache, keeps_every_answer_at_least_a_second_and_at_most_an_hour) {
  Cache cache(10);
  cache.store(kMail, answer(1), 0s, kStart);
  EXPECT_NE(cache.find(kMail, kStart + 999ms), nullptr);
  EXPECT_EQ(cache.find(kMail, kStart + 1s), nullptr);
  cache.store(kMail, answer(1), 86400s, kStart);
  EXPECT_NE(cache.find(kMail, kStart + 3599s), nullptr);
  EXPECT_EQ(cache.find(kMail, kStart + 3600s), nullptr);
}

TEST(Cache, knows_families_apart) {
  Cache cache(10);
  cache.store(kMail, answer(1), 60s, kStart);
  EXPECT_EQ(cache.find({"mail.test", Family::v4}, kStart), nullptr);
}

TEST(Cache, replaces_and_never_grows_past_its_bound_dropping_the_oldest) {
  Cache cache(2);
  cache.store({"a", Family::v4}, answer(1), 60s, kStart);
  cache.store({"b", Family::v4}, answer(2), 60s, kStart);
  cache.store({"a", Family::v4}, answer(3), 60s, kStart);  // now the newest
  cache.store({"c", Family::v4}, answer(4), 60s, kStart);
  EXPECT_EQ(cache.size(), 2u);
  EXPECT_EQ(cache.find({"b", Family::v4}, kStart), nullptr);
  ASSERT_NE(cache.find({"a", Family::v4}, kStart), nullptr);
  EXPECT_EQ(cache.find({"a", Family::v4}, kStart)->addresses[0], IpAddress::v4(3));
  EXPECT_NE(cache.find({"c", Family::v4}, kStart), nullptr);
}

}  // namespace
}  // namespace penstock::dns
