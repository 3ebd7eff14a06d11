// SPDX-License-Identifier: Apache-2.0
// A FIN is passed on after the last byte before it, in that direction alone; a stalled reader loses nothing.
#include <fmt/core.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <fstream>

#include "netns/edge.h"
#include "support/raw_segment.h"

namespace penstock::test {
namespace {

class HalfClose : public Edge {};
FOR_BOTH_ENGINES(HalfClose);

constexpr uint64_t kBulkBytes = 32 << 20;

void expect_whole(const PatternReader::Result& result, uint64_t bytes) {
  EXPECT_EQ(result.bytes, bytes);
  EXPECT_EQ(result.wrong_at, std::nullopt);
  EXPECT_EQ(result.end, End::fin);
}

TEST_P(HalfClose, ClientFirstThenMuchFromTheServer) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  PatternReader at_server(upstream, 1), at_client(client, 2);
  PatternSender up(client, 1, {.bytes_max = kBulkBytes});
  expect_whole(at_server.finish(), kBulkBytes);
  EXPECT_TRUE(daemon_->wait_lane("up", "shut"));
  PatternSender down(upstream, 2, {.bytes_max = kBulkBytes});
  expect_whole(at_client.finish(), kBulkBytes);
  EXPECT_TRUE(closed_for("completed"));
}

TEST_P(HalfClose, ServerFirstThenMuchFromTheClient) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  PatternReader at_server(upstream, 1), at_client(client, 2);
  PatternSender down(upstream, 2, {.bytes_max = kBulkBytes});
  expect_whole(at_client.finish(), kBulkBytes);
  EXPECT_TRUE(daemon_->wait_lane("down", "shut"));
  PatternSender up(client, 1, {.bytes_max = kBulkBytes});
  expect_whole(at_server.finish(), kBulkBytes);
  EXPECT_TRUE(closed_for("completed"));
}

// All of the segment's data was read before; only its FIN is new.
TEST_P(HalfClose, OldDataOnceMoreWithTheFin) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  client.send_all("hello");
  EXPECT_EQ(upstream.recv_exactly(5), "hello");
  RawSegments().repeat_with_fin(client, "hello");
  client.half_close();
  std::string rest;
  EXPECT_EQ(upstream.recv_to_end(&rest), End::fin);
  EXPECT_EQ(rest, "");
  upstream.send_all("bye");
  upstream.half_close();
  EXPECT_EQ(client.recv_to_end(&rest), End::fin);
  EXPECT_EQ(rest, "bye");
  EXPECT_TRUE(closed_for("completed"));
}

TEST_P(HalfClose, BothSidesInTheMiddleOfEachOthersData) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  PatternReader at_server(upstream, 1), at_client(client, 2);
  PatternSender up(client, 1, {.bytes_max = kBulkBytes / 4}), down(upstream, 2, {.bytes_max = kBulkBytes});
  expect_whole(at_server.finish(), kBulkBytes / 4);
  expect_whole(at_client.finish(), kBulkBytes);
  EXPECT_TRUE(closed_for("completed"));
}

TEST_P(HalfClose, ReaderStallsThenReadsAll) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  PatternReader at_server(upstream, 1);
  at_server.pause();
  PatternSender up(client, 1, {.bytes_max = 4 * kBulkBytes});
  if (sockmap()) {
    EXPECT_TRUE(wait_until([&] {
      return daemon_->flows()[0].at("directions").at("up").at("lane") != "splice";
    })) << daemon_->flows();
  }
  // The sender is stopped by TCP: twice the same count with nobody reading.
  uint64_t before = 0;
  EXPECT_TRUE(wait_until([&] {
    std::this_thread::sleep_for(50ms);
    return std::exchange(before, up.sent()) == up.sent() && before > 0;
  }));
  EXPECT_LT(up.sent(), 4 * kBulkBytes);
  at_server.resume();
  EXPECT_EQ(up.finish(), 4 * kBulkBytes);
  expect_whole(at_server.finish(), 4 * kBulkBytes);
}

// The FIN comes while the direction is out of the splice lane: it may not overtake what is held.
TEST_P(HalfClose, FinWhileTheReaderStalls) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  PatternReader at_server(upstream, 1);
  at_server.pause();
  constexpr uint64_t kBytes = 7 << 20;
  PatternSender up(client, 1, {.bytes_max = kBytes});
  wait_until([&] { return up.sent() == kBytes; }, 500ms);  // most of it is somewhere in between
  at_server.resume();
  up.finish();
  expect_whole(at_server.finish(), kBytes);
}

// A socket that nobody holds is given up by the kernel sooner than one that somebody does: the flow lasts as
// long as there are bytes on their way, though both FINs are passed on.
TEST_P(HalfClose, BehindBothFinsTheReaderStillHasItsTime) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  client.set_receive_buffer(16 << 10);
  client.half_close();
  EXPECT_EQ(upstream.recv_to_end(), End::fin);
  constexpr uint64_t kBytes = 160 << 10;
  PatternSender down(upstream, 2, {.bytes_max = kBytes});
  EXPECT_TRUE(daemon_->wait_lane("down", "shut"));
  EXPECT_EQ(daemon_->flows()[0].at("directions").at("up").at("lane"), "shut");
  PatternReader at_client(client, 2);
  expect_whole(at_client.finish(), kBytes);
  EXPECT_TRUE(closed_for("completed"));
}

bool has_socket(uint16_t local_port) {
  std::ifstream table("/proc/thread-self/net/tcp");
  const std::string port = fmt::format(":{:04X} ", local_port);
  for (std::string line; std::getline(table, line);)
    if (const size_t at = line.find(": "); at != line.npos && line.find(port, at) == at + 10) return true;
  return false;
}

// The client said FIN, closed, and its host has forgotten the connection when the server's FIN comes: it
// answers with a RST. That is the client's own end, and takes nothing from the server.
TEST_P(HalfClose, ARstBehindBothFinsLeavesTheOtherSideItsBytes) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  server.set_receive_buffer(16 << 10);
  auto [client, upstream] = open_flow(server);
  constexpr uint64_t kBytes = 160 << 10;
  const uint16_t port = client.local().port;
  {
    PatternSender up(client, 1, {.bytes_max = kBytes});
    up.finish();
  }
  EXPECT_TRUE(daemon_->wait_lane("up", "shut"));
  const int one_second = 1;
  ASSERT_EQ(setsockopt(client.fd(), IPPROTO_TCP, TCP_LINGER2, &one_second, sizeof one_second), 0);
  client.close();
  ASSERT_TRUE(wait_until([&] { return !has_socket(port); }));
  upstream.half_close();
  EXPECT_TRUE(daemon_->wait_lane("down", "shut"));
  PatternReader at_server(upstream, 1);
  expect_whole(at_server.finish(), kBytes);
  EXPECT_TRUE(closed_for("completed"));
}

TEST_P(HalfClose, SlowReaderGetsEverything) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  upstream.set_receive_buffer(32 << 10);
  PatternReader at_server(upstream, 1);
  PatternSender up(client, 1, {.bytes_max = kBulkBytes});
  for (int stall = 0; stall < 20; ++stall) {
    at_server.pause();
    const uint64_t then = at_server.received();
    std::this_thread::sleep_for(20ms);  // the slowness itself: nothing is waited for
    at_server.resume();
    wait_until([&] { return at_server.received() > then + (1 << 20); }, 1s);
  }
  up.finish();
  expect_whole(at_server.finish(), kBulkBytes);
}

}  // namespace
}  // namespace penstock::test
