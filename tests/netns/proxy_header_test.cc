// SPDX-License-Identifier: Apache-2.0
// The PROXY header as a raw server sees it, byte for byte from haproxy/doc/proxy-protocol.txt 2.1 and 2.2,
// and before everything the client says.
#include "support/proxy_header.h"
#include "netns/edge.h"
#include "support/tls_hello.h"

namespace penstock::test {
namespace {

std::string port_bytes(uint16_t port) {
  return {static_cast<char>(port >> 8), static_cast<char>(port)};
}

class Header : public Edge {
 protected:
  void start_mail(const std::string& version, const std::string& bind, const std::string& server,
                  const std::string& listener_keys = "") {
    DaemonOptions options;
    options.tables = "[upstream.mailbox]\nservers = [\"" + server + "\"]\nproxy_protocol = \"" + version +
                     "\"\n[[listener]]\nname = \"mail\"\nbind = [\"" + bind +
                     "\"]\nupstream = \"mailbox\"\n" + listener_keys;
    start_with(std::move(options));
  }
};
FOR_BOTH_ENGINES(Header);

TEST_P(Header, V2ForIpv4) {
  start_mail("v2", "127.0.0.1:2525", "127.0.0.1:3525");
  const TcpListener server(at("127.0.0.1", 3525));
  const TcpStream client = TcpStream::connect(at("127.0.0.1", 2525), at("127.1.2.3", 0));
  client.send_all("EHLO\r\n");
  const TcpStream upstream = server.accept();
  const std::string expected = std::string("\r\n\r\n\0\r\nQUIT\n", 12)  // signature
                               + "\x21"                                 // version 2, PROXY
                               + "\x11"                                 // TCP over IPv4
                               + std::string("\0\x0c", 2)               // 12 bytes of addresses
                               + "\x7f\x01\x02\x03" + std::string("\x7f\0\0\x01", 4) +
                               port_bytes(client.local().port) + port_bytes(2525);
  EXPECT_EQ(upstream.recv_exactly(expected.size() + 6), expected + "EHLO\r\n");
}

TEST_P(Header, V2ForIpv6) {
  netns_.ip("addr add 2001:db8::25/128 dev lo nodad");
  start_mail("v2", "[2001:db8::25]:2525", "[::1]:3525");
  const TcpListener server(at("::1", 3525));
  const TcpStream client = TcpStream::connect(at("2001:db8::25", 2525), at("::1", 0));
  const TcpStream upstream = server.accept();
  const std::string expected = std::string("\r\n\r\n\0\r\nQUIT\n", 12) + "\x21"  //
                               + "\x21"                                          // TCP over IPv6
                               + std::string("\0\x24", 2)                        // 36 bytes of addresses
                               + std::string(15, '\0') + "\x01"                  //
                               + "\x20\x01\x0d\xb8" + std::string(11, '\0') + "\x25" +
                               port_bytes(client.local().port) + port_bytes(2525);
  EXPECT_EQ(upstream.recv_exactly(expected.size()), expected);
}

// The family of the two legs need not be the same: what is told is the client's leg.
TEST_P(Header, V2ForAnIpv6ClientOfAnIpv4Server) {
  start_mail("v2", "[::1]:2525", "127.0.0.1:3525");
  const TcpListener server(at("127.0.0.1", 3525));
  const TcpStream client = TcpStream::connect(at("::1", 2525));
  const ProxyHeader header = read_proxy_header(server.accept());
  EXPECT_EQ(header.client, client.local().text());
  EXPECT_EQ(header.destination, "[::1]:2525");
}

// A socket of every IPv4 and IPv6 address sees v4-mapped clients; the header says plain IPv4.
TEST_P(Header, V2OnAListenerOfEveryAddress) {
  start_mail("v2", ":2525", "127.0.0.1:3525");
  const TcpListener server(at("127.0.0.1", 3525));
  const TcpStream v4 = TcpStream::connect(at("127.0.0.1", 2525));
  ProxyHeader header = read_proxy_header(server.accept());
  EXPECT_EQ(header.client, v4.local().text());
  EXPECT_EQ(header.destination, "127.0.0.1:2525");
  const TcpStream v6 = TcpStream::connect(at("::1", 2525));
  header = read_proxy_header(server.accept());
  EXPECT_EQ(header.client, v6.local().text());
  EXPECT_EQ(header.destination, "[::1]:2525");
}

TEST_P(Header, V1ForIpv4) {
  start_mail("v1", "127.0.0.1:2525", "127.0.0.1:3525");
  const TcpListener server(at("127.0.0.1", 3525));
  const TcpStream client = TcpStream::connect(at("127.0.0.1", 2525));
  client.send_all("EHLO\r\n");
  const TcpStream upstream = server.accept();
  EXPECT_EQ(upstream.recv_line(),
            "PROXY TCP4 127.0.0.1 127.0.0.1 " + std::to_string(client.local().port) + " 2525\r");
  EXPECT_EQ(upstream.recv_line(), "EHLO\r");
}

TEST_P(Header, V1ForIpv6) {
  start_mail("v1", "[::1]:2525", "127.0.0.1:3525");
  const TcpListener server(at("127.0.0.1", 3525));
  const TcpStream client = TcpStream::connect(at("::1", 2525));
  EXPECT_EQ(server.accept().recv_line(),
            "PROXY TCP6 ::1 ::1 " + std::to_string(client.local().port) + " 2525\r");
}

TEST_P(Header, OffSendsNothing) {
  start_mail("off", "127.0.0.1:2525", "127.0.0.1:3525");
  const TcpListener server(at("127.0.0.1", 3525));
  const TcpStream client = TcpStream::connect(at("127.0.0.1", 2525));
  client.send_all("EHLO\r\n");
  EXPECT_EQ(server.accept().recv_line(), "EHLO\r");
}

TEST_P(Header, V2NamesTheSniAndTheAlpn) {
  start_mail("v2", "127.0.0.1:2525", "127.0.0.1:3525",
             "[[listener.route]]\nsni = [\"*\"]\nupstream = \"mailbox\"\n");
  const TcpListener server(at("127.0.0.1", 3525));
  const TcpStream client = TcpStream::connect(at("127.0.0.1", 2525));
  const std::string hello = TlsHello{.sni = "Www.Example.Net", .alpn = {"h2", "http/1.1"}}.bytes();
  client.send_all(hello);
  const TcpStream upstream = server.accept();
  const ProxyHeader header = read_proxy_header(upstream);
  EXPECT_EQ(header.tlvs.at(2), "www.example.net");  // PP2_TYPE_AUTHORITY
  EXPECT_EQ(header.tlvs.at(1), "h2");               // PP2_TYPE_ALPN
  EXPECT_EQ(upstream.recv_exactly(hello.size()), hello);
}

// Thousands of hand-offs with the header, the client's bytes and the server's greeting racing.
TEST_P(Header, StandsBeforeEveryByteInEachOfManyFlows) {
  start_mail("v2", "127.0.0.1:2525", "127.0.0.1:3525");
  const TcpListener server(at("127.0.0.1", 3525));
  for (int round = 0; round < 300; ++round) {
    const TcpStream client = TcpStream::connect(at("127.0.0.1", 2525));
    client.send_all_with_fin("EHLO " + std::to_string(round) + "\r\n");
    const TcpStream upstream = server.accept();
    upstream.send_all("220\r\n");
    ASSERT_EQ(read_proxy_header(upstream).client, client.local().text());
    ASSERT_EQ(upstream.recv_line(), "EHLO " + std::to_string(round) + "\r");
    ASSERT_EQ(upstream.recv_to_end(), End::fin);
    ASSERT_EQ(client.recv_line(), "220\r");
    upstream.half_close();
    ASSERT_EQ(client.recv_to_end(), End::fin);
  }
  EXPECT_TRUE(closed_for("completed", 300));
}

}  // namespace
}  // namespace penstock::test
