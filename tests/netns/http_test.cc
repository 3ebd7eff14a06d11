// SPDX-License-Identifier: Apache-2.0
// admin.http: metrics that say what `penstock status` says, health from the first moment to the last, and
// clients that mean no good.

#include <csignal>
#include <fstream>
#include <map>
#include <sstream>
#include <vector>

#include "netns/edge.h"

namespace penstock::test {
namespace {

constexpr uint16_t kPort = 9464;

// To one request on a connection of its own, until the daemon's FIN.
std::string answer(const std::string& request) {
  const TcpStream stream = TcpStream::connect(at("127.0.0.1", kPort));
  stream.send_all(request);
  std::string all;
  EXPECT_EQ(stream.recv_to_end(&all), End::fin) << all;
  return all;
}

// "200 alive"
std::string get(const std::string& path) {
  const std::string all = answer("GET " + path + " HTTP/1.1\r\nHost: edge\r\n\r\n");
  const size_t body = all.find("\r\n\r\n");
  if (!all.starts_with("HTTP/1.1 ") || body == all.npos) return "malformed: " + all;
  std::string text = all.substr(9, 4) + all.substr(body + 4);
  if (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

std::string shell(const std::string& command) {
  Process process({"bash", "-o", "pipefail", "-c", command});
  const int code = process.wait_exit();
  return process.output() + (code == 0 ? "" : "exit " + std::to_string(code));
}

using Samples = std::map<std::string, double>;  // "penstock_flows_closed_total{reason=\"killed\"}": 0

Samples scrape() {
  std::istringstream lines(shell("curl -sS --fail --compressed http://127.0.0.1:9464/metrics"));
  Samples samples;
  for (std::string line; std::getline(lines, line);) {
    const size_t value = line.rfind(' ');
    if (line.starts_with('#') || value == line.npos) continue;
    EXPECT_TRUE(samples.emplace(line.substr(0, value), std::stod(line.substr(value))).second) << line;
  }
  return samples;
}

class Http : public Edge {
 protected:
  void start_http() {
    DaemonOptions options;
    options.tables = mail_tables();
    options.http = "127.0.0.1:9464";
    start_with(options);
  }
};
FOR_BOTH_ENGINES(Http);

TEST_P(Http, MetricsPleasePromtool) {
  start_http();
  EXPECT_EQ(shell("curl -sS --fail http://127.0.0.1:9464/metrics | promtool check metrics"), "");
}

TEST_P(Http, MetricsSayWhatStatusSays) {
  start_http();
  const TcpListener server(at(kAddress, kServerPort));
  for (int i = 0; i < 3; ++i) {
    const Pair flow = open_flow(server);
    flow.client.send_all_with_fin("QUIT\r\n");
    EXPECT_EQ(flow.server.recv_to_end(), End::fin);
    flow.server.half_close();
    EXPECT_EQ(flow.client.recv_to_end(), End::fin);
    ASSERT_TRUE(daemon_->wait_active(0));
  }
  const Pair live = open_flow(server);
  Samples m = scrape();
  const Json status = daemon_->status(), totals = status.at("totals");
  EXPECT_EQ(m.at("penstock_flows_accepted_total"), 4);
  EXPECT_EQ(m.at("penstock_flows_active"), 1);
  EXPECT_EQ(m.at("penstock_flows_closed_total{reason=\"completed\"}"), 3);
  EXPECT_EQ(m.at("penstock_listener_flows_accepted_total{listener=\"mail\"}"), 4);
  EXPECT_EQ(m.at("penstock_listener_flows_active{listener=\"mail\"}"), 1);
  EXPECT_EQ(m.at("penstock_upstream_dials_total{upstream=\"mailbox\"}"), 4);
  EXPECT_EQ(m.at("penstock_bytes_total{lane=\"splice\"}") + m.at("penstock_bytes_total{lane=\"relay\"}"), 18);
  for (const auto& [group, name] : {std::pair{"closed", "penstock_flows_closed_total"},
                                    std::pair{"lane_changes", "penstock_lane_changes_total"}}) {
    for (const auto& [reason, count] : totals.at(group).items()) {  // every one, zeros too
      const std::string sample = std::string(name) + "{reason=\"" + reason + "\"}";
      EXPECT_TRUE(m.contains(sample) && m[sample] == count) << sample << " is not " << count;
    }
  }
  EXPECT_EQ(m.at("penstock_memory_limit_bytes"), totals.at("memory_limit_bytes"));
  EXPECT_EQ(m.at("penstock_flows_limit"), status.at("flows_max"));
  EXPECT_EQ(m.at("penstock_dns_questions_total{result=\"failed\"}"), 0);
  EXPECT_EQ(m.contains("penstock_sockmap_trims_total"), !status.at("sockmap").empty());
  EXPECT_GT(m.at("process_resident_memory_bytes"), 1 << 20);
  EXPECT_GT(m.at("process_open_fds"), 10);
  const std::string info = shell("curl -sS http://127.0.0.1:9464/metrics | grep ^penstock_build_info");
  EXPECT_NE(info.find("engine=\"" + status.at("engine").get<std::string>() + "\""), info.npos) << info;
  EXPECT_EQ(status.at("http"), Json({{"address", "127.0.0.1:9464"}, {"state", "listening"}}));
}

TEST_P(Http, MetricsOfServersAddressesAndReloads) {
  DaemonOptions options;
  options.http = "127.0.0.1:9464";
  options.tables = R"([upstream.mailbox]
servers = ["127.0.0.1:3525", "127.0.0.1:3526"]
check = { type = "tcp", interval = "1s", rise = 1, fall = 1 }
[upstream.srv]
srv = "_imap._tcp.example.net"
[[listener]]
name = "mail"
bind = [":2525", "192.0.2.1:2526"]
upstream = "mailbox"
)";
  const TcpListener up(at("127.0.0.1", 3525));
  start_with(options);
  const std::string first = "{upstream=\"mailbox\",server=\"127.0.0.1:3525\"";
  const std::string second = "{upstream=\"mailbox\",server=\"127.0.0.1:3526\"";
  const auto state_of_second = [&] {
    return daemon_->status().at("upstreams").at(0).at("servers").at(1).at("state").get<std::string>();
  };
  ASSERT_TRUE(wait_until([&] { return state_of_second() == "down"; }));
  ASSERT_TRUE(
      wait_until([&] { return scrape()["penstock_checks_total" + first + ",result=\"passed\"}"] > 0; }));
  Samples m = scrape();
  EXPECT_EQ(m.at("penstock_server_up" + first + "}"), 1);
  EXPECT_EQ(m.at("penstock_server_up" + second + "}"), 0);
  EXPECT_EQ(m.at("penstock_checks_total" + first + ",result=\"failed\"}"), 0);
  EXPECT_EQ(m.at("penstock_checks_total" + second + ",result=\"passed\"}"), 0);
  EXPECT_GE(m.at("penstock_checks_total" + second + ",result=\"failed\"}"), 1);
  EXPECT_EQ(m.at("penstock_check_changes_total" + second + "}"), 0);
  EXPECT_LT(m.at("penstock_check_age_seconds" + second + "}"), 5);
  EXPECT_EQ(m.at("penstock_server_drained" + first + "}"), 0);
  EXPECT_EQ(m.at("penstock_server_flows_active" + first + "}"), 0);
  EXPECT_EQ(m.at("penstock_listener_addresses{listener=\"mail\",state=\"listening\"}"), 2);
  EXPECT_EQ(m.at("penstock_listener_addresses{listener=\"mail\",state=\"waiting\"}"), 1);
  EXPECT_EQ(m.at("penstock_config_generation"), 1);
  EXPECT_EQ(m.at("penstock_config_last_reload_successful"), 1);
  EXPECT_EQ(m.at("penstock_config_reloads_refused_total"), 0);
  EXPECT_EQ(m.at("penstock_config_pending_keys"), 0);
  EXPECT_EQ(shell("curl -sS --fail http://127.0.0.1:9464/metrics | promtool check metrics"), "");

  const TcpListener now_up(at("127.0.0.1", 3526));
  ASSERT_TRUE(wait_until([&] { return state_of_second() == "up"; }));
  netns_.ip("addr add 192.0.2.1/32 dev lo");
  daemon_->ask({{"command", "drain"}, {"name", "mailbox/127.0.0.1:3525"}});
  const std::string good = read_file(daemon_->config_file());
  std::ofstream(daemon_->config_file()) << "x = 1\n" << good;
  EXPECT_EQ(daemon_->ask({{"command", "reload"}}).at("reloaded"), false);
  EXPECT_TRUE(daemon_->status()
                  .at("configuration")
                  .at("error")
                  .get<std::string>()
                  .find("/penstock.toml:1:1: error: unknown key") != std::string::npos);
  const double before = m.at("penstock_config_loaded_timestamp_seconds");
  m = scrape();
  EXPECT_EQ(m.at("penstock_server_up" + second + "}"), 1);
  EXPECT_EQ(m.at("penstock_check_changes_total" + second + "}"), 1);
  EXPECT_EQ(m.at("penstock_server_drained" + first + "}"), 1);
  EXPECT_EQ(m.at("penstock_listener_addresses{listener=\"mail\",state=\"listening\"}"), 3);
  EXPECT_EQ(m.at("penstock_listener_addresses{listener=\"mail\",state=\"waiting\"}"), 0);
  EXPECT_EQ(m.at("penstock_config_generation"), 1);
  EXPECT_EQ(m.at("penstock_config_last_reload_successful"), 0);
  EXPECT_EQ(m.at("penstock_config_reloads_refused_total"), 1);
  EXPECT_EQ(m.at("penstock_config_loaded_timestamp_seconds"), before);

  std::ofstream(daemon_->config_file()) << good << "[upstream.more]\nservers = \"192.0.2.7\"\n";
  EXPECT_EQ(daemon_->ask({{"command", "reload"}}).at("reloaded"), true);
  m = scrape();
  EXPECT_EQ(m.at("penstock_config_generation"), 2);
  EXPECT_EQ(m.at("penstock_config_last_reload_successful"), 1);
  EXPECT_GT(m.at("penstock_config_loaded_timestamp_seconds"), before);
  EXPECT_EQ(m.at("penstock_server_up{upstream=\"more\",server=\"192.0.2.7\"}"), 1);  // nobody said otherwise
  at_start_ = daemon_->descriptors();                                                // an address has come
}

TEST_P(Http, MetricsOfACertificate) {
  const TempDir directory;
  const std::string key = directory.path() + "/key.pem", certificate = directory.path() + "/certificate.pem";
  ASSERT_EQ(shell("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 "
                  "-subj /CN=mailbox.example -keyout " +
                  key + " -out " + certificate + " 2>/dev/null"),
            "");
  Process server({"openssl", "s_server", "-accept", "127.0.0.1:3525", "-key", key, "-cert", certificate},
                 {.keep_stdin_open = true});
  ASSERT_TRUE(server.wait_for("ACCEPT")) << server.output();
  DaemonOptions options;
  options.http = "127.0.0.1:9464";
  options.tables = mail_tables("check = { type = \"tls\", interval = \"1s\" }");
  start_with(options);
  Samples m;
  const std::string name =
      "penstock_check_certificate_left_seconds{upstream=\"mailbox\",server=\"127.0.0.1:3525\"}";
  ASSERT_TRUE(wait_until([&] { return (m = scrape()).contains(name); })) << daemon_->log();
  constexpr double kDay = 24 * 3600;
  EXPECT_GT(m[name], 29 * kDay);
  EXPECT_LE(m[name], 30 * kDay);
  EXPECT_EQ(shell("curl -sS --fail http://127.0.0.1:9464/metrics | promtool check metrics"), "");
}

TEST_P(Http, ReadyWhileItServesAndAliveThroughout) {
  const TempDir directory;
  const TcpListener server(at(kAddress, kServerPort));
  Process daemon(
      {daemon_program(), "--config",
       directory.write("penstock.toml", "[admin]\nsocket = \"" + directory.path() +
                                            "/admin.sock\"\n[bpf]\npin = \"/sys/fs/bpf/http-test\"\n" +
                                            mail_tables())});
  ASSERT_TRUE(daemon.wait_for("http listens on 127.0.0.1:9464")) << daemon.output();
  const std::string at_first = get("/readyz");
  EXPECT_TRUE(at_first == "503 starting" || at_first == "200 ready") << at_first;
  EXPECT_EQ(get("/healthz"), "200 alive");
  ASSERT_TRUE(daemon.wait_for("ready: ")) << daemon.output();
  EXPECT_EQ(get("/readyz"), "200 ready");
  TcpStream client = connect();
  TcpStream accepted = server.accept();
  daemon.signal(SIGTERM);
  ASSERT_TRUE(daemon.wait_for("draining")) << daemon.output();
  EXPECT_EQ(get("/readyz"), "503 draining");
  EXPECT_EQ(get("/healthz"), "200 alive");
  EXPECT_TRUE(get("/metrics").starts_with("200 ")) << get("/metrics");
  client.close();
  accepted.close();
  EXPECT_EQ(daemon.wait_exit(), 0) << daemon.output();
  EXPECT_EQ(TcpStream::try_connect(at("127.0.0.1", kPort)), ECONNREFUSED);
}

TEST_P(Http, PortInUseIsAStateAndPasses) {
  TcpListener owner(at("127.0.0.1", kPort));
  start_http();
  const Json waiting = daemon_->status().at("http");
  EXPECT_EQ(waiting.at("state"), "waiting");
  EXPECT_EQ(waiting.at("reason"), "Address already in use");
  EXPECT_NE(daemon_->log().find("http cannot listen on 127.0.0.1:9464: Address already in use"),
            std::string::npos);
  owner.close();
  EXPECT_TRUE(wait_until([&] { return daemon_->status().at("http").at("state") == "listening"; }));
  EXPECT_EQ(get("/readyz"), "200 ready");
  at_start_ = daemon_->descriptors();
}

TEST_P(Http, AnswersWhatItDoesNotServe) {
  start_http();
  EXPECT_EQ(get("/"),
            "501 the status page is not available in this version; there are /metrics, /healthz, /readyz");
  EXPECT_EQ(get("/stats"), "404 not found; there are /metrics, /healthz, /readyz");
  EXPECT_TRUE(answer("POST /metrics HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody").starts_with("HTTP/1.1 405 "));
  EXPECT_TRUE(
      answer(
          "PUT /healthz HTTP/1.1\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n")
          .find("HTTP/1.1 405 ") != std::string::npos);
  EXPECT_TRUE(answer("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").starts_with("HTTP/1.1 400 "));
  EXPECT_TRUE(answer(std::string("\x16\x03\x01\0\0\r\n\r\n", 9)).starts_with("HTTP/1.1 400 "));
  const std::string head = answer("HEAD /healthz HTTP/1.1\r\n\r\n");
  EXPECT_TRUE(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n")) << head;
  // Many ranges must not be many bodies.
  std::string ranges = "0-";
  for (int i = 0; i < 1000; ++i) ranges += ",0-";
  const std::string once = answer("GET /metrics HTTP/1.1\r\nRange: bytes=" + ranges + "\r\n\r\n");
  EXPECT_LT(once.size(), size_t{64} << 10);
}

TEST_P(Http, OneAnswerAConnection) {
  start_http();
  std::string requests;
  for (int i = 0; i < 500; ++i) requests += "GET /healthz HTTP/1.1\r\n\r\n";
  const std::string all = answer(requests);  // and no reset, which could overtake it
  EXPECT_TRUE(all.starts_with("HTTP/1.1 200 ")) << all;
  EXPECT_EQ(all.find("HTTP/1.1", 1), all.npos) << all;
}

TEST_P(Http, HeadersWithoutEndAreCutOff) {
  start_http();
  const double before = scrape().at("process_resident_memory_bytes");
  std::vector<TcpStream> clients;
  for (int i = 0; i < 32; ++i) {
    clients.push_back(TcpStream::connect(at("127.0.0.1", kPort)));
    clients.back().send_all("GET /metrics HTTP/1.1\r\nX: " + std::string(1 << 20, 'x'));
  }
  for (const TcpStream& client : clients) EXPECT_EQ(client.recv_exactly(13), "HTTP/1.1 431 ");
  EXPECT_LT(scrape().at("process_resident_memory_bytes"), before + (4 << 20));
}

TEST_P(Http, AThousandSilentClientsDelayNobody) {
  start_http();
  std::vector<TcpStream> silent;
  for (int i = 0; i < 1000; ++i) silent.push_back(TcpStream::connect(at("127.0.0.1", kPort)));
  silent[999].send_all("GET /heal");
  EXPECT_EQ(shell("curl -sS --max-time 2 http://127.0.0.1:9464/healthz"), "alive\n");
  EXPECT_LE(daemon_->descriptors().sockets, at_start_.sockets + 64);
  EXPECT_EQ(silent[0].recv_to_end(), End::fin);    // the oldest had to go
  EXPECT_EQ(silent[999].recv_to_end(), End::fin);  // its time is over
}

}  // namespace
}  // namespace penstock::test
