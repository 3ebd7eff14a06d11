// SPDX-License-Identifier: Apache-2.0
// openssl s_client through SNI routes to two openssl s_servers: the handshake, the certificate and the bytes
// are theirs.
#include "e2e/site.h"

namespace penstock::test {
namespace {

class Openssl : public Site {
 protected:
  void SetUp() override {
    for (const char* name : {"www.example.net", "mta-sts.example.net"}) make_certificate(name);
    serve("www.example.net", 4431);
    serve("mta-sts.example.net", 4432);
    start_edge(R"(
[upstream.www]
servers = ["198.51.100.25:4431"]
[upstream.mta-sts]
servers = ["198.51.100.25:4432"]
[[listener]]
name = "web"
bind = [":443"]
upstream = "www"
  [[listener.route]]
  sni = ["mta-sts.*"]
  upstream = "mta-sts"
)");
  }
  void serve(const std::string& name, uint16_t port) {
    // -rev: answers each line with its reverse.
    start_server(
        {"openssl", "s_server", "-rev", "-accept", std::string(kServerV4) + ":" + std::to_string(port),
         "-cert", file(name + ".pem"), "-key", file(name + ".key")},
        {port});
  }
  // What a client that verifies `name`'s certificate is shown when it says "penstock".
  std::string talk(const std::string& edge, const std::string& name,
                   const std::vector<std::string>& more = {}) const {
    std::vector<std::string> argv{
        "openssl", "s_client",    "-connect", edge + ":443",       "-verify_return_error",
        "-brief",  "-ign_eof",    "-CAfile",  file(name + ".pem"), "-verify_hostname",
        name,      "-servername", name};
    argv.insert(argv.end(), more.begin(), more.end());
    // "CLOSE" as a line of its own ends a session of `s_server -rev`; the end of stdin alone would cut it
    // off.
    return at_client(argv, "penstock\nCLOSE\n");
  }
};

TEST_F(Openssl, ReachesTheServerOfItsSni) {
  for (const std::string edge : {"192.0.2.1", "[2001:db8:1::1]"}) {
    for (const std::string name : {"www.example.net", "mta-sts.example.net"}) {
      const std::string shown = talk(edge, name);
      EXPECT_NE(shown.find("CN = " + name), std::string::npos) << shown;
      EXPECT_NE(shown.find("kcotsnep"), std::string::npos) << shown;
    }
  }
}

TEST_F(Openssl, OldAndNewTls) {
  for (const char* version : {"-tls1_2", "-tls1_3"}) {
    EXPECT_NE(talk("192.0.2.1", "mta-sts.example.net", {version}).find("kcotsnep"), std::string::npos)
        << version;
  }
}

TEST_F(Openssl, AlpnStaysWithTheServer) {
  const std::string shown = talk("192.0.2.1", "mta-sts.example.net", {"-alpn", "h2,http/1.1"});
  EXPECT_NE(shown.find("kcotsnep"), std::string::npos) << shown;
}

}  // namespace
}  // namespace penstock::test
