// SPDX-License-Identifier: Apache-2.0
// HAProxy behind the edge reads the PROXY header we send, its own protocol; HAProxy in front of it pipes
// plain TCP or with its own PROXY header, checks it and notices when it drains.
#include <csignal>
#include <thread>

#include "e2e/site.h"
#include "support/named_echo.h"
#include "support/traces.h"

namespace penstock::test {
namespace {

class Haproxy : public Site {
 protected:
  static constexpr uint16_t kPort = 8081;
  void start_haproxy() {
    directory_.write("haproxy.cfg", R"(
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
frontend f
  bind 198.51.100.25:8081 accept-proxy
  http-request return status 200 content-type text/plain lf-string "%[src]:%[src_port] to %[dst]:%[dst_port] for %[fc_pp_authority]"
)");
    start_server({"haproxy", "-db", "-f", file("haproxy.cfg")}, {kPort});
  }
  // What HAProxy says of a request from `local_port` of the client.
  std::string ask(const std::string& url, uint16_t local_port) const {
    return at_client(
        {"curl", "-sS", "-g", "--max-time", "20", "--local-port", std::to_string(local_port), url});
  }
};

TEST_F(Haproxy, ReadsV1) {
  start_haproxy();
  start_edge(pass_through({kPort}, "v1"));
  EXPECT_EQ(ask("http://192.0.2.1:8081/", 40001), "192.0.2.10:40001 to 192.0.2.1:8081 for ");
  EXPECT_EQ(ask("http://[2001:db8:1::1]:8081/", 40002), "2001:db8:1::10:40002 to 2001:db8:1::1:8081 for ");
}

TEST_F(Haproxy, ReadsV2) {
  start_haproxy();
  start_edge(pass_through({kPort}, "v2"));
  EXPECT_EQ(ask("http://192.0.2.1:8081/", 40001), "192.0.2.10:40001 to 192.0.2.1:8081 for ");
  EXPECT_EQ(ask("http://[2001:db8:1::1]:8081/", 40002), "2001:db8:1::10:40002 to 2001:db8:1::1:8081 for ");
}

TEST_F(Haproxy, ReadsTheAuthorityOfV2) {
  make_certificate("www.example.net");
  directory_.write("both.pem",
                   read_file(file("www.example.net.pem")) + read_file(file("www.example.net.key")));
  directory_.write("haproxy.cfg", R"(
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
frontend f
  bind 198.51.100.25:443 accept-proxy ssl crt )" +
                                      file("both.pem") + R"(
  http-request return status 200 content-type text/plain lf-string "%[src] for %[fc_pp_authority]"
)");
  start_server({"haproxy", "-db", "-f", file("haproxy.cfg")}, {443});
  start_edge(pass_through({443}, "v2") + "[[listener.route]]\nsni = [\"*\"]\nupstream = \"server\"\n");
  EXPECT_EQ(at_client({"curl", "-sS", "--max-time", "20", "--cacert", file("www.example.net.pem"),
                       "--resolve", "www.example.net:443:192.0.2.1", "https://www.example.net/"}),
            "192.0.2.10 for www.example.net");
}

class HaproxyInFront : public Haproxy {
 protected:
  static constexpr uint16_t kFront = 9000;
  // It is connected to, through the edge too, unless `ports` is empty.
  Process& start_front(const std::string& server_options, const std::vector<uint16_t>& ports = {kFront}) {
    directory_.write("front.cfg", R"(
defaults
  mode tcp
  timeout connect 5s
  timeout client 30s
  timeout server 30s
listen front
  bind 127.0.0.1:9000
  retries 0
  server edge 192.0.2.1:8081 )" + server_options +
                                      "\n");
    return start_at_client({"haproxy", "-db", "-f", file("front.cfg")}, ports);
  }
  TcpStream connect_front() const {
    const Netns::Inside inside(client_);
    return TcpStream::connect(at("127.0.0.1", kFront));
  }
  void start_echo() {
    const Netns::Inside inside(servers_);
    echo_.emplace("mailbox", at(kServerV4, kPort), NamedEcho::Proxy::required);
  }
  std::optional<NamedEcho> echo_;
};

// In front and behind: whom the last one sees is the front, until it is believed.
TEST_F(HaproxyInFront, AndBehind) {
  start_haproxy();
  start_edge(pass_through({kPort}, "v2"));
  start_front("");
  const std::string said = at_client({"curl", "-sS", "--max-time", "20", "http://127.0.0.1:9000/"});
  EXPECT_TRUE(said.starts_with("192.0.2.10:")) << said;
  EXPECT_TRUE(said.ends_with(" to 192.0.2.1:8081 for ")) << said;
}

TEST_F(HaproxyInFront, EveryByteBothWays) {
  start_echo();
  start_edge(pass_through({kPort}, "v2"));
  start_front("");
  const TcpStream client = connect_front();
  EXPECT_TRUE(client.recv_line().starts_with("mailbox v2 192.0.2.10:"));
  std::string sent(16 << 20, 0), received;
  for (size_t i = 0; i < sent.size(); ++i) sent[i] = static_cast<char>(i * 2654435761u >> 13);
  std::thread sender([&] {
    client.send_all(sent);
    client.half_close();
  });
  EXPECT_EQ(client.recv_to_end(&received), End::fin);
  sender.join();
  EXPECT_TRUE(received == sent) << received.size() << " bytes came back";
}

