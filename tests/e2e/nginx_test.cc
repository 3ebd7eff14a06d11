// SPDX-License-Identifier: Apache-2.0
// nginx behind the edge: it reads the PROXY header in its http and its stream module, and large bodies arrive
// whole.
#include "e2e/site.h"
#include "support/pattern.h"

namespace penstock::test {
namespace {

class Nginx : public Site {
 protected:
  // `http` and `stream` are the bodies of these blocks.
  void start_nginx(const std::string& http, const std::string& stream, const std::vector<uint16_t>& ports) {
    directory_.write("nginx.conf",
                     "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\nuser root;\n"
                     "daemon off;\npid " +
                         file("nginx.pid") +
                         ";\nerror_log stderr;\nevents {}\n"
                         "http {\naccess_log off;\nclient_body_temp_path " +
                         file("body") + ";\nproxy_temp_path " + file("proxy") + ";\nfastcgi_temp_path " +
                         file("fastcgi") + ";\nuwsgi_temp_path " + file("uwsgi") + ";\nscgi_temp_path " +
                         file("scgi") + ";\n" + http + "}\nstream {\n" + stream + "}\n");
    start_server({"nginx", "-e", "stderr", "-p", directory_.path(), "-c", file("nginx.conf")}, ports);
  }
  std::string curl(const std::vector<std::string>& more) const {
    std::vector<std::string> argv{"curl", "-sS", "-g", "--max-time", "60"};
    argv.insert(argv.end(), more.begin(), more.end());
    return at_client(argv);
  }
};

constexpr char kSaysWhoIsThere[] =
    R"(server { listen 198.51.100.25:8082 proxy_protocol;
       return 200 "$proxy_protocol_addr:$proxy_protocol_port to $proxy_protocol_server_addr:$proxy_protocol_server_port"; }
)";
constexpr char kStreamSaysWhoIsThere[] =
    R"(server { listen 198.51.100.25:8083 proxy_protocol;
       return "$proxy_protocol_addr:$proxy_protocol_port to $proxy_protocol_server_addr:$proxy_protocol_server_port"; }
)";

class NginxReads : public Nginx, public testing::WithParamInterface<const char*> {};
INSTANTIATE_TEST_SUITE_P(proxy_protocol, NginxReads, testing::Values("v1", "v2"),
                         [](const auto& tested) { return tested.param; });

TEST_P(NginxReads, InHttp) {
  start_nginx(kSaysWhoIsThere, "", {8082});
  start_edge(pass_through({8082}, GetParam()));
  EXPECT_EQ(curl({"--local-port", "40001", "http://192.0.2.1:8082/"}), "192.0.2.10:40001 to 192.0.2.1:8082");
  EXPECT_EQ(curl({"--local-port", "40002", "http://[2001:db8:1::1]:8082/"}),
            "2001:db8:1::10:40002 to 2001:db8:1::1:8082");
}

TEST_P(NginxReads, InStream) {
  start_nginx("", kStreamSaysWhoIsThere, {8083});
  start_edge(pass_through({8083}, GetParam()));
  for (const char* edge : {kEdgeV4, kEdgeV6}) {
    const TcpStream client = connect(edge, 8083);
    std::string said;
    EXPECT_EQ(client.recv_to_end(&said), End::fin);
    const bool v4 = edge == kEdgeV4;
    EXPECT_EQ(said, std::string(v4 ? kClientV4 : kClientV6) + ":" + std::to_string(client.local().port) +
                        " to " + edge + ":8083");
  }
}

TEST_F(Nginx, LargeBodiesArriveWhole) {
  const std::string body = pattern(11, 48 << 20);
  directory_.write("body.bin", body);
  start_nginx("server { listen 198.51.100.25:8084 proxy_protocol; root " + directory_.path() + "; }\n", "",
              {8084});
  start_edge(pass_through({8084}, "v2"));
  for (const char* host : {"192.0.2.1", "[2001:db8:1::1]"}) {
    curl({"-o", file("received.bin"), std::string("http://") + host + ":8084/body.bin"});
    EXPECT_EQ(read_file(file("received.bin")), body) << host;
  }
}

// Two names behind one port, told apart by SNI alone; each shows its own certificate.
TEST_F(Nginx, NamesBehindOnePort) {
  make_certificate("www.example.net");
  make_certificate("mta-sts.example.net");
  const auto https = [&](const std::string& listen, const std::string& name) {
    return "server { listen " + listen + "; ssl_certificate " + file(name + ".pem") +
           "; ssl_certificate_key " + file(name + ".key") + "; return 200 \"" + name +
           " sees $remote_addr $proxy_protocol_addr\"; }\n";
  };
  start_nginx(https("198.51.100.25:8443 ssl proxy_protocol", "www.example.net") +
                  https("198.51.100.25:443 ssl http2", "mta-sts.example.net"),
              "", {443, 8443});
  start_edge(R"(
[upstream.local-web]
servers = ["198.51.100.25:8443"]
proxy_protocol = "v2"
[upstream.mailbox-https]
servers = ["198.51.100.25:443"]
[[listener]]
name = "web"
bind = [":443"]
upstream = "local-web"
  [[listener.route]]
  sni = ["mta-sts.*"]
  upstream = "mailbox-https"
)");
  const auto get = [&](const std::string& name, const std::string& edge) {
    return curl(
        {"--cacert", file(name + ".pem"), "--resolve", name + ":443:" + edge, "https://" + name + "/"});
  };
  EXPECT_EQ(get("www.example.net", "192.0.2.1"), "www.example.net sees 198.51.100.1 192.0.2.10");
  EXPECT_EQ(get("www.example.net", "[2001:db8:1::1]"), "www.example.net sees 198.51.100.1 2001:db8:1::10");
  EXPECT_EQ(get("mta-sts.example.net", "192.0.2.1"), "mta-sts.example.net sees 198.51.100.1 ");
  EXPECT_EQ(get("mta-sts.example.net", "[2001:db8:1::1]"), "mta-sts.example.net sees 198.51.100.1 ");
}

}  // namespace
}  // namespace penstock::test
