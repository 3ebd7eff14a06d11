// SPDX-License-Identifier: Apache-2.0
// A proxy in front says who the client is: who is believed, what becomes of the header, and of those who
// forge one. Headers stand here byte for byte as haproxy/doc/proxy-protocol.txt 2.1 and 2.2 draw them.
#include <arpa/inet.h>

#include "netns/edge.h"
#include "support/named_echo.h"
#include "support/proxy_header.h"
#include "support/tls_hello.h"

namespace penstock::test {
namespace {

const std::string kV1 = "PROXY TCP4 192.0.2.7 198.51.100.1 40000 2525\r\n";
const std::string kV1Unknown = "PROXY UNKNOWN\r\n";

std::string two_bytes(size_t n) {
  return {static_cast<char>(n >> 8), static_cast<char>(n)};
}

std::string tlv(int type, const std::string& value) {
  return static_cast<char>(type) + two_bytes(value.size()) + value;
}

std::string v2(char command, char family, const std::string& rest) {
  return std::string("\r\n\r\n\0\r\nQUIT\n", 12) + command + family + two_bytes(rest.size()) + rest;
}
// 192.0.2.7:40000 to 198.51.100.1:2525.
std::string v2_ipv4(const std::string& tlvs = "") {
  return v2('\x21', '\x11',
            "\xc0" + std::string("\0\x02\x07", 3) + "\xc6\x33\x64\x01" + "\x9c\x40\x09\xdd" + tlvs);
}
std::string v2_ipv6(const char* client, const char* destination) {
  std::string addresses(32, '\0');
  inet_pton(AF_INET6, client, &addresses[0]);
  inet_pton(AF_INET6, destination, &addresses[16]);
  return v2('\x21', '\x21', addresses + "\x9c\x40\x09\xdd");
}
const std::string kV2Local = v2('\x20', '\0', "");

// RFC 3720 B.4, a bit at a time.
uint32_t crc32c(const std::string& bytes) {
  uint32_t crc = ~0u;
  for (const char byte : bytes) {
    crc ^= static_cast<uint8_t>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
  }
  return ~crc;
}
// `header` with the right sum in its CRC32C, the TLV that begins the TLVs of an IPv4 header.
std::string summed(std::string header) {
  header.replace(28 + 3, 4, 4, '\0');
  const uint32_t sum = htonl(crc32c(header));
  return header.replace(28 + 3, 4, reinterpret_cast<const char*>(&sum), 4);
}

class ProxyIn : public Edge {
 protected:
  static constexpr const char* kFront = "127.0.0.9";

  void start_mail(const std::string& upstream_keys = "", const std::string& others = "reject",
                  const std::string& more = "") {
    DaemonOptions options;
    options.tables =
        "[timeouts]\nproxy_header = \"300ms\"\n" + more +
        mail_tables(upstream_keys,
                    "accept_proxy = { from = [\"127.0.0.9\", \"::1\"], others = \"" + others + "\" }");
    start_with(std::move(options));
  }
  static TcpStream connect_front() { return TcpStream::connect(at(kAddress, kMailPort), at(kFront, 0)); }
  static TcpStream connect_stranger() { return TcpStream::connect(at(kAddress, kMailPort)); }

