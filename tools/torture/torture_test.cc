// SPDX-License-Identifier: Apache-2.0
// The generator's own proof, on paper: plans cannot deadlock, right bytes are told from wrong ones, and each
// way a stream can be spoilt has its word. faulty_relay_test.cc shows the same over real sockets.
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <vector>

#include "pattern.h"
#include "proxy_header.h"
#include "verdict.h"

namespace penstock::torture {
namespace {

using namespace std::string_literals;

constexpr uint64_t kPlans = 5000;

struct OnPaper {
  uint64_t sent = 0, received = 0;
  bool fin_sent = false, fin_seen = false;
  size_t gate = 0;
};

// Both ends do all they may until neither can.
std::array<OnPaper, 2> play(const LifePlan& plan) {
  std::array<OnPaper, 2> ends;
  for (bool moved = true; moved;) {
    moved = false;
    for (Side side : {Side::client, Side::server}) {
      const EndPlan& mine = plan.end(side);
      OnPaper& end = ends[index_of(side)];
      OnPaper& peer = ends[index_of(other(side))];
      while (end.gate < mine.gates.size()) {
        const uint64_t until = mine.gates[end.gate].until;
        if (until == kUntilFin ? !end.fin_seen : end.received < until) break;
        ++end.gate;
      }
      const bool open = end.gate == mine.gates.size();
      const uint64_t limit = open ? mine.send_bytes : mine.gates[end.gate].at;
      moved |= limit > end.sent || (open && !end.fin_sent);
      end.sent = peer.received = std::max(limit, end.sent);
      end.fin_sent = peer.fin_seen = open;
    }
  }
  return ends;
}

TEST(Plan, EveryLifeEndsWithBothFins) {
  for (Mix mix : {Mix::mixed, Mix::brief, Mix::bulk, Mix::pingpong, Mix::mail}) {
    for (uint64_t i = 0; i < kPlans; ++i) {
      const LifePlan plan = plan_life(7, i, {mix}, {.proxy_header = i % 2 == 0, .client_hello = i % 3 == 0});
      const auto ends = play(plan);
      for (Side side : {Side::client, Side::server}) {
        ASSERT_EQ(ends[index_of(side)].sent, plan.end(side).send_bytes) << i << " " << describe(plan);
        ASSERT_TRUE(ends[index_of(side)].fin_sent) << i << " " << describe(plan);
      }
    }
  }
}

TEST(Plan, IsTheSameForTheSameSeedAndNumber) {
  EXPECT_EQ(describe(plan_life(1, 42, {})), describe(plan_life(1, 42, {})));
  EXPECT_NE(describe(plan_life(1, 42, {})), describe(plan_life(2, 42, {})));
  EXPECT_NE(plan_life(1, 42, {}).seed, plan_life(1, 43, {}).seed);
}

TEST(Plan, KeepsToTheLargestSize) {
  Recipe recipe;
  recipe.bytes_max = 10'000;
  for (uint64_t i = 0; i < kPlans; ++i) {
    const LifePlan plan = plan_life(3, i, recipe);
    if (plan.shape == "ping_pong" || plan.shape == "mail") continue;  // small by nature
    for (const EndPlan& end : plan.ends) ASSERT_LE(end.send_bytes, recipe.bytes_max) << describe(plan);
  }
}

TEST(Plan, SizesAreAsPromised) {
  uint64_t small = 0, medium = 0, large = 0, giant = 0, all = 0;
  for (uint64_t i = 0; i < 400'000; ++i) {
    const LifePlan plan = plan_life(11, i, {});
    if (plan.shape == "bursts") continue;
    for (const EndPlan& end : plan.ends) {
      ++all;
      const uint64_t bytes = end.send_bytes;
      ++(bytes <= 256 << 10 ? small : bytes <= 16 << 20 ? medium : bytes <= 64 << 20 ? large : giant);
    }
    ASSERT_LE(std::min(plan.ends[0].send_bytes, plan.ends[1].send_bytes), 64u << 20);
  }
  EXPECT_GT(small, all * 985 / 1000);
  EXPECT_GT(medium, all * 2 / 1000);
  EXPECT_GT(large, all * 5 / 10'000);
  EXPECT_GE(giant, 1u);
  EXPECT_LE(giant, 12u);
}

TEST(Plan, RstComesAtEveryMoment) {
  std::map<Reset::When, std::array<uint64_t, 2>> seen;
  uint64_t in_hello = 0, before_the_first_byte = 0;
  for (uint64_t i = 0; i < 20'000; ++i) {
    const LifePlan plan = plan_life(3, i, {}, {.proxy_header = true, .client_hello = true});
    for (Side side : {Side::client, Side::server}) {
      const EndPlan& end = plan.end(side);
      if (!end.reset) continue;
      ++seen[end.reset->when][index_of(side)];
      in_hello +=
          end.reset->when == Reset::When::sent && end.reset->at > 0 && end.reset->at < end.opening.size();
      before_the_first_byte += end.reset->when == Reset::When::header && end.reset->at == 0;
    }
  }
  EXPECT_EQ(seen.size(), 5u);
  for (const auto& [when, by_side] : seen) {
    EXPECT_GT(by_side[0], 0u);
    EXPECT_EQ(by_side[1] > 0, when != Reset::When::header);
  }
  EXPECT_GT(in_hello, 0u);
  EXPECT_GT(before_the_first_byte, 0u);
}

TEST(Opening, ProxyHeadersAreReadAsTheyWereMeant) {
  Dice dice(5);
  for (uint64_t i = 0; i < kPlans; ++i) {
    const Proxied addresses = draw_proxied(dice, i);
    const std::string bytes = make_proxy_header(dice, addresses);
    const ProxyHeader read =
        read_proxy_header(bytes[0] == 'P' ? Preamble::v1 : Preamble::v2, bytes + "stream");
    ASSERT_EQ(read.state, ProxyHeader::State::complete) << bytes;
    EXPECT_EQ(read.header_bytes, bytes.size());
    EXPECT_EQ(read.client, addresses.client);
    EXPECT_EQ(read.destination, addresses.destination);
  }
}

TEST(Opening, NoTwoLivesAreOfOneClient) {
  Dice dice(5);
  std::set<Endpoint> clients;
  for (uint64_t i = 0; i < 100'000; ++i)
    EXPECT_TRUE(clients.insert(draw_proxied(dice, i).client).second) << i;
}

// RFC 8446 4.1.2 and 5.1, by hand.
TEST(Opening, HelloIsWhole) {
  Dice dice(6);
  for (uint64_t i = 0; i < kPlans; ++i) {
    const std::string hello = make_client_hello(dice);
    std::string message;
    for (size_t at = 0; at < hello.size();) {
      ASSERT_EQ(hello.substr(at, 3), "\x16\x03\x01");
      const size_t bytes = static_cast<uint8_t>(hello[at + 3]) << 8 | static_cast<uint8_t>(hello[at + 4]);
      ASSERT_GT(bytes, 0u);
      ASSERT_LE(at + 5 + bytes, hello.size());
      message += hello.substr(at + 5, bytes);
      at += 5 + bytes;
    }
    ASSERT_GE(message.size(), 4u);
    ASSERT_EQ(message[0], 1);
    const size_t bytes = static_cast<uint8_t>(message[2]) << 8 | static_cast<uint8_t>(message[3]);
    EXPECT_EQ(message.size(), 4 + bytes);
    EXPECT_NE(message.find("." + std::string(kServerDomain)), message.npos);
  }
}

TEST(Pattern, BeginsWithTheOpening) {
  const Pattern pattern(99, Side::client, "hello");
  iovec pieces[Pattern::kIovMax];
  std::string bytes;
  for (int i = 0, n = pattern.gather(2, 100, pieces); i < n; ++i)
    bytes.append(static_cast<const char*>(pieces[i].iov_base), pieces[i].iov_len);
  EXPECT_EQ(bytes.substr(0, 3), "llo");
  const std::span<const uint8_t> span(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  EXPECT_EQ(pattern.count_right(2, span), 100u);
  EXPECT_EQ(pattern.count_right(1, span), 0u);
  bytes[2] = 'x';
  EXPECT_EQ(pattern.count_right(2, span), 2u);
}

TEST(Pattern, GatheredBytesAreRightWhereTheyStandAndNowhereElse) {
  const Pattern pattern(99, Side::client);
  constexpr size_t kLength = 200'000;
  iovec pieces[Pattern::kIovMax];
  std::vector<uint8_t> bytes;
  for (int i = 0, n = pattern.gather(12'345, kLength, pieces); i < n; ++i) {
    const auto* at = static_cast<const uint8_t*>(pieces[i].iov_base);
    bytes.insert(bytes.end(), at, at + pieces[i].iov_len);
  }
  ASSERT_EQ(bytes.size(), kLength);
  EXPECT_EQ(pattern.count_right(12'345, bytes), kLength);
  EXPECT_LT(pattern.count_right(12'346, bytes), 8u);
  EXPECT_LT(Pattern(99, Side::server).count_right(12'345, bytes), 8u);
  EXPECT_EQ(pattern.displacement(12'345 - 4096, bytes), 4096);
  EXPECT_EQ(pattern.displacement(12'345 + 1, bytes), -1);
  bytes[70'000] ^= 1;
  EXPECT_EQ(pattern.count_right(12'345, bytes), 70'000u);
}

// client → server 100 bytes, server → client 50.
struct Judged {
  LifePlan plan;
  EndReport client, server;
  bool hung = false;
  Judged() {
    plan.end(Side::client).send_bytes = 100;
    plan.end(Side::server).send_bytes = 50;
    client = {.arrived = true, .sent = 100, .received = 50, .fin_sent = true, .fin_seen = true};
    server = {.arrived = true, .sent = 50, .received = 100, .fin_sent = true, .fin_seen = true};
  }
  Failure verdict() const { return judge(plan, client, server, hung).failure; }
  void client_resets_at(uint64_t sent, uint64_t received) {
    client = {.arrived = true, .sent = sent, .received = received, .reset_sent = true, .error = 0};
  }
};

TEST(Verdict, WholeStreamsAreFine) {
  EXPECT_EQ(Judged().verdict(), Failure::none);
}

TEST(Verdict, WrongByte) {
  Judged j;
  j.server.wrong_at = 10;
  EXPECT_EQ(j.verdict(), Failure::corrupt);
}

TEST(Verdict, OneByteTooMany) {
  Judged j;
  j.client.received = 51;
  EXPECT_EQ(j.verdict(), Failure::surplus);
}

TEST(Verdict, FinBeforeTheLastByte) {
  Judged j;
  j.server.received = 99;
  EXPECT_EQ(j.verdict(), Failure::truncated);
}

TEST(Verdict, FinThatNobodySent) {
  Judged j;
  j.client.fin_sent = false;
  EXPECT_EQ(j.verdict(), Failure::truncated);
}

TEST(Verdict, RstPassedOn) {
  Judged j;
  j.client_resets_at(40, 0);
  j.server = {.arrived = true, .sent = 50, .received = 20, .reset_seen = true};
  EXPECT_EQ(j.verdict(), Failure::none);
}

TEST(Verdict, RstAfterTheServerHadFinished) {
  Judged j;
  j.client_resets_at(100, 20);
  j.client.fin_sent = true;
  EXPECT_EQ(j.verdict(), Failure::none);
}

TEST(Verdict, RstThatLooksLikeTheEnd) {
  Judged j;
  j.client_resets_at(40, 0);
  j.server.received = 40;
  EXPECT_EQ(j.verdict(), Failure::rst_became_fin);
  j.client_resets_at(100, 0);  // all bytes were sent, and still no FIN
  j.server.received = 100;
  EXPECT_EQ(j.verdict(), Failure::rst_became_fin);
}

TEST(Verdict, RstThatTheServerNeverHeardOf) {
  Judged j;
  j.client_resets_at(40, 0);
  j.server = {.arrived = true, .sent = 50, .received = 40};
  j.hung = true;
  EXPECT_EQ(j.verdict(), Failure::rst_not_passed);
}

TEST(Verdict, RstBeforeTheProxyDialled) {
  Judged j;
  j.client_resets_at(0, 0);
  j.server = {};
  EXPECT_EQ(j.verdict(), Failure::none);
}

TEST(Verdict, RstThatNobodySent) {
  Judged j;
  j.client.fin_seen = false;
  j.client.reset_seen = true;
  EXPECT_EQ(j.verdict(), Failure::unasked_rst);
}

TEST(Verdict, ServedWithoutTheServer) {
  Judged j;
  j.server = {};
  j.client.received = 0;
  EXPECT_EQ(j.verdict(), Failure::never_arrived);
}

TEST(Verdict, OpenEndedStreamIsMeasuredByWhatWasSent) {
  Judged j;
  j.plan.end(Side::client).send_bytes = kWithoutEnd;
  EXPECT_EQ(j.verdict(), Failure::none);
  j.server.received = 99;
  EXPECT_EQ(j.verdict(), Failure::truncated);
}

TEST(ProxyHeader, V2SpelledOut) {
  const std::string bytes =
      "\r\n\r\n\0\r\nQUIT\n"s        // signature
      "\x21\x11"s                    // version 2 PROXY, AF_INET STREAM
      "\0\x0f"s                      // 12 address bytes, 3 of TLV
      "\x7f\x10\0\x01\x7f\0\0\x01"s  // 127.16.0.1 → 127.0.0.1
      "\xc3\x50\0\x19"s              // 50000 → 25
      "\x04\0\0"s                    // NOOP
      "stream";
  for (size_t n = 0; n < 31; ++n) {
    ASSERT_EQ(read_proxy_header(Preamble::v2, bytes.substr(0, n)).state, ProxyHeader::State::need_more) << n;
  }
  const ProxyHeader header = read_proxy_header(Preamble::v2, bytes);
  ASSERT_EQ(header.state, ProxyHeader::State::complete);
  EXPECT_EQ(header.header_bytes, 31u);
  EXPECT_EQ(header.client.text(), "127.16.0.1:50000");
  EXPECT_EQ(header.destination.text(), "127.0.0.1:25");
}

TEST(ProxyHeader, V1) {
  const ProxyHeader header = read_proxy_header(Preamble::v1, "PROXY TCP6 2001:db8::1 ::1 50000 25\r\nEHLO");
  ASSERT_EQ(header.state, ProxyHeader::State::complete);
  EXPECT_EQ(header.header_bytes, 37u);
  EXPECT_EQ(header.client.text(), "[2001:db8::1]:50000");
  EXPECT_EQ(header.destination.text(), "[::1]:25");
  EXPECT_EQ(read_proxy_header(Preamble::v1, "EHLO there\r\n").state, ProxyHeader::State::bad);
  EXPECT_EQ(read_proxy_header(Preamble::v1, "PROXY TCP4 127").state, ProxyHeader::State::need_more);
}

}  // namespace
}  // namespace penstock::torture