TEST_F(HaproxyInFront, NoticesTheDrain) {
  start_echo();
  start_edge(pass_through({kPort}, "v2"));
  Process& front = start_front("check inter 100ms fall 1 rise 1");
  const TcpStream open = connect_front();
  EXPECT_TRUE(open.recv_line().starts_with("mailbox v2 192.0.2.10:"));
  daemon_->process().signal(SIGTERM);
  EXPECT_TRUE(front.wait_for("Server front/edge is DOWN")) << front.output();
  std::string said;
  connect_front().recv_to_end(&said);
  EXPECT_EQ(said, "");
  open.send_all("finishing");
  EXPECT_EQ(open.recv_exactly(9), "finishing");
  open.half_close();
  EXPECT_EQ(open.recv_to_end(), End::fin);
  EXPECT_EQ(daemon_->process().wait_exit(), 0) << daemon_->log();
  expect_no_trace(*daemon_);
  expect_log_adds_up(daemon_->log());
  EXPECT_NE(daemon_->log().find("reason=completed"), std::string::npos) << daemon_->log();
  daemon_.reset();
}

// In front and believed: whom the servers see is the front's client.
class HaproxyBelieved : public HaproxyInFront {
 protected:
  void start_believing() {
    start_edge(pass_through({kPort}, "v2") + "accept_proxy = { from = [\"192.0.2.10/32\"] }\n");
  }
};

TEST_F(HaproxyBelieved, KeepsTheFirstClient) {
  start_echo();
  start_believing();
  for (const char* version : {"send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c"}) {
    Process& front = start_front(version);
    const Netns::Inside inside(client_);
    const TcpStream client = TcpStream::connect(at("127.0.0.1", kFront), at("127.9.9.9", 0));
    EXPECT_EQ(client.recv_line(), "mailbox v2 " + client.local().text()) << version;
    client.send_all("EHLO");
    EXPECT_EQ(client.recv_exactly(4), "EHLO");
    client.half_close();
    EXPECT_EQ(client.recv_to_end(), End::fin);
    front.signal(SIGTERM);
    front.wait_exit();
  }
}

// HAProxy behind checks the CRC32C, and shows the unique id that HAProxy in front has made.
TEST_F(HaproxyBelieved, PassesItsTlvsOn) {
  directory_.write("haproxy.cfg", R"(
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
frontend f
  bind 198.51.100.25:8081 accept-proxy
  http-request return status 200 content-type text/plain lf-string "%[src]:%[src_port] %[fc_pp_unique_id]"
)");
  start_server({"haproxy", "-db", "-f", file("haproxy.cfg")}, {kPort});
  start_believing();
  start_front("send-proxy-v2 proxy-v2-options crc32c,unique-id\n  unique-id-format from-front-%ci:%cp");
  EXPECT_EQ(ask("http://127.0.0.1:9000/", 40001), "127.0.0.1:40001 from-front-127.0.0.1:40001");
  EXPECT_TRUE(wait_until([&] {
    return daemon_->log().find(" unique_id=from-front-127.0.0.1:40001 ") != std::string::npos;
  })) << daemon_->log();
}

// Its checks (a header that says LOCAL or names HAProxy itself, then a RST) find the edge up, reach no server
// and leave no line. Without a header HAProxy's check is a RST to our SYN/ACK: nothing is ever accepted.
TEST_F(HaproxyBelieved, ChecksInSilence) {
  start_echo();
  start_believing();
  uint64_t probes = 0;
  for (const char* version : {"send-proxy check", "send-proxy-v2 check", "check-send-proxy check"}) {
    Process& front = start_front(std::string(version) + " inter 20ms fall 5 rise 1", {});
    EXPECT_TRUE(wait_until([&] { return daemon_->closed("proxy_probe") >= probes + 10; })) << version << "\n"
                                                                                           << daemon_->log();
    front.signal(SIGTERM);
    front.wait_exit();
    EXPECT_EQ(front.output().find("DOWN"), std::string::npos) << front.output();
    EXPECT_TRUE(daemon_->wait_active(0));
    probes = daemon_->closed("proxy_probe");
    const Json totals = daemon_->totals();
    EXPECT_EQ(totals.at("accepted"), probes) << version << " " << totals;
  }
  EXPECT_EQ(echo_->served(), 0u);
  EXPECT_EQ(daemon_->log().find("info  flow "), std::string::npos) << daemon_->log();
  EXPECT_EQ(daemon_->log().find("more refused"), std::string::npos) << daemon_->log();
  EXPECT_EQ(daemon_->log().find(" warn "), std::string::npos) << daemon_->log();
}

// One that wants to hear the server's greeting hears it.
TEST_F(HaproxyBelieved, ChecksTheGreeting) {
  start_echo();
  start_believing();
  Process& front = start_front(
      "send-proxy-v2 check inter 500ms fall 3 rise 1\n  option tcp-check\n  tcp-check expect string mailbox",
      {});
  EXPECT_TRUE(wait_until([&] { return echo_->served() >= 4; }));
  front.signal(SIGTERM);
  front.wait_exit();
  EXPECT_EQ(front.output().find("DOWN"), std::string::npos) << front.output();
  EXPECT_EQ(daemon_->log().find("info  flow "), std::string::npos) << daemon_->log();
}

TEST_F(HaproxyBelieved, NobodyElseIs) {
  start_echo();
  start_edge(pass_through({kPort}, "v2") + "accept_proxy = { from = [\"192.0.2.11/32\"] }\n");
  start_front("send-proxy");
  std::string said;
  connect_front().recv_to_end(&said);
  EXPECT_EQ(said, "");
  EXPECT_GE(daemon_->closed("proxy_not_trusted"), 1u);
  EXPECT_EQ(echo_->served(), 0u);
}

}  // namespace
}  // namespace penstock::test
