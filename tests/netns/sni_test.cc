// SPDX-License-Identifier: Apache-2.0
// Routes by SNI over real segments: any shape of hello takes the right route and arrives unchanged; what is
// no hello takes the listener's own upstream or ends with its reason.
#include <unistd.h>

#include <fstream>

#include "netns/edge.h"
#include "support/named_echo.h"
#include "support/tls_hello.h"

namespace penstock::test {
namespace {

class Sni : public Edge {
 protected:
  void start_web(const std::string& timeouts = "") {
    DaemonOptions options;
    options.tables = timeouts + R"(
[upstream.mailbox]
servers = ["127.0.0.1:3001"]
[upstream.local]
servers = ["127.0.0.1:3002"]
[[listener]]
name = "web"
bind = ["127.0.0.1:8443"]
upstream = "local"
  [[listener.route]]
  sni = ["mta-sts.*", "autoconfig.*"]
  upstream = "mailbox"
  [[listener.route]]
  sni = ["*.forbidden.example"]
  action = "reject"
)";
    start_with(std::move(options));
  }
  static TcpStream connect_web() { return TcpStream::connect(at("127.0.0.1", kWebPort)); }

  // Who answers this hello; and that it arrived whole.
  static std::string reached(const std::string& hello) {
    const TcpStream client = connect_web();
    client.send_all(hello);
    return answer(client, hello);
  }
  static std::string answer(const TcpStream& client, const std::string& hello) {
    std::string line = client.recv_line();
    EXPECT_EQ(client.recv_exactly(hello.size()), hello);
    return line;
  }

