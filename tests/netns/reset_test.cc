// SPDX-License-Identifier: Apache-2.0
// A RST at every step of a flow's life is passed on as a RST, never as the clean end of a truncated stream.
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "netns/edge.h"

namespace penstock::test {
namespace {

class Reset : public Edge {};
FOR_BOTH_ENGINES(Reset);

TEST_P(Reset, ByTheClientWhileOpen) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  client.reset();
  EXPECT_EQ(upstream.recv_to_end(), End::reset);
  EXPECT_TRUE(closed_for("client_reset"));
}

TEST_P(Reset, ByTheServerWhileOpen) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  upstream.reset();
  EXPECT_EQ(client.recv_to_end(), End::reset);
  EXPECT_TRUE(closed_for("upstream_reset"));
}

// It has not read what stands before the server's FIN.
TEST_P(Reset, ByTheClientBehindBothFins) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  client.set_receive_buffer(16 << 10);
  client.half_close();
  EXPECT_EQ(upstream.recv_to_end(), End::fin);
  upstream.send_all(std::string(160 << 10, 'x'));
  upstream.half_close();
  EXPECT_TRUE(daemon_->wait_lane("down", "shut"));
  client.reset();
  EXPECT_TRUE(closed_for("client_reset"));
}

TEST_P(Reset, ByTheClientRightAfterItConnected) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  for (int round = 0; round < 100; ++round) connect().reset();
  EXPECT_TRUE(wait_until([&] {
    const Json totals = daemon_->totals();
    return totals.at("accepted") == 100 && totals.at("active") == 0;
  })) << daemon_->status();
  while (auto upstream = server.accept_within(0ms)) EXPECT_EQ(upstream->recv_to_end(), End::reset);
  EXPECT_EQ(daemon_->closed("completed"), 0u);
}

TEST_P(Reset, ByTheClientDuringTheDial) {
  start("[timeouts]\nconnect = \"60s\"\n");
  std::optional<TcpListener> server(std::in_place, at(kAddress, kServerPort), 0);
  const TcpStream in_the_way = TcpStream::connect(server->address());
  TcpStream client = connect();
  client.send_all("half a greeting");
  daemon_->wait_flow("dialing");
  client.reset();
  EXPECT_TRUE(closed_for("client_reset"));
}

TEST_P(Reset, ByTheServerRightAfterItAccepted) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  for (int round = 0; round < 50; ++round) {
    const TcpStream client = connect();
    server.accept().reset();
    ASSERT_EQ(client.recv_to_end(), End::reset);
  }
  EXPECT_TRUE(closed_for("upstream_reset", 50));
}

TEST_P(Reset, WithDataInFlight) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  for (uint64_t round = 0; round < 10; ++round) {
    auto [client, upstream] = open_flow(server);
    {
      PatternSender up(client, 1, {.fin = false});
      PatternSender down(upstream, 2, {.fin = false});
      PatternReader at_server(upstream, 1);
      ASSERT_TRUE(wait_until([&] { return at_server.received() > 100'000 * round; }));
      up.stop();
      up.finish();
      client.reset();
      const auto result = at_server.finish();
      const int sender_heard = down.finish_errno();
      ASSERT_TRUE(result.end == End::reset || sender_heard == ECONNRESET) << std::strerror(sender_heard);
      ASSERT_EQ(result.wrong_at, std::nullopt);
    }
    ASSERT_TRUE(daemon_->wait_active(0));
  }
  EXPECT_TRUE(closed_for("client_reset", 10));
}

// One side has said FIN already; the other then resets.
TEST_P(Reset, ByTheServerAfterTheClientsFin) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  client.send_all_with_fin("QUIT\r\n");
  std::string received;
  EXPECT_EQ(upstream.recv_to_end(&received), End::fin);
  upstream.send_all("221 b");
  EXPECT_EQ(client.recv_exactly(5), "221 b");
  upstream.reset();
  EXPECT_EQ(client.recv_to_end(), End::reset);
  EXPECT_TRUE(closed_for("upstream_reset"));
}

// The client's last bytes are delivered or the stream ends with a RST: never a FIN in between.
TEST_P(Reset, ByTheClientBehindUnreadBytes) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  PatternReader at_server(upstream, 3);
  at_server.pause();
  PatternSender up(client, 3, {.bytes_max = 200'000, .fin = false});
  up.finish();
  client.reset();
  EXPECT_TRUE(closed_for("client_reset"));
  const auto result = at_server.finish();
  EXPECT_EQ(result.end, End::reset);
  EXPECT_EQ(result.wrong_at, std::nullopt);
}

class ResetInLane : public Edge {
 protected:
  // Puts `up` into the lane: relay by order; held because the server does not read.
  void enter(const std::string& lane, const TcpStream& client) {
    if (lane == "relay") {
      const std::string cookie = daemon_->flows()[0].at("cookie");
      ASSERT_TRUE(wait_until([&] {  // by another order, should it have gone back, being quiet, before we look
        EXPECT_EQ(daemon_->order_lane(cookie, "up", lane), "");
        return daemon_->flows()[0].at("directions").at("up").at("lane") == lane;
      })) << daemon_->flows();
      return;
    }
    const std::string chunk = pattern(1, 64 << 10);
    ASSERT_TRUE(wait_until([&] {
      // No more than it takes: with much in the source's queue as well it would go on to relay.
      (void)!::send(client.fd(), chunk.data(), chunk.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
      return daemon_->flows()[0].at("directions").at("up").at("lane") == lane;
    })) << daemon_->flows();
  }
  void client_resets_in(const std::string& lane) {
    start();
    const TcpListener server(at(kAddress, kServerPort));
    auto [client, upstream] = open_flow(server);
    enter(lane, client);
    client.reset();
    EXPECT_EQ(upstream.recv_to_end(), End::reset);
    EXPECT_TRUE(closed_for("client_reset"));
  }
  void server_resets_in(const std::string& lane) {
    start();
    const TcpListener server(at(kAddress, kServerPort));
    auto [client, upstream] = open_flow(server);
    enter(lane, client);
    upstream.reset();
    EXPECT_EQ(client.recv_to_end(), End::reset);
    EXPECT_TRUE(closed_for("upstream_reset"));
  }
};
FOR_ENGINE(ResetInLane, "auto");

TEST_P(ResetInLane, HeldByTheClient) {
  client_resets_in("held");
}
TEST_P(ResetInLane, HeldByTheServer) {
  server_resets_in("held");
}
TEST_P(ResetInLane, RelayByTheClient) {
  client_resets_in("relay");
}
TEST_P(ResetInLane, RelayByTheServer) {
  server_resets_in("relay");
}

}  // namespace
}  // namespace penstock::test
