// SPDX-License-Identifier: Apache-2.0
#include "dns/cache.h"

#include <gtest/gtest.h>

namespace penstock::dns {
namespace {

using namespace std::chrono_literals;
using Step = Cache::Step;

const Cache::TimePoint kStart{1000s};
const Key kMail{"mail.test", Family::any};
const Answer kNothing;  // whatever the error says

Answer answer(uint32_t v4) {
  Answer a;
  a.addresses = {IpAddress::v4(v4)};
  return a;
}

Options options(std::chrono::milliseconds ttl_min, std::chrono::milliseconds ttl_max,
                std::chrono::milliseconds stale) {
  Options o;
  o.ttl_min = ttl_min;
  o.ttl_max = ttl_max;
  o.stale = stale;
  return o;
}

// One cache and a clock to turn; every question takes no time.
struct Told {
  Cache cache;
  Cache::TimePoint now = kStart;

  explicit Told(const Options& o = {}, size_t entries_max = 10) : cache(entries_max, o) {}
  void says(uint32_t v4, std::chrono::seconds ttl, const Key& key = kMail) {
    cache.store(key, answer(v4), ttl, now, now);
  }
  void says_nothing_there() { cache.store(kMail, kNothing, 0s, now, now); }
  Answer fails() { return cache.store_failure(kMail, "timeout", now, now); }
  Step step() { return cache.find(kMail, now).step; }
  // The v4 address as a number, 0 for an error, nothing when there is nothing to serve.
  std::optional<uint32_t> served(const Key& key = kMail) {
    const Answer* found = cache.find(key, now).answer;
    if (!found) return std::nullopt;
    return found->found() ? std::optional(found->addresses[0].bytes[15]) : 0;
  }
  bool stale() { return cache.find(kMail, now).answer->stale; }
};

TEST(Cache, serves_an_answer_for_its_ttl_and_tells_when_it_ends) {
  Told dns;
  dns.says(1, 60s);
  dns.now = kStart + 59999ms;
  EXPECT_EQ(dns.step(), Step::serve);
  EXPECT_EQ(dns.served(), 1u);
  EXPECT_FALSE(dns.stale());
  EXPECT_EQ(dns.cache.find(kMail, dns.now).answer->obtained, kStart);
  EXPECT_EQ(dns.cache.find(kMail, dns.now).answer->expires, kStart + 60s);
  dns.now = kStart + 60s;
  EXPECT_NE(dns.step(), Step::serve);
}

TEST(Cache, keeps_ttls_within_the_options) {
  Told dns(options(5s, 10s, 0s));
  dns.says(1, 0s);
  dns.now = kStart + 4999ms;
  EXPECT_EQ(dns.step(), Step::serve);
  dns.now = kStart + 5s;
  EXPECT_EQ(dns.step(), Step::ask);
  dns.says(1, 86400s);
  dns.now += 9999ms;
  EXPECT_EQ(dns.step(), Step::serve);
  dns.now += 1ms;
  EXPECT_EQ(dns.step(), Step::ask);
}

TEST(Cache, a_ttl_of_nothing_is_asked_each_time) {
  Told dns(options(0s, 10s, 1h));
  dns.says(1, 0s);
  EXPECT_EQ(dns.step(), Step::ask_briefly);
}

TEST(Cache, remembers_that_nothing_is_there_for_a_second_whatever_the_options) {
  Told dns(options(5s, 10s, 1h));
  dns.says(1, 5s);
  dns.says_nothing_there();
  EXPECT_EQ(dns.served(), 0u);  // an answer: the old one is gone
  dns.now = kStart + 999ms;
  EXPECT_EQ(dns.step(), Step::serve);
  dns.now = kStart + 1s;
  EXPECT_EQ(dns.step(), Step::ask);
}

TEST(Cache, remembers_a_failure_for_a_second_when_there_is_nothing_older) {
  Told dns;
  EXPECT_EQ(dns.fails().error, "timeout");
  EXPECT_EQ(dns.fails().obtained, Cache::TimePoint{});
  dns.now = kStart + 999ms;
  EXPECT_EQ(dns.step(), Step::serve);
  EXPECT_EQ(dns.served(), 0u);
  dns.now = kStart + 1s;
  EXPECT_EQ(dns.step(), Step::ask);
}

TEST(Cache, an_expired_answer_serves_while_dns_is_down_and_is_asked_once_a_second) {
  Told dns(options(1s, 1h, 1h));
  dns.says(1, 60s);
  dns.now = kStart + 60s;
  EXPECT_EQ(dns.step(), Step::ask_briefly);
  EXPECT_TRUE(dns.stale());
  Answer told = dns.fails();
  EXPECT_EQ(told.addresses, answer(1).addresses);
  EXPECT_TRUE(told.stale);
  EXPECT_EQ(told.error, "timeout");
  EXPECT_EQ(told.obtained, kStart);
  dns.now += 999ms;
  EXPECT_EQ(dns.step(), Step::serve);
  dns.now += 1ms;
  EXPECT_EQ(dns.step(), Step::serve_and_ask);
  dns.now += 3999ms;
  EXPECT_EQ(dns.step(), Step::serve_and_ask);
  dns.now += 1ms;  // five seconds after the failure it may have passed
  EXPECT_EQ(dns.step(), Step::ask_briefly);
  dns.says(2, 60s);
  EXPECT_EQ(dns.step(), Step::serve);
  EXPECT_EQ(dns.served(), 2u);
  EXPECT_EQ(dns.cache.find(kMail, dns.now).answer->error, "");
}

TEST(Cache, an_expired_answer_does_not_serve_for_ever) {
  Told dns(options(1s, 1h, 30s));
  dns.says(1, 60s);
  dns.now = kStart + 89999ms;
  EXPECT_TRUE(dns.fails().stale);
  dns.now = kStart + 90s;
  EXPECT_EQ(dns.step(), Step::ask);
  EXPECT_FALSE(dns.fails().found());
  EXPECT_EQ(dns.cache.size(), 1u);
}

TEST(Cache, a_failure_leaves_a_fresh_answer_fresh) {
  Told dns;
  dns.says(1, 60s);
  dns.now = kStart + 10s;
  EXPECT_EQ(dns.fails().error, "timeout");
  EXPECT_EQ(dns.step(), Step::serve);
  EXPECT_FALSE(dns.stale());
  dns.now = kStart + 59999ms;
  EXPECT_EQ(dns.step(), Step::serve);
}

TEST(Cache, knows_what_was_asked_within_the_last_second) {
  Told dns;
  EXPECT_EQ(dns.cache.asked_lately(kMail, dns.now), nullptr);
  dns.cache.store(kMail, answer(1), 60s, kStart, kStart + 300ms);
  ASSERT_NE(dns.cache.asked_lately(kMail, kStart + 999ms), nullptr);
  EXPECT_EQ(dns.cache.asked_lately(kMail, kStart + 1s), nullptr);
  dns.now = kStart + 10s;
  dns.fails();
  ASSERT_NE(dns.cache.asked_lately(kMail, kStart + 10999ms), nullptr);
  EXPECT_EQ(dns.cache.asked_lately(kMail, kStart + 10999ms)->addresses, answer(1).addresses);
  EXPECT_EQ(dns.cache.asked_lately(kMail, kStart + 11s), nullptr);
}

TEST(Cache, other_options_count_for_what_is_there) {
  Told dns(options(1s, 1h, 1h));
  dns.says(1, 600s);
  dns.cache.configure(options(1s, 60s, 5s), dns.now);
  dns.now = kStart + 59999ms;
  EXPECT_EQ(dns.step(), Step::serve);
  dns.now = kStart + 60s;
  EXPECT_EQ(dns.step(), Step::ask_briefly);
  dns.now = kStart + 65s;
  EXPECT_EQ(dns.step(), Step::ask);
}

TEST(Cache, what_other_servers_said_has_expired_but_serves_in_need) {
  Told dns;
  dns.says(1, 600s);
  dns.fails();
  Options other;
  other.servers = {{IpAddress::v4(0x7f000001), 53}};
  dns.cache.configure(other, dns.now);
  EXPECT_EQ(dns.step(), Step::ask_briefly);  // not failing: those were others
  EXPECT_TRUE(dns.fails().stale);
}

TEST(Cache, knows_families_and_services_apart) {
  Told dns;
  dns.says(1, 60s);
  EXPECT_EQ(dns.served({"mail.test", Family::v4}), std::nullopt);
  EXPECT_EQ(dns.served({"mail.test", Family::any, true}), std::nullopt);
}

TEST(Cache, replaces_and_never_grows_past_its_bound_dropping_the_oldest) {
  Told dns({}, 2);
  const Key a{"a", Family::v4}, b{"b", Family::v4}, c{"c", Family::v4};
  dns.says(1, 60s, a);
  dns.says(2, 60s, b);
  dns.says(3, 60s, a);  // now the newest
  dns.says(4, 60s, c);
  EXPECT_EQ(dns.cache.size(), 2u);
  EXPECT_EQ(dns.served(b), std::nullopt);
  EXPECT_EQ(dns.served(a), 3u);
  EXPECT_EQ(dns.served(c), 4u);
}

}  // namespace
}  // namespace penstock::dns