  NamedEcho mailbox_{"mailbox", at("127.0.0.1", 3001)};
  NamedEcho local_{"local", at("127.0.0.1", 3002)};
};
FOR_BOTH_ENGINES(Sni);

TEST_P(Sni, ChoosesTheRoute) {
  start_web();
  EXPECT_EQ(reached(TlsHello{.sni = "mta-sts.example.net"}.bytes()), "mailbox -");
  EXPECT_EQ(reached(TlsHello{.sni = "AutoConfig.Example.NET"}.bytes()), "mailbox -");
  EXPECT_EQ(reached(TlsHello{.sni = "www.example.net"}.bytes()), "local -");
  EXPECT_EQ(reached(TlsHello{.sni = "www.example.net", .alpn = {"h2", "http/1.1"}}.bytes()), "local -");
}

TEST_P(Sni, NoneTakesTheListenersOwnUpstream) {
  start_web();
  EXPECT_EQ(reached(TlsHello{}.bytes()), "local -");
}

TEST_P(Sni, NotTlsTakesTheListenersOwnUpstream) {
  start_web();
  EXPECT_EQ(reached("GET / HTTP/1.0\r\n\r\n"), "local -");
  EXPECT_EQ(reached("\n"), "local -");
}

TEST_P(Sni, RejectedRoute) {
  start_web();
  const TcpStream client = connect_web();
  client.send_all(TlsHello{.sni = "www.forbidden.example"}.bytes());
  client.recv_to_end();
  EXPECT_TRUE(closed_for("route_rejected"));
  EXPECT_EQ(mailbox_.served() + local_.served(), 0u);
}

TEST_P(Sni, LastInAHelloOf64KiB) {
  start_web();
  const TlsHello hello{.sni = "mta-sts.example.net", .handshake_bytes = 65536, .sni_last = true};
  EXPECT_EQ(reached(hello.bytes()), "mailbox -");
}

TEST_P(Sni, LastInAHelloOf64KiBSentInPieces) {
  start_web();
  const std::string hello =
      TlsHello{.sni = "mta-sts.example.net", .handshake_bytes = 65536, .sni_last = true}.bytes();
  const TcpStream client = connect_web();
  for (size_t done = 0; done < hello.size(); done += 1448) client.send_all(hello.substr(done, 1448));
  EXPECT_EQ(answer(client, hello), "mailbox -");
}

TEST_P(Sni, InOneByteSegments) {
  start_web();
  const std::string hello =
      TlsHello{.sni = "mta-sts.example.net", .handshake_bytes = 600, .sni_last = true}.bytes();
  const TcpStream client = connect_web();
  for (const char byte : hello) client.send_all({&byte, 1});
  EXPECT_EQ(answer(client, hello), "mailbox -");
}

TEST_P(Sni, OverAHundredRecords) {
  start_web();
  const TlsHello hello{
      .sni = "mta-sts.example.net", .handshake_bytes = 4000, .sni_last = true, .record_payload_bytes = 40};
  EXPECT_EQ(reached(hello.bytes()), "mailbox -");
}

TEST_P(Sni, TooLongIsMalformed) {
  start_web();
  const TcpStream client = connect_web();
  client.send_all(
      std::string("\x16\x03\x01\x40\x00\x01\x01\x00\x01", 9));  // a hello of 65537 bytes is announced
  client.recv_to_end();
  EXPECT_TRUE(closed_for("client_hello_malformed"));
}

TEST_P(Sni, GarbageAfterARecordHeaderIsMalformed) {
  start_web();
  const TcpStream client = connect_web();
  std::string hello = TlsHello{.sni = "mta-sts.example.net"}.bytes();
  hello[5 + 4 + 2 + 32] = '\xff';  // legacy_session_id longer than 32 bytes
  client.send_all(hello);
  client.recv_to_end();
  EXPECT_TRUE(closed_for("client_hello_malformed"));
}

TEST_P(Sni, SlowHelloTimesOut) {
  start_web("[timeouts]\nclient_hello = \"300ms\"\n");
  const TcpStream silent = connect_web();
  const TcpStream half_way = connect_web();
  half_way.send_all(TlsHello{.sni = "mta-sts.example.net"}.bytes().substr(0, 20));
  silent.recv_to_end();
  half_way.recv_to_end();
  EXPECT_TRUE(closed_for("client_hello_timeout", 2));
}

TEST_P(Sni, CutOffByFin) {
  start_web();
  const TcpStream client = connect_web();
  client.send_all_with_fin(TlsHello{.sni = "mta-sts.example.net"}.bytes().substr(0, 20));
  client.recv_to_end();
  EXPECT_TRUE(closed_for("client_closed_early"));
}

TEST_P(Sni, ResetBeforeAndAmidTheHello) {
  start_web();
  TcpStream before = connect_web(), amid = connect_web();
  amid.send_all(TlsHello{.sni = "mta-sts.example.net"}.bytes().substr(0, 20));
  EXPECT_TRUE(daemon_->wait_active(2));
  before.reset();
  amid.reset();
  EXPECT_TRUE(closed_for("client_reset", 2));
}

// Hello, more data and FIN are all there before the hello has been looked at.
TEST_P(Sni, HelloDataAndFinAtOnce) {
  start_web();
  const std::string hello = TlsHello{.sni = "mta-sts.example.net"}.bytes() + "early data";
  const TcpStream client = connect_web();
  client.send_all_with_fin(hello);
  EXPECT_EQ(answer(client, hello), "mailbox -");
  EXPECT_EQ(client.recv_to_end(), End::fin);
  EXPECT_TRUE(closed_for("completed"));
}

TEST_P(Sni, WaitingCostsNoProcessorTime) {
  start_web("[timeouts]\nclient_hello = \"20s\"\n");
  std::vector<TcpStream> slow;
  for (int i = 0; i < 20; ++i) {
    slow.push_back(connect_web());
    slow.back().send_all(TlsHello{.sni = "mta-sts.example.net"}.bytes().substr(0, 20));
  }
  ASSERT_TRUE(daemon_->wait_active(20));
  const auto used_ticks = [&] {
    std::ifstream file("/proc/" + std::to_string(daemon_->worker()) + "/stat");
    std::string word;
    long user = 0, system = 0;
    for (int field = 1; field <= 13; ++field) file >> word;  // proc(5): 14 is utime, 15 stime
    file >> user >> system;
    return user + system;
  };
  const long before = used_ticks();
  std::this_thread::sleep_for(1s);  // the time that may cost nothing
  EXPECT_LE(used_ticks() - before, sysconf(_SC_CLK_TCK) / 20);
  for (auto& client : slow) client.reset();
}

}  // namespace
}  // namespace penstock::test
