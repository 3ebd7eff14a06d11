// SPDX-License-Identifier: Apache-2.0
// TCP urgent data: in line where the kernel moves the bytes; where only splice(2) could, an end with its
// reason instead of a worker that spins in front of it.
#include <sys/socket.h>

#include "netns/edge.h"

namespace penstock::test {
namespace {

class Urgent : public Edge {
 protected:
  static void send_with_urgent_byte(const TcpStream& client) {
    client.send_all("abc");
    ASSERT_EQ(::send(client.fd(), "U", 1, MSG_OOB), 1);
    (void)!::send(client.fd(), "defgh", 5, MSG_NOSIGNAL);  // a reset may be faster
  }
};
FOR_BOTH_ENGINES(Urgent);

TEST_P(Urgent, ByteInTheMiddle) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  const auto [client, upstream] = open_flow(server);
  send_with_urgent_byte(client);
  if (sockmap()) {
    EXPECT_EQ(upstream.recv_exactly(9), "abcUdefgh");
  } else {
    EXPECT_EQ(upstream.recv_to_end(), End::reset);
    EXPECT_TRUE(closed_for("urgent_data"));
  }
}

class UrgentRelayed : public Urgent {};
FOR_ENGINE(UrgentRelayed, "auto");

TEST_P(UrgentRelayed, GoesBackToSpliceForTheByte) {
  start();
  if (!sockmap()) GTEST_SKIP() << "engine " << daemon_->engine() << ": nothing may go back";
  const TcpListener server(at(kAddress, kServerPort));
  const auto [client, upstream] = open_flow(server);
  const std::string cookie = daemon_->flows()[0].at("cookie");
  ASSERT_TRUE(wait_until([&] {  // by another order, should it have gone back, being quiet, before we look
    EXPECT_EQ(daemon_->order_lane(cookie, "up", "relay"), "");
    return daemon_->flows()[0].at("directions").at("up").at("lane") == "relay";
  })) << daemon_->flows();
  send_with_urgent_byte(client);
  EXPECT_EQ(upstream.recv_exactly(9), "abcUdefgh");
}

}  // namespace
}  // namespace penstock::test
