// SPDX-License-Identifier: Apache-2.0
// Lanes changed by command while bytes flow both ways: nothing lost, doubled or swapped, in whatever order
// and however often. PENSTOCK_CYCLES (default 200) is the number of changes per direction.
#include <cstdlib>

#include "netns/edge.h"
#include "support/raw_segment.h"

namespace penstock::test {
namespace {

int cycles() {
  const char* text = std::getenv("PENSTOCK_CYCLES");
  return text != nullptr ? std::atoi(text) : 200;
}

class Lane : public Edge {
 protected:
  // Both peers send as fast as the path takes it, `before_send` on the client's thread. Each of `lanes` is
  // ordered in turn, in both directions, cycles() times each.
  void cycle(const std::vector<std::string>& lanes,
             std::function<void(const TcpStream&, uint64_t)> before_send = {}) {
    start();
    if (!sockmap()) GTEST_SKIP() << "engine " << daemon_->engine() << ": everything is relayed";
    const TcpListener server(at(kAddress, kServerPort));
    const auto [client, upstream] = open_flow(server);
    const std::string cookie = daemon_->flows()[0].at("cookie");
    PatternSender::Options up_options;
    if (before_send) {
      up_options.chunk_bytes_max = 4000;
      up_options.before_send = [&](uint64_t offset) { before_send(client, offset); };
    }
    PatternReader at_server(upstream, 1), at_client(client, 2);
    PatternSender up(client, 1, up_options), down(upstream, 2);
    for (int i = 0; i < cycles(); ++i) {
      for (const auto& lane : lanes) {
        for (const char* direction : {"up", "down"}) order(cookie, direction, lane);
        // Bytes in each lane, or only the command would have been tested.
        const uint64_t seen_up = at_server.received(), seen_down = at_client.received();
        if (lane != "held") {
          ASSERT_TRUE(wait_until([&] {
            return at_server.received() > seen_up && at_client.received() > seen_down;
          })) << "nothing moves in "
              << lane << ": " << daemon_->flows();
        }
      }
      if (HasFatalFailure()) return;
    }
    const uint64_t changes = daemon_->totals().at("lane_changes").value("ordered", uint64_t{0});
    EXPECT_GE(changes, static_cast<uint64_t>(cycles()));
    up.stop();
    down.stop();
    const uint64_t sent_up = up.finish(), sent_down = down.finish();
    const auto upward = at_server.finish(), downward = at_client.finish();
    EXPECT_EQ(upward.wrong_at, std::nullopt);
    EXPECT_EQ(downward.wrong_at, std::nullopt);
    EXPECT_EQ(upward.bytes, sent_up);
    EXPECT_EQ(downward.bytes, sent_down);
    EXPECT_EQ(upward.end, End::fin);
    EXPECT_EQ(downward.end, End::fin);
    EXPECT_TRUE(closed_for("completed"));
  }

 private:
  // A direction may be on its way elsewhere (held by the kernel, say) and refuse: ask until it takes the
  // order.
  void order(const std::string& cookie, const std::string& direction, const std::string& lane) {
    std::string refusal;
    ASSERT_TRUE(wait_until([&] { return (refusal = daemon_->order_lane(cookie, direction, lane)).empty(); }))
        << direction << " to " << lane << ": " << refusal;
  }
};
INSTANTIATE_TEST_SUITE_P(engine, Lane, testing::Values("auto"), engine_name);

// 0-3 bytes of a segment repeat what was sent, the rest is what the client will send next; or all of it is
// from ahead.
auto overlapping(const RawSegments& raw) {
  return [&raw](const TcpStream& stream, uint64_t offset) {
    if (offset < 2000 || offset % 7 != 0) return;
    const int32_t shift = offset % 3 == 0 ? 700 : -static_cast<int32_t>(1 + offset % 1200);
    raw.inject(stream, shift, pattern(1, 1300, offset + static_cast<uint64_t>(static_cast<int64_t>(shift))));
  };
}

TEST_P(Lane, HeldAndBack) {
  cycle({"held", "splice"});
}
TEST_P(Lane, RelayAndBack) {
  cycle({"relay", "splice"});
}
TEST_P(Lane, HeldThenRelayAndBack) {
  cycle({"held", "relay", "splice"});
}

TEST_P(Lane, HeldAndBackWithOverlappingSegments) {
  const RawSegments raw;
  cycle({"held", "splice"}, overlapping(raw));
}

TEST_P(Lane, HeldThenRelayAndBackWithOverlappingSegments) {
  const RawSegments raw;
  cycle({"held", "relay", "splice"}, overlapping(raw));
}

TEST_P(Lane, OverlapInTheSplice) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  const auto [client, upstream] = open_flow(server);
  const RawSegments raw;
  client.send_all("0123456789");
  EXPECT_EQ(upstream.recv_exactly(10), "0123456789");
  raw.inject(client, -4, "6789ABCDEF");
  EXPECT_EQ(upstream.recv_exactly(6), "ABCDEF");
  client.send_all("ABCDEFGH");
  EXPECT_EQ(upstream.recv_exactly(2), "GH");
}

TEST_P(Lane, QuietRelayGoesBackToSplice) {
  start();
  if (!sockmap()) GTEST_SKIP() << "engine " << daemon_->engine() << ": everything is relayed";
  const TcpListener server(at(kAddress, kServerPort));
  const auto [client, upstream] = open_flow(server);
  const std::string cookie = daemon_->flows()[0].at("cookie");
  ASSERT_EQ(daemon_->order_lane(cookie, "up", "relay"), "");
  EXPECT_TRUE(daemon_->wait_lane("up", "relay"));
  EXPECT_TRUE(daemon_->wait_lane("up", "splice"));
  client.send_all("again");
  EXPECT_EQ(upstream.recv_exactly(5), "again");
}

TEST_P(Lane, FinInEveryLane) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  for (const std::string lane : {"splice", "held", "relay"}) {
    const auto [client, upstream] = open_flow(server);
    const std::string cookie = daemon_->flows()[0].at("cookie");
    if (lane != "splice") {
      ASSERT_EQ(daemon_->order_lane(cookie, "up", lane), "");
    }
    PatternReader at_server(upstream, 5);
    PatternSender up(client, 5, {.bytes_max = 3 << 20});
    up.finish();
    const auto result = at_server.finish();
    EXPECT_EQ(result.bytes, 3u << 20) << lane;
    EXPECT_EQ(result.wrong_at, std::nullopt) << lane;
    EXPECT_EQ(result.end, End::fin) << lane;
    upstream.half_close();
    EXPECT_EQ(client.recv_to_end(), End::fin) << lane;
    ASSERT_TRUE(daemon_->wait_active(0));
  }
  EXPECT_TRUE(closed_for("completed", 3));
}

TEST_P(Lane, OrdersForNobodyAreRefused) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  EXPECT_NE(daemon_->order_lane("12345", "up", "relay"), "");
  const auto [client, upstream] = open_flow(server);
  const std::string cookie = daemon_->flows()[0].at("cookie");
  EXPECT_NE(daemon_->order_lane(cookie, "sideways", "relay"), "");
  EXPECT_NE(daemon_->order_lane(cookie, "up", "express"), "");
}

}  // namespace
}  // namespace penstock::test
