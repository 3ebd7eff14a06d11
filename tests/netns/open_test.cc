// SPDX-License-Identifier: Apache-2.0
// From accept to open: whoever speaks first and however early.
#include <cstdlib>
#include <cstring>
#include <vector>

#include "netns/edge.h"

namespace penstock::test {
namespace {

class Open : public Edge {};
FOR_BOTH_ENGINES(Open);

TEST_P(Open, CarriesBothWays) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  client.send_all("EHLO client\r\n");
  EXPECT_EQ(upstream.recv_line(), "EHLO client\r");
  upstream.send_all("250 server\r\n");
  EXPECT_EQ(client.recv_line(), "250 server\r");
  client.half_close();
  EXPECT_EQ(upstream.recv_to_end(), End::fin);
  upstream.half_close();
  EXPECT_EQ(client.recv_to_end(), End::fin);
  EXPECT_TRUE(closed_for("completed"));
}

TEST_P(Open, LaneFollowsTheEngine) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  const char* lane = sockmap() ? "splice" : "relay";
  EXPECT_TRUE(daemon_->wait_lane("up", lane)) << daemon_->flows();
  EXPECT_TRUE(daemon_->wait_lane("down", lane)) << daemon_->flows();
}

// By SO_REUSEPORT's hash alone twelve flows would come as evenly as this, at every step, once in 64.
TEST_P(Open, EveryThreadHasItsShare) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  std::vector<Pair> flows;
  for (int i = 0; i < 12; ++i) {
    TcpStream client = connect();
    flows.push_back({std::move(client), server.accept()});
    int of_thread[2] = {0, 0};
    for (const Json& flow : daemon_->flows()) of_thread[flow.at("thread").get<int>()]++;
    EXPECT_LE(std::abs(of_thread[0] - of_thread[1]), 1) << daemon_->flows();
  }
}

TEST_P(Open, ServerSpeaksFirst) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  const TcpStream client = connect();
  const TcpStream upstream = server.accept();
  upstream.send_all("220 mailbox ESMTP\r\n");
  EXPECT_EQ(client.recv_line(), "220 mailbox ESMTP\r");
}

TEST_P(Open, DataBeforeTheDialIsDone) {
  start("[timeouts]\nconnect = \"60s\"\n");
  // A full accept queue: the daemon's SYN is dropped and sent again after a second.
  std::optional<TcpListener> server(std::in_place, at(kAddress, kServerPort), 0);
  const TcpStream in_the_way = TcpStream::connect(server->address());
  const TcpStream client = connect();
  client.send_all("early ");
  daemon_->wait_flow("dialing");
  client.send_all("and late");
  const TcpStream first_out = server->accept();
  const TcpStream upstream = server->accept();
  EXPECT_EQ(upstream.recv_exactly(14), "early and late");
}

TEST_P(Open, ManyBytesBeforeTheDialIsDone) {
  start("[timeouts]\nconnect = \"60s\"\n");
  std::optional<TcpListener> server(std::in_place, at(kAddress, kServerPort), 0);
  const TcpStream in_the_way = TcpStream::connect(server->address());
  const TcpStream client = connect();
  PatternSender sender(client, 1, {.bytes_max = 4 << 20});
  daemon_->wait_flow("dialing");
  const TcpStream first_out = server->accept();
  const TcpStream upstream = server->accept();
  PatternReader reader(upstream, 1);
  EXPECT_EQ(sender.finish(), 4u << 20);
  const auto result = reader.finish();
  EXPECT_EQ(result.bytes, 4u << 20);
  EXPECT_EQ(result.wrong_at, std::nullopt);
  EXPECT_EQ(result.end, End::fin);
}

// Everything of the client is there, its FIN too, before the hand-off has begun; the answer comes after it.
TEST_P(Open, DataAndFinAtOnce) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  for (int round = 0; round < 50; ++round) {
    const TcpStream client = connect();
    client.send_all_with_fin("QUIT\r\n");
    const TcpStream upstream = server.accept();
    std::string received;
    ASSERT_EQ(upstream.recv_to_end(&received), End::fin);
    ASSERT_EQ(received, "QUIT\r\n");
    upstream.send_all_with_fin("221 bye\r\n");
    std::string answer;
    ASSERT_EQ(client.recv_to_end(&answer), End::fin);
    ASSERT_EQ(answer, "221 bye\r\n");
  }
  EXPECT_TRUE(closed_for("completed", 50));
}

TEST_P(Open, ClientHalfClosedBeforeTheHandOff) {
  start("[timeouts]\nconnect = \"60s\"\n");
  std::optional<TcpListener> server(std::in_place, at(kAddress, kServerPort), 0);
  const TcpStream in_the_way = TcpStream::connect(server->address());
  const TcpStream client = connect();
  client.send_all_with_fin(pattern(7, 100'000));
  daemon_->wait_flow("dialing");
  const TcpStream first_out = server->accept();
  const TcpStream upstream = server->accept();
  PatternReader request(upstream, 7);
  EXPECT_EQ(request.finish().bytes, 100'000u);
  PatternSender answer(upstream, 8, {.bytes_max = 1 << 20});
  PatternReader reader(client, 8);
  answer.finish();
  const auto result = reader.finish();
  EXPECT_EQ(result.bytes, 1u << 20);
  EXPECT_EQ(result.wrong_at, std::nullopt);
  EXPECT_EQ(result.end, End::fin);
  EXPECT_TRUE(closed_for("completed"));
}

// The hand-off happens at another instant of the stream each time.
TEST_P(Open, DataFlowsBothWaysDuringTheHandOff) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  for (uint64_t round = 0; round < 40; ++round) {
    const TcpStream client = connect();
    PatternSender up(client, 2 * round, {.bytes_max = 300'000, .chunk_bytes_max = 1 + 97 * round});
    const TcpStream upstream = server.accept();
    PatternSender down(upstream, 2 * round + 1, {.bytes_max = 300'000, .chunk_bytes_max = 4000});
    PatternReader at_server(upstream, 2 * round), at_client(client, 2 * round + 1);
    up.finish();
    down.finish();
    const auto upward = at_server.finish(), downward = at_client.finish();
    ASSERT_EQ(upward.wrong_at, std::nullopt) << round;
    ASSERT_EQ(downward.wrong_at, std::nullopt) << round;
    ASSERT_EQ(upward.bytes, 300'000u) << round;
    ASSERT_EQ(downward.bytes, 300'000u) << round;
    ASSERT_EQ(upward.end, End::fin);
    ASSERT_EQ(downward.end, End::fin);
  }
  EXPECT_TRUE(closed_for("completed", 40));
}

TEST_P(Open, ClosedByEverybodyAtOnce) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  for (int round = 0; round < 50; ++round) {
    TcpStream client = connect();
    TcpStream upstream = server.accept();
    client.half_close();
    upstream.half_close();
    ASSERT_EQ(client.recv_to_end(), End::fin);
    ASSERT_EQ(upstream.recv_to_end(), End::fin);
  }
  EXPECT_TRUE(closed_for("completed", 50));
}

}  // namespace
}  // namespace penstock::test
