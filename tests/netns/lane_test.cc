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
  using Send = std::function<void(const TcpStream&, uint64_t offset, std::string_view bytes)>;

  // Both peers send all the time, but at most kAheadBytes ahead of the reader: a saturated direction would
  // choose its lane by itself. Each of `lanes` is ordered in turn, in both directions, cycles() times each.
  // `disturb` runs before each send of the client, on its thread.
  void cycle(const std::vector<std::string>& lanes, const Send& client_send = &plain) {
    start();
    if (!sockmap()) GTEST_SKIP() << "engine " << daemon_->engine() << ": everything is relayed";
    const TcpListener server(at(kAddress, kServerPort));
    const auto [client, upstream] = open_flow(server);
    const std::string cookie = daemon_->flows()[0].at("cookie");
    PatternReader at_server(upstream, 1), at_client(client, 2);
    PatternSender::Options up_options, down_options;
    up_options.chunk_bytes_max = down_options.chunk_bytes_max = 8 << 10;
    up_options.send = [&, peer = &client](uint64_t offset, std::string_view bytes) {
      at_server.wait_received(offset > kAheadBytes ? offset - kAheadBytes : 0);
      client_send(*peer, offset, bytes);
    };
    down_options.send = [&, peer = &upstream](uint64_t offset, std::string_view bytes) {
      at_client.wait_received(offset > kAheadBytes ? offset - kAheadBytes : 0);
      peer->send_all(bytes);
    };
    PatternSender up(client, 1, up_options), down(upstream, 2, down_options);
    for (int i = 0; i < cycles(); ++i) {
      for (const auto& lane : lanes) {
        for (const char* direction : {"up", "down"}) order(cookie, direction, lane);
        if (HasFatalFailure()) return;
        // Bytes in each lane, or only the command would have been tested.
        const uint64_t seen_up = at_server.received(), seen_down = at_client.received();
        if (lane != "held") {
          ASSERT_TRUE(wait_until([&] {
            return at_server.received() > seen_up && at_client.received() > seen_down;
          })) << "nothing moves in "
              << lane << ": " << daemon_->flows();
        }
      }
    }
    // Some orders find the direction where they want it, put there by the kernel.
    const Json directions = daemon_->flows()[0].at("directions");
    for (const auto& shown : directions) {
      EXPECT_GE(shown.at("changes").get<uint64_t>(), lanes.size() * static_cast<uint64_t>(cycles()) / 2)
          << shown;
    }
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
  static constexpr uint64_t kAheadBytes = 128 << 10;

  static void plain(const TcpStream& stream, uint64_t, std::string_view bytes) { stream.send_all(bytes); }

  // A saturated direction goes to relay by itself, and from there it cannot be held: back to the splice
  // first.
  void order(const std::string& cookie, const std::string& direction, const std::string& lane) {
    std::string refusal;
    ASSERT_TRUE(wait_until([&] {
      refusal = daemon_->order_lane(cookie, direction, lane);
      if (!refusal.empty()) daemon_->order_lane(cookie, direction, "splice");
      return refusal.empty();
    })) << direction
        << " to " << lane << ": " << refusal;
  }
};
FOR_ENGINE(Lane, "auto");

// Some chunks as segments that overlap each other and what was sent before, or come in the wrong order.
auto overlapping(const RawSegments& raw) {
  return [&raw](const TcpStream& stream, uint64_t offset, std::string_view bytes) {
    constexpr int32_t kBefore = 1300;
    const auto size = static_cast<int32_t>(bytes.size());
    if (offset < kBefore || offset % 4 == 3) return stream.send_all(bytes);
    const std::string before = pattern(1, kBefore, offset - kBefore);
    const int32_t repeat = static_cast<int32_t>(offset % kBefore);
    if (offset % 4 == 0)
      raw.send_as(stream, before, bytes, {{-1 - repeat, size / 2}, {size / 3, size}});
    else
      raw.send_as(stream, before, bytes,
                  {{size / 2, size}, {-1 - repeat, size / 3}, {size / 4, 3 * size / 4}});
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
  // By the log: it is relay for 20 ms only.
  for (const char* lane : {"up: relay (ordered)", "up: splice (quiet)"})
    EXPECT_TRUE(wait_until([&] { return daemon_->log().find(lane) != std::string::npos; })) << daemon_->log();
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
