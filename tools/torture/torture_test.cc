// SPDX-License-Identifier: Apache-2.0
// The generator's own proof, on paper: plans cannot deadlock, right bytes are told from wrong ones, and each
// way a stream can be spoilt has its word. faulty_relay_test.cc shows the same over real sockets.
#include <gtest/gtest.h>

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
      const LifePlan plan = plan_life(7, i, {mix});
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
