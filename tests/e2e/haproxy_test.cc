// SPDX-License-Identifier: Apache-2.0
// HAProxy, whose protocol it is, reads the PROXY header we send.
#include "e2e/site.h"

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

}  // namespace
}  // namespace penstock::test