  // What the server gets when the front says this, half closed behind it.
  std::string server_gets(const std::string& said) const {
    const TcpListener server(at(kAddress, kServerPort));
    const TcpStream front = connect_front();
    front.send_all_with_fin(said);
    const TcpStream upstream = server.accept();
    std::string got;
    EXPECT_EQ(upstream.recv_to_end(&got), End::fin);
    upstream.half_close();
    EXPECT_EQ(front.recv_to_end(), End::fin);
    return got;
  }
  void expect_ends(const TcpStream& stream, const std::string& reason) const {
    stream.recv_to_end();
    EXPECT_TRUE(closed_for(reason)) << daemon_->status();
  }
};
FOR_BOTH_ENGINES(ProxyIn);

TEST_P(ProxyIn, V1) {
  start_mail("proxy_protocol = \"v1\"");
  EXPECT_EQ(server_gets(kV1 + "EHLO\r\n"), kV1 + "EHLO\r\n");
  EXPECT_TRUE(closed_for("completed"));
}

TEST_P(ProxyIn, V2OfIpv4) {
  start_mail("proxy_protocol = \"v2\"");
  EXPECT_EQ(server_gets(v2_ipv4() + "EHLO\r\n"), v2_ipv4() + "EHLO\r\n");
}

TEST_P(ProxyIn, V2OfIpv6) {
  start_mail("proxy_protocol = \"v2\"");
  const std::string header = v2_ipv6("2001:db8::7", "2001:db8::25");
  EXPECT_EQ(server_gets(header + "EHLO\r\n"), header + "EHLO\r\n");
}

TEST_P(ProxyIn, MappedIpv4IsIpv4) {
  start_mail("proxy_protocol = \"v2\"");
  EXPECT_EQ(server_gets(v2_ipv6("::ffff:192.0.2.7", "::ffff:198.51.100.1") + "EHLO\r\n"),
            v2_ipv4() + "EHLO\r\n");
}

TEST_P(ProxyIn, TheProxyMayComeByIpv6) {
  DaemonOptions options;
  options.tables =
      "[upstream.mailbox]\nservers = [\"127.0.0.1:3525\"]\nproxy_protocol = \"v1\"\n[[listener]]\n"
      "bind = [\"[::1]:2525\"]\nupstream = \"mailbox\"\naccept_proxy = { from = [\"::1/128\"] }\n";
  start_with(std::move(options));
  const TcpListener server(at(kAddress, kServerPort));
  const TcpStream front = TcpStream::connect(at("::1", kMailPort));
  front.send_all(kV1);
  EXPECT_EQ(server.accept().recv_line() + "\n", kV1);
}

TEST_P(ProxyIn, NothingOfItIsPassedOnWithoutProxyProtocol) {
  start_mail();
  EXPECT_EQ(server_gets(v2_ipv4(tlv(0xe0, "x")) + "EHLO\r\n"), "EHLO\r\n");
}

TEST_P(ProxyIn, TheClientIsTheOneItTells) {
  start_mail();
  const TcpListener server(at(kAddress, kServerPort));
  const TcpStream front = connect_front();
  front.send_all(kV1);
  const TcpStream upstream = server.accept();
  const Json flow = daemon_->wait_flow("open");
  EXPECT_EQ(flow.at("client"), "192.0.2.7:40000");
  EXPECT_EQ(flow.at("destination"), "198.51.100.1:2525");
  EXPECT_EQ(flow.at("proxy"), front.local().text());
  front.half_close();
  upstream.half_close();
  EXPECT_TRUE(closed_for("completed"));
  EXPECT_TRUE(wait_until([&] {
    return daemon_->log().find(" client=192.0.2.7:40000 listener=mail upstream=mailbox proxy=" +
                               front.local().text() + " ") != std::string::npos;
  })) << daemon_->log();
}

// LOCAL and UNKNOWN: the connection's own addresses, and whatever is said behind the header.
TEST_P(ProxyIn, LocalAndUnknownLeaveTheConnectionsOwn) {
  start_mail("proxy_protocol = \"v1\"");
  for (const std::string& header : {kV2Local, kV1Unknown}) {
    const TcpListener server(at(kAddress, kServerPort));
    const TcpStream front = connect_front();
    front.send_all(header + "EHLO\r\n");
    const TcpStream upstream = server.accept();
    EXPECT_EQ(upstream.recv_line(),
              "PROXY TCP4 127.0.0.9 127.0.0.1 " + std::to_string(front.local().port) + " 2525\r");
    EXPECT_EQ(upstream.recv_line(), "EHLO\r");
  }
}

TEST_P(ProxyIn, TlvsArePassedOnByteForByte) {
  start_mail("proxy_protocol = \"v2\"");
  const std::string ssl = tlv(0x20, std::string("\x01\0\0\0\0", 5) + tlv(0x21, "TLSv1.3"));
  const std::string own = tlv(0xe0, std::string("\0\xff\r\n", 4)), id = tlv(0x05, "id-1"),
                    noop = tlv(0x04, "\0"), sum = tlv(0x03, "1234"), alpn = tlv(0x01, "h2"),
                    name = tlv(0x02, "www.example.net");
  EXPECT_EQ(server_gets(v2_ipv4(ssl + noop + own + id + alpn + name) + "EHLO\r\n"),
            v2_ipv4(ssl + own + id + alpn + name) + "EHLO\r\n");
  EXPECT_EQ(server_gets(summed(v2_ipv4(sum + noop + own)) + "EHLO\r\n"),
            summed(v2_ipv4(sum + own)) + "EHLO\r\n");
  EXPECT_TRUE(daemon_->process().wait_for(" unique_id=id-1 "));
}

TEST_P(ProxyIn, WhatTheHelloSaysReplacesWhatTheProxySaysOfIt) {
  DaemonOptions options;
  options.tables = mail_tables("proxy_protocol = \"v2\"",
                               "accept_proxy = { from = [\"127.0.0.9\"] }\n"
                               "[[listener.route]]\nsni = [\"*\"]\nupstream = \"mailbox\"\n");
  start_with(std::move(options));
  const std::string hello = TlsHello{.sni = "www.example.net"}.bytes();
  const std::string own = tlv(0xe0, "own"), alpn = tlv(0x01, "h2");
  EXPECT_EQ(server_gets(v2_ipv4(tlv(0x02, "elsewhere") + own + alpn) + hello),
            v2_ipv4(tlv(0x02, "www.example.net") + own + alpn) + hello);
}

// One of the proxy's stays; else we make one. It is in the log, so that two logs can be joined.
TEST_P(ProxyIn, UniqueIdAndChecksumWhenAskedFor) {
  start_mail("proxy_protocol = \"v2\"\ntlvs = [\"unique_id\", \"crc32c\"]");
  const TcpListener server(at(kAddress, kServerPort));
  std::string before;
  for (const std::string& tlvs : {tlv(0x05, "id-1"), tlv(0xe0, "own"), std::string()}) {
    ProxyHeader header;
    {
      const TcpStream front = connect_front();
      front.send_all(v2_ipv4(tlvs));
      header = read_proxy_header(server.accept());
    }
    EXPECT_EQ(header.bytes, summed(header.bytes));
    EXPECT_EQ(header.tlvs.contains(0xe0), tlvs == tlv(0xe0, "own"));
    const std::string id = header.tlvs.at(0x05);
    EXPECT_EQ(id.size(), before.empty() ? 4u : 32u) << id;
    EXPECT_NE(id, std::exchange(before, id));
    EXPECT_TRUE(daemon_->process().wait_for(" unique_id=" + id + " ")) << daemon_->log();
  }
}

TEST_P(ProxyIn, TlvsBeyondTheBoundLeaveTheirRoomToOthers) {
  start_mail("proxy_protocol = \"v2\"");
  const std::string certificate = tlv(0xe1, std::string(3000, 'c')), id = tlv(0x05, "id-1");
  EXPECT_EQ(server_gets(v2_ipv4(certificate + id) + "EHLO\r\n"), v2_ipv4(id) + "EHLO\r\n");
  EXPECT_EQ(server_gets(v2_ipv4(certificate + id) + "EHLO\r\n"), v2_ipv4(id) + "EHLO\r\n");
  EXPECT_EQ(daemon_->totals().at("tlvs_dropped"), 2);
  EXPECT_TRUE(daemon_->process().wait_for("TLVs are not passed on"));
  const std::string log = daemon_->log();
  EXPECT_EQ(log.find("TLVs are not passed on"), log.rfind("TLVs are not passed on"));
}

TEST_P(ProxyIn, InOneByteSegments) {
  start_mail("proxy_protocol = \"v2\"");
  const TcpListener server(at(kAddress, kServerPort));
  for (const std::string& header : {v2_ipv4(tlv(0xe0, "own")), kV1}) {
    const TcpStream front = connect_front();
    for (const char byte : header + "EHLO\r\n") front.send_all({&byte, 1});
    const TcpStream upstream = server.accept();
    EXPECT_EQ(read_proxy_header(upstream).client, "192.0.2.7:40000");
    EXPECT_EQ(upstream.recv_line(), "EHLO\r");
  }
}

// Header, data and FIN in every cut of two segments; the server speaks meanwhile.
TEST_P(ProxyIn, CutAnywhere) {
  start_mail("proxy_protocol = \"v2\"");
  const TcpListener server(at(kAddress, kServerPort));
  const std::string said = v2_ipv4(tlv(0xe0, "own")) + "EHLO\r\n";
  for (size_t cut = 0; cut <= said.size(); ++cut) {
    const TcpStream front = connect_front();
    if (cut > 0) front.send_all(said.substr(0, cut));
    front.send_all_with_fin(said.substr(cut));
    const TcpStream upstream = server.accept();
    upstream.send_all("220\r\n");
    std::string got;
    ASSERT_EQ(upstream.recv_to_end(&got), End::fin);
    ASSERT_EQ(got, said) << "cut at " << cut;
    ASSERT_EQ(front.recv_line(), "220\r");
    upstream.half_close();
    ASSERT_EQ(front.recv_to_end(), End::fin);
  }
  EXPECT_TRUE(closed_for("completed", said.size() + 1));
}

// More than fits the socket at once stands behind the header, its first bytes in the header's segment.
TEST_P(ProxyIn, MuchBehindTheHeader) {
  start_mail();
  constexpr uint64_t kBytes = 16 << 20;
  const TcpListener server(at(kAddress, kServerPort));
  const TcpStream front = connect_front();
  const std::string head = pattern(3, 1000);
  front.send_all(kV1 + head);
  PatternSender up(front, 1, {.bytes_max = kBytes});
  const TcpStream upstream = server.accept();
  EXPECT_EQ(upstream.recv_exactly(head.size()), head);
  PatternReader at_server(upstream, 1);
  up.finish();
  const auto result = at_server.finish();
  EXPECT_EQ(result.bytes, kBytes);
  EXPECT_EQ(result.wrong_at, std::nullopt);
  EXPECT_EQ(result.end, End::fin);
  upstream.half_close();
  EXPECT_TRUE(closed_for("completed"));
}

TEST_P(ProxyIn, WhoIsTrustedMustSayItRight) {
  start_mail();
  const TcpListener server(at(kAddress, kServerPort));
  const std::string of_version_3 = v2('\x31', '\x11', std::string(12, '\0'));
  const std::string broken[] = {"EHLO client\r\n", "PROXY TCP4 192.0.2.7\r\n\r\n\r\n\r\n\r\n", of_version_3,
                                v2_ipv4("\x01"), v2_ipv4(tlv(0x03, "1234"))};
  for (const std::string& said : broken) {
    const TcpStream front = connect_front();
    front.send_all(said);
    EXPECT_EQ(front.recv_to_end(), End::reset) << said;
  }
  EXPECT_TRUE(closed_for("proxy_header_malformed", std::size(broken))) << daemon_->status();
  EXPECT_FALSE(server.accept_within(0ms));
}

TEST_P(ProxyIn, WhoIsTrustedMustSayItInTime) {
  start_mail();
  const TcpStream silent = connect_front(), half_way = connect_front();
  half_way.send_all(v2_ipv4().substr(0, 20));
  EXPECT_EQ(silent.recv_to_end(), End::reset);
  EXPECT_EQ(half_way.recv_to_end(), End::reset);
  EXPECT_TRUE(closed_for("proxy_header_timeout", 2)) << daemon_->status();
}

TEST_P(ProxyIn, EndsAmidTheHeader) {
  start_mail();
  const TcpStream fin = connect_front();
  fin.send_all_with_fin(v2_ipv4().substr(0, 20));
  expect_ends(fin, "client_closed_early");
  TcpStream rst = connect_front();
  rst.send_all(v2_ipv4().substr(0, 20));
  daemon_->wait_flow("proxy_header");
  rst.reset();
  EXPECT_TRUE(closed_for("client_reset"));
}

// Whether the RST is there before, while or after we look.
TEST_P(ProxyIn, ResetsRightBehindTheHeader) {
  start_mail("proxy_protocol = \"v2\"");
  const TcpListener server(at(kAddress, kServerPort));
  for (int round = 0; round < 100; ++round) {
    TcpStream front = connect_front();
    front.send_all(v2_ipv4() + "EHLO");
    front.reset();
  }
  EXPECT_TRUE(wait_until([&] {
    const Json totals = daemon_->totals();
    return totals.at("accepted") == 100 && totals.at("active") == 0;
  })) << daemon_->status();
  while (auto upstream = server.accept_within(0ms)) EXPECT_EQ(upstream->recv_to_end(), End::reset);
  EXPECT_EQ(daemon_->closed("completed"), 0u);
}

TEST_P(ProxyIn, ResetsOfEitherSideWhileOpen) {
  start_mail();
  const TcpListener server(at(kAddress, kServerPort));
  TcpStream front = connect_front();
  front.send_all(kV1 + "EHLO\r\n");
  TcpStream upstream = server.accept();
  EXPECT_EQ(upstream.recv_line(), "EHLO\r");
  front.reset();
  EXPECT_EQ(upstream.recv_to_end(), End::reset);
  EXPECT_TRUE(closed_for("client_reset"));
  front = connect_front();
  front.send_all(kV1 + "EHLO\r\n");
  upstream = server.accept();
  EXPECT_EQ(upstream.recv_line(), "EHLO\r");
  upstream.reset();
  EXPECT_EQ(front.recv_to_end(), End::reset);
  EXPECT_TRUE(closed_for("upstream_reset"));
}

// Its probes reach no server and leave no line in the log.
TEST_P(ProxyIn, ProbesOfTheProxy) {
  start_mail();
  const TcpListener server(at(kAddress, kServerPort));
  connect_front().close();
  connect_front().reset();
  for (const std::string& header : {kV2Local, kV1Unknown}) {
    const TcpStream fin = connect_front();
    fin.send_all_with_fin(header);
    EXPECT_EQ(fin.recv_to_end(), End::fin);
    TcpStream rst = connect_front();
    rst.send_all(header);
    rst.reset();
  }
  EXPECT_TRUE(closed_for("proxy_probe", 6)) << daemon_->status();
  EXPECT_FALSE(server.accept_within(0ms));
  EXPECT_TRUE(daemon_->process().wait_for("debug flow ")) << daemon_->log();
  const std::string log = daemon_->log();
  EXPECT_EQ(log.find("info  flow "), std::string::npos) << log;
  EXPECT_EQ(log.find(" warn ", log.find("info  ready:")), std::string::npos) << log;
}

// A probe that waits for the server's greeting gets it.
TEST_P(ProxyIn, LocalHearsTheServer) {
  start_mail();
  const TcpListener server(at(kAddress, kServerPort));
  for (const std::string& header : {kV2Local, kV1Unknown}) {
    const TcpStream front = connect_front();
    front.send_all(header);
    const TcpStream upstream = server.accept();
    upstream.send_all("220 mailbox\r\n");
    EXPECT_EQ(front.recv_line(), "220 mailbox\r");
    front.half_close();
    EXPECT_EQ(upstream.recv_to_end(), End::fin);
    upstream.half_close();
    EXPECT_EQ(front.recv_to_end(), End::fin);
  }
  EXPECT_TRUE(closed_for("completed", 2));
  EXPECT_TRUE(daemon_->process().wait_for("debug flow ")) << daemon_->log();
  EXPECT_EQ(daemon_->log().find("info  flow "), std::string::npos) << daemon_->log();
}

TEST_P(ProxyIn, OthersAreRejected) {
  start_mail();
  const TcpListener server(at(kAddress, kServerPort));
  const TcpStream stranger = connect_stranger();
  EXPECT_EQ(stranger.recv_to_end(), End::reset);
  EXPECT_TRUE(closed_for("proxy_not_trusted"));
  EXPECT_FALSE(server.accept_within(0ms));
}

// ---- others = "direct"

class ProxyInDirect : public ProxyIn {
 protected:
  void start_direct(const std::string& more = "") { start_mail("proxy_protocol = \"v1\"", "direct", more); }
  // A stranger and the server it reached, which knows its address and has greeted it.
  Pair open_stranger(const TcpListener& server) const {
    TcpStream stranger = connect_stranger();
    TcpStream upstream = server.accept();
    EXPECT_EQ(upstream.recv_line(),
              "PROXY TCP4 127.0.0.1 127.0.0.1 " + std::to_string(stranger.local().port) + " 2525\r");
    upstream.send_all("220 mailbox\r\n");
    EXPECT_EQ(stranger.recv_line(), "220 mailbox\r");
    return {std::move(stranger), std::move(upstream)};
  }
  void expect_carried(const TcpStream& from, const TcpStream& to, const std::string& line) const {
    from.send_all(line + "\n");
    EXPECT_EQ(to.recv_line(), line);
  }
};
FOR_BOTH_ENGINES(ProxyInDirect);

// The server speaks to a client that is silent; that one's direction is held until it is not.
TEST_P(ProxyInDirect, TheServerMaySpeakFirst) {
  start_direct();
  const TcpListener server(at(kAddress, kServerPort));
  const auto [stranger, upstream] = open_stranger(server);
  EXPECT_TRUE(daemon_->wait_lane("up", "held")) << daemon_->flows();
  EXPECT_TRUE(daemon_->wait_lane("down", sockmap() ? "splice" : "relay")) << daemon_->flows();
  expect_carried(stranger, upstream, "EHLO");
  EXPECT_TRUE(daemon_->wait_lane("up", sockmap() ? "splice" : "relay")) << daemon_->flows();
  expect_carried(upstream, stranger, "250");
  expect_carried(stranger, upstream, "PROXY TCP4 is an odd command");
  stranger.half_close();
  EXPECT_EQ(upstream.recv_to_end(), End::fin);
  upstream.half_close();
  EXPECT_EQ(stranger.recv_to_end(), End::fin);
  EXPECT_TRUE(closed_for("completed"));
}

TEST_P(ProxyInDirect, WhoForgesAHeaderGetsNothingThrough) {
  start_direct();
  const TcpListener server(at(kAddress, kServerPort));
  uint64_t times = 0;
  for (const std::string& header : {kV1, v2_ipv4(), kV2Local, std::string("PROXY nonsense"), kV1 + "EHLO"}) {
    const auto [stranger, upstream] = open_stranger(server);
    stranger.send_all(header);
    std::string got;
    EXPECT_EQ(upstream.recv_to_end(&got), End::reset);
    EXPECT_EQ(got, "");
    EXPECT_EQ(stranger.recv_to_end(), End::reset);
    EXPECT_TRUE(closed_for("proxy_not_trusted", ++times)) << daemon_->status();
  }
}

TEST_P(ProxyInDirect, WhoForgesItBeforeTheServerHasAccepted) {
  start_direct();
  const TcpListener server(at(kAddress, kServerPort));
  const TcpStream stranger = connect_stranger();
  stranger.send_all_with_fin(v2_ipv4() + "EHLO\r\n");
  EXPECT_EQ(stranger.recv_to_end(), End::reset);
  EXPECT_TRUE(closed_for("proxy_not_trusted"));
  std::string got;
  EXPECT_EQ(server.accept().recv_to_end(&got), End::reset);
  EXPECT_TRUE(got.empty() || got.starts_with("PROXY TCP4 127.0.0.1 ")) << got;
  EXPECT_EQ(got.find("EHLO"), std::string::npos);
}

TEST_P(ProxyInDirect, WhoForgesItInOneByteSegments) {
  start_direct();
  const TcpListener server(at(kAddress, kServerPort));
  uint64_t times = 0;
  for (const std::string& header : {std::string("PROXY "), v2_ipv4().substr(0, 12)}) {
    const auto [stranger, upstream] = open_stranger(server);
    for (const char byte : header) stranger.send_all({&byte, 1});
    std::string got;
    EXPECT_EQ(upstream.recv_to_end(&got), End::reset);
    EXPECT_EQ(got, "");
    EXPECT_TRUE(closed_for("proxy_not_trusted", ++times)) << daemon_->status();
  }
}

TEST_P(ProxyInDirect, WhoOnlyBeginsLikeAHeaderIsAClient) {
  start_direct();
  const TcpListener server(at(kAddress, kServerPort));
  for (const std::string line : {"PROPFIND", "\r\n", "\r\n\r\n", "PROXYING", "P\n", "\r"}) {
    const auto [stranger, upstream] = open_stranger(server);
    const std::string said = line + "EHLO\n";
    for (const char byte : said) stranger.send_all({&byte, 1});
    EXPECT_EQ(upstream.recv_exactly(said.size()), said);
  }
}

// Let through, it could say the rest behind our header.
TEST_P(ProxyInDirect, WhoStopsWithinTheSignature) {
  start_direct();
  const TcpListener server(at(kAddress, kServerPort));
  uint64_t times = 0;
  for (const std::string& said :
       {std::string("P"), std::string("PROX"), v2_ipv4().substr(0, 6), v2_ipv4().substr(0, 11)}) {
    const auto [stranger, upstream] = open_stranger(server);
    const auto began = std::chrono::steady_clock::now();
    stranger.send_all(said);
    std::string got;
    EXPECT_EQ(upstream.recv_to_end(&got), End::reset);
    EXPECT_GE(std::chrono::steady_clock::now() - began, 290ms);  // the daemon's clock ticks once a turn
    EXPECT_EQ(got, "");
    EXPECT_EQ(stranger.recv_to_end(), End::reset);
    EXPECT_TRUE(closed_for("proxy_not_trusted", ++times)) << daemon_->status();
  }
  EXPECT_TRUE(daemon_->process().wait_for(" reason=proxy_not_trusted"));
}

TEST_P(ProxyInDirect, WhoSaysNothingIsAClient) {
  start_direct();
  const TcpListener server(at(kAddress, kServerPort));
  const auto [stranger, upstream] = open_stranger(server);
  EXPECT_FALSE(stranger.readable_within(600ms));  // twice timeouts.proxy_header
  expect_carried(stranger, upstream, "EHLO");
}

TEST_P(ProxyInDirect, FinWithinTheSignature) {
  start_direct();
  const TcpListener server(at(kAddress, kServerPort));
  for (const std::string said : {"", "\r\n\r\n", "P"}) {
    const auto [stranger, upstream] = open_stranger(server);
    if (said.empty())
      stranger.half_close();
    else
      stranger.send_all_with_fin(said);
    std::string got;
    EXPECT_EQ(upstream.recv_to_end(&got), End::fin);
    EXPECT_EQ(got, said);
    expect_carried(upstream, stranger, "221");
    upstream.half_close();
    EXPECT_EQ(stranger.recv_to_end(), End::fin);
  }
  EXPECT_TRUE(closed_for("completed", 3)) << daemon_->status();
}

TEST_P(ProxyInDirect, TheServerEndsWhileTheClientIsSilent) {
  start_direct();
  const TcpListener server(at(kAddress, kServerPort));
  const auto [stranger, upstream] = open_stranger(server);
  upstream.half_close();
  EXPECT_EQ(stranger.recv_to_end(), End::fin);
  EXPECT_TRUE(daemon_->wait_lane("down", "shut")) << daemon_->flows();
  EXPECT_TRUE(daemon_->wait_lane("up", "held")) << daemon_->flows();
  expect_carried(stranger, upstream, "QUIT");
  stranger.half_close();
  EXPECT_EQ(upstream.recv_to_end(), End::fin);
  EXPECT_TRUE(closed_for("completed"));
}

TEST_P(ProxyInDirect, ResetsWhileItIsHeld) {
  start_direct();
  const TcpListener server(at(kAddress, kServerPort));
  auto [stranger, upstream] = open_stranger(server);
  stranger.send_all("PRO");
  stranger.reset();
  EXPECT_EQ(upstream.recv_to_end(), End::reset);
  EXPECT_TRUE(closed_for("client_reset"));
  auto [second, its_upstream] = open_stranger(server);
  its_upstream.reset();
  EXPECT_EQ(second.recv_to_end(), End::reset);
  EXPECT_TRUE(closed_for("upstream_reset"));
}

TEST_P(ProxyInDirect, IdleWhileItIsHeld) {
  start_direct("idle = \"400ms\"\n");
  const TcpListener server(at(kAddress, kServerPort));
  const auto [stranger, upstream] = open_stranger(server);
  EXPECT_EQ(stranger.recv_to_end(), End::reset);
  EXPECT_TRUE(closed_for("idle_timeout"));
}

TEST_P(ProxyInDirect, KilledWhileItIsHeld) {
  start_direct();
  const TcpListener server(at(kAddress, kServerPort));
  const auto [stranger, upstream] = open_stranger(server);
  const Json flow = daemon_->wait_flow("open");
  EXPECT_EQ(daemon_->order_lane(flow.at("cookie"), "up", "relay"), "");
  EXPECT_TRUE(daemon_->wait_lane("up", "held"));  // an order does not let it through
  daemon_->ask({{"command", "kill"}, {"cookies", Json::array({flow.at("cookie")})}});
  EXPECT_EQ(upstream.recv_to_end(), End::reset);
  EXPECT_TRUE(closed_for("killed"));
}

TEST_P(ProxyInDirect, MuchAtOnce) {
  start_direct();
  constexpr uint64_t kBytes = 16 << 20;
  const TcpListener server(at(kAddress, kServerPort));
  const TcpStream stranger = connect_stranger();
  PatternSender up(stranger, 1, {.bytes_max = kBytes});
  const TcpStream upstream = server.accept();
  upstream.recv_line();
  PatternReader at_server(upstream, 1), at_client(stranger, 2);
  PatternSender down(upstream, 2, {.bytes_max = kBytes});
  for (PatternReader* reader : {&at_server, &at_client}) {
    const auto result = reader->finish();
    EXPECT_EQ(result.bytes, kBytes);
    EXPECT_EQ(result.wrong_at, std::nullopt);
    EXPECT_EQ(result.end, End::fin);
  }
  EXPECT_TRUE(closed_for("completed"));
}

TEST_P(ProxyInDirect, WhoIsTrustedMustSendTheHeaderAllTheSame) {
  start_direct();
  const TcpStream front = connect_front();
  front.send_all("EHLO\r\n");
  expect_ends(front, "proxy_header_malformed");
}

// ---- on a listener that routes by the hello

class ProxyInSni : public ProxyIn {
 protected:
  void start_web(const std::string& timeouts = "", const std::string& proxy_header = "300ms") {
    DaemonOptions options;
    options.tables =
        "[timeouts]\nproxy_header = \"" + proxy_header + "\"\n" + timeouts + R"([upstream.mailbox]
servers = ["127.0.0.1:3001"]
proxy_protocol = "v2"
[upstream.local]
servers = ["127.0.0.1:3002"]
proxy_protocol = "v2"
[[listener]]
name = "web"
bind = ["127.0.0.1:2525"]
upstream = "local"
accept_proxy = { from = ["127.0.0.9"], others = "direct" }
  [[listener.route]]
  sni = ["denied.*"]
  source = ["192.0.2.0/24"]
  action = "reject"
  [[listener.route]]
  sni = ["mta-sts.*"]
  upstream = "mailbox"
)";
    start_with(std::move(options));
  }
  NamedEcho mailbox_{"mailbox", at("127.0.0.1", 3001), NamedEcho::Proxy::required};
  NamedEcho local_{"local", at("127.0.0.1", 3002), NamedEcho::Proxy::required};
};
FOR_BOTH_ENGINES(ProxyInSni);

TEST_P(ProxyInSni, HeaderThenAHelloOf20KiB) {
  start_web();
  const std::string hello =
      TlsHello{.sni = "mta-sts.example.net", .handshake_bytes = 20 << 10, .sni_last = true}.bytes();
  const std::string said = v2_ipv4() + hello;
  for (const size_t cut : {said.size(), size_t{28}, size_t{40}, size_t{1448}, said.size() - 1}) {
    const TcpStream front = connect_front();
    front.send_all(said.substr(0, cut));
    front.send_all(said.substr(cut));
    EXPECT_EQ(front.recv_line(), "mailbox v2 192.0.2.7:40000");
    EXPECT_EQ(front.recv_exactly(hello.size()), hello);
  }
}

TEST_P(ProxyInSni, RoutesBySourceOfWhatItTells) {
  start_web();
  const std::string hello = TlsHello{.sni = "denied.example.net"}.bytes();
  const TcpStream front = connect_front();
  front.send_all(v2_ipv4() + hello);
  expect_ends(front, "route_rejected");
  const TcpStream other = connect_front();
  other.send_all(v2_ipv6("2001:db8::7", "2001:db8::25") + hello);
  EXPECT_EQ(other.recv_line(), "local v2 [2001:db8::7]:40000");
}

TEST_P(ProxyInSni, Strangers) {
  start_web();
  const TcpStream honest = connect_stranger();
  honest.send_all(TlsHello{.sni = "mta-sts.example.net"}.bytes());
  EXPECT_EQ(honest.recv_line(), "mailbox v2 " + honest.local().text());
  const TcpStream ends = connect_stranger();
  ends.send_all_with_fin("PROX");
  EXPECT_EQ(ends.recv_line(), "local v2 " + ends.local().text());
  EXPECT_EQ(ends.recv_exactly(4), "PROX");
  const unsigned served = mailbox_.served() + local_.served();
  for (const std::string& header : {v2_ipv4(), kV1}) {
    const TcpStream forger = connect_stranger();
    bool told = false;  // a reset is told once: by send(2) or by recv(2)
    for (const char byte : header.substr(0, 13))
      told = told || (::send(forger.fd(), &byte, 1, MSG_NOSIGNAL) < 0 && errno == ECONNRESET);
    EXPECT_TRUE(told || forger.recv_to_end() == End::reset);
  }
  for (const std::string& beginning : {v2_ipv4().substr(0, 6), std::string("PROX")}) {
    const TcpStream stops = connect_stranger();
    stops.send_all(beginning);
    EXPECT_EQ(stops.recv_to_end(), End::reset);
  }
  EXPECT_TRUE(wait_until([&] { return daemon_->closed("proxy_not_trusted") == 4; })) << daemon_->status();
  EXPECT_EQ(mailbox_.served() + local_.served(), served);
}

TEST_P(ProxyInSni, WhoStopsWithinTheSignatureWhereTheHelloIsDueSooner) {
  start_web("client_hello = \"200ms\"\n", "1h");
  const TcpStream stops = connect_stranger();
  stops.send_all("\r\n\r\n");
  expect_ends(stops, "proxy_not_trusted");
}

}  // namespace
}  // namespace penstock::test
