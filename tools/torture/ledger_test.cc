// SPDX-License-Identifier: Apache-2.0
// What penstockd's log may say of a life, on paper.
#include "ledger.h"

#include <gtest/gtest.h>

namespace penstock::torture {
namespace {

constexpr std::string_view kLine =
    "2026-11-21T19:28:18.449Z info  flow cookie=4711 client=198.18.0.7:1031 listener=tls sni=a.torture.test "
    "upstream=server proxy=127.16.0.9:40000 server=127.0.0.1:7001 up=100 up_relayed=0 up_lanes=0 down=50 "
    "down_relayed=0 down_lanes=1 ms=3 reason=completed";
constexpr std::string_view kNextLine =
    "2026-11-21T19:28:18.450Z info  flow cookie=4713 client=198.18.0.7:1031 listener=tls sni=a.torture.test "
    "upstream=server proxy=127.16.0.9:40000 server=127.0.0.1:7001 up=100 up_relayed=0 up_lanes=0 down=50 "
    "down_relayed=0 down_lanes=1 ms=3 reason=completed";

TEST(FlowLine, IsReadAsWhoConnected) {
  const auto line = parse_flow_line(kLine);
  ASSERT_TRUE(line);
  EXPECT_EQ(line->peer.text(), "127.16.0.9:40000");
  EXPECT_EQ(line->reason, "completed");
  EXPECT_EQ(line->up_bytes, 100u);
  EXPECT_EQ(line->down_bytes, 50u);
}

TEST(FlowLine, OfARefusalSaysNoBytes) {
  const auto line = parse_flow_line("T info  flow cookie=1 client=[::1]:9 listener=l reason=client_reset");
  ASSERT_TRUE(line);
  EXPECT_EQ(line->peer.text(), "[::1]:9");
  EXPECT_FALSE(line->up_bytes);
}

TEST(FlowLine, IsNoOtherLine) {
  EXPECT_FALSE(parse_flow_line("T warn  upstream server: 127.0.0.1:1: Connection refused"));
}

// client → server 100 bytes, server → client 50, all whole.
struct Over {
  LifePlan plan;
  EndReport client = {.arrived = true, .sent = 100, .received = 50, .fin_sent = true, .fin_seen = true};
  EndReport server = {.arrived = true, .sent = 50, .received = 100, .fin_sent = true, .fin_seen = true};
  FlowLine line = *parse_flow_line(kLine);
  Failure says(std::string_view reason) {
    line.reason = reason;
    return compare(entry_of(7, plan, client, server), line).failure;
  }
};

TEST(Entry, WholeStreamsAreCompletedAndNothingElse) {
  Over life;
  EXPECT_EQ(life.says("completed"), Failure::none);
  EXPECT_EQ(life.says("client_reset"), Failure::wrong_reason);
  EXPECT_EQ(life.says("idle_timeout"), Failure::wrong_reason);
}

TEST(Entry, EachByteOfAWholeStreamIsCounted) {
  Over life;
  life.line.up_bytes = 99;
  EXPECT_EQ(life.says("completed"), Failure::wrong_account);
  life.line.up_bytes = 100;
  life.line.down_bytes = 51;
  EXPECT_EQ(life.says("completed"), Failure::wrong_account);
}

TEST(Entry, AResetIsOfTheSideThatSentIt) {
  Over life;
  life.client = {.arrived = true, .sent = 100, .received = 20, .reset_sent = true};
  life.server = {.arrived = true, .sent = 50, .received = 40, .reset_seen = true};
  life.line.up_bytes = 70;
  life.line.down_bytes = 30;
  EXPECT_EQ(life.says("client_reset"), Failure::none);
  EXPECT_EQ(life.says("upstream_reset"), Failure::wrong_reason);
  EXPECT_EQ(life.says("completed"), Failure::wrong_reason);
  life.line.up_bytes = 39;  // fewer than arrived
  EXPECT_EQ(life.says("client_reset"), Failure::wrong_account);
}

TEST(Entry, AResetAfterBothFinsMayComeTooLate) {
  Over life;
  life.client.reset_sent = true;
  EXPECT_EQ(life.says("client_reset"), Failure::none);
  EXPECT_EQ(life.says("completed"), Failure::none);
}

TEST(Entry, TheIdOfAClientIsCarriedToo) {
  Over life;
  life.plan.end(Side::client).header = "12345678";
  life.line.up_bytes = 108;
  EXPECT_EQ(life.says("completed"), Failure::none);
}

struct Books {
  Options options;
  Tally tally;
  Ledger ledger{options, tally};
  Endpoint peer = parse_flow_line(kLine)->peer;
  uint64_t failures(Failure f) const { return tally.failures[static_cast<size_t>(f)]; }
  LedgerEntry entry() const {
    const Over life;
    return entry_of(7, life.plan, life.client, life.server);
  }
};

TEST(Ledger, LineAndEndComeInEitherOrder) {
  Books books;
  books.ledger.expect(books.peer, books.entry());
  EXPECT_FALSE(books.ledger.complete());
  books.ledger.add_line(kLine);
  EXPECT_TRUE(books.ledger.complete());
  books.ledger.add_line(kNextLine);
  books.ledger.expect(books.peer, books.entry());
  EXPECT_TRUE(books.ledger.complete());
  books.ledger.settle(0);
  EXPECT_EQ(books.tally.failed(), 0u);
  EXPECT_EQ(books.ledger.carried_bytes(), 300u);
}

// A worker died between putting it out and saying so.
TEST(Ledger, TheSameLineTwiceIsOne) {
  Books books;
  books.ledger.expect(books.peer, books.entry());
  books.ledger.add_line(kLine);
  books.ledger.add_line(kLine);
  EXPECT_EQ(books.ledger.carried_bytes(), 150u);
  books.ledger.settle(0);
  EXPECT_EQ(books.tally.failed(), 0u);
}

TEST(Ledger, ALifeWithoutALineIsTold) {
  Books books;
  books.ledger.expect(books.peer, books.entry());
  books.ledger.settle(1);  // the log says itself that a line is missing
  EXPECT_EQ(books.tally.failed(), 0u);
  books.ledger.settle(0);
  EXPECT_EQ(books.failures(Failure::unlogged), 1u);
}

TEST(Ledger, TheLineOfALifeThatFailedIsTold) {
  Books books;
  LedgerEntry failed = books.entry();
  failed.failed = true;
  failed.judged = false;
  testing::internal::CaptureStderr();
  books.ledger.add_line(kLine);
  books.ledger.expect(books.peer, failed);
  EXPECT_NE(testing::internal::GetCapturedStderr().find("its line: " + std::string(kLine)),
            std::string::npos);
}

TEST(Ledger, AnAddressUsedAgainIsAnotherLife) {
  Books books;
  LedgerEntry turned_away = books.entry();
  turned_away.may_be_missing = true;
  turned_away.reasons = {"client_reset"};
  books.ledger.expect(books.peer, turned_away);
  books.ledger.begin(books.peer);
  books.ledger.add_line(kLine);
  books.ledger.expect(books.peer, books.entry());
  EXPECT_EQ(books.tally.failed(), 0u);
}

}  // namespace
}  // namespace penstock::torture
