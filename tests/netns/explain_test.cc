// SPDX-License-Identifier: Apache-2.0
// What `penstock explain` says of a client against what the daemon then does with it: which server it
// reaches, and every byte of the header that server is sent.
#include <algorithm>
#include <array>
#include <map>

#include "netns/edge.h"
#include "support/proxy_header.h"
#include "support/tls_hello.h"

namespace penstock::test {
namespace {

constexpr const char* kTables = R"(
[dns]
servers = ["127.0.0.1:53"]
[upstream.v2]
servers = ["127.0.0.1:3001"]
proxy_protocol = "v2"
[upstream.tagged]
servers = ["127.0.0.1:3001"]
proxy_protocol = "v2"
tlvs = ["unique_id", "crc32c"]
[upstream.v1]
servers = ["[::1]:3001"]
proxy_protocol = "v1"
[upstream.plain]
servers = ["127.0.0.1:3002"]
[upstream.by-name]
servers = ["localhost"]
family = "v4"
proxy_protocol = "v2"
[upstream.turns]
servers = [{ address = "127.0.0.1:3004", weight = 3 }, { address = "127.0.0.1:3005", weight = 7 }]
[upstream.backup]
servers = [{ address = "127.0.0.1:3004", backup = true }, "127.0.0.1:3002"]
[upstream.service]
srv = "_imap._tcp.example.net"
[upstream.no-service]
srv = "_pop3._tcp.example.net"
[upstream.hash]
servers = ["127.0.0.1:3004", "127.0.0.1:3005", "127.0.0.1:3006"]
balance = "source_hash"
[[listener]]
name = "mail"
bind = ["127.0.0.1:2525", "[2001:db8::25]:2525", ":2526"]
upstream = "v2"
  [[listener.route]]
  source = ["127.1.0.0/16"]
  upstream = "v1"
[[listener]]
name = "named"
bind = ["127.0.0.8:3003"]
upstream = "by-name"
[[listener]]
name = "balanced"
bind = [":2601", ":2602", ":2603", ":2604", ":2605"]
upstream = "hash"
  [[listener.route]]
  port = 2601
  upstream = "turns"
  [[listener.route]]
  port = 2602
  upstream = "backup"
  [[listener.route]]
  port = 2604
  upstream = "service"
  [[listener.route]]
  port = 2605
  upstream = "no-service"
[[listener]]
name = "web"
bind = ["127.0.0.1:8443"]
upstream = "plain"
  [[listener.route]]
  alpn = "h2"
  sni = "mta-sts.*"
  upstream = "v2"
  [[listener.route]]
  sni = "tagged.example"
  upstream = "tagged"
  [[listener.route]]
  sni = "*.forbidden.example"
  action = "reject"
)";

struct Explained {
  int exit_code;
  Json says;  // null when it printed something else than one line of JSON
};

class Explain : public Edge {
 protected:
  void SetUp() override {
    netns_.ip("addr add 2001:db8::25/128 dev lo nodad");
    netns_.ip("addr add 2001:db8::7/128 dev lo nodad");
    dns_.emplace(std::vector<std::string>{
        "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--user=root", "--no-resolv", "--no-hosts",
        "--bind-interfaces", "--listen-address=127.0.0.1", "--local=/example.net/",
        "--host-record=a.example.net,127.0.0.1", "--host-record=b.example.net,::1",
        // target, port, priority, weight
        "--srv-host=_imap._tcp.example.net,a.example.net,3006,20,9",
        "--srv-host=_imap._tcp.example.net,a.example.net,3004,10,1000",
        "--srv-host=_imap._tcp.example.net,gone.example.net,3005,20,1",
        "--srv-host=_imap._tcp.example.net,b.example.net,3001,10,2000"});
    ASSERT_TRUE(dns_->wait_for("started, version")) << dns_->output();
    DaemonOptions options;
    options.tables = kTables;
    start_with(std::move(options));
  }

  Explained explain(const Endpoint& to, const Endpoint& from, const TlsHello* hello = nullptr) const {
    std::vector<std::string> words = {
        command_program(), "explain", "--json",   "-c", daemon_->config_file(), "--to",
        to.text(),         "--from",  from.text()};
    if (hello && !hello->sni.empty()) words.insert(words.end(), {"--sni", hello->sni});
    for (const std::string& name : hello ? hello->alpn : std::vector<std::string>{})
      words.insert(words.end(), {"--alpn", name});
    Process process(words);
    const int exit_code = process.wait_exit();
    return {exit_code, Json::parse(process.output(), nullptr, false)};
  }

  // Connects, asks what should become of it, and sees what does. Returns the server reached.
  std::string expect_as_explained(const Endpoint& to, const Endpoint& from, const TlsHello* hello = nullptr) {
    const TcpStream client = TcpStream::connect(to, from);
    const std::string said = hello ? hello->bytes() : "EHLO\r\n";
    client.send_all(said);
    const auto [server, stream] = reached();
    if (!stream) return "";

    const Explained explained = explain(to, client.local(), hello);
    EXPECT_EQ(explained.exit_code, 0) << explained.says;
    if (!explained.says.is_object()) return "";
    const Json& first = explained.says.at("servers").at(0);
    EXPECT_EQ(first.at("addresses").at(0), server) << explained.says;
    const Json& header = explained.says.at("header");
    if (!header.is_null()) {
      const std::string sent = hexadecimal(read_proxy_header(*stream).bytes);
      EXPECT_TRUE(is_as_explained(header.at("hexadecimal"), sent)) << sent << " is not " << explained.says;
      std::string fields;
      for (const Json& field : header.at("fields")) fields += field.at("bytes");
      if (header.at("fields").empty()) {
        EXPECT_EQ(server, "[::1]:3001") << "version 1 has no fields, version 2 has";
      } else {
        EXPECT_EQ(header.at("hexadecimal"), fields) << "a byte belongs to no field";
      }
    }
    EXPECT_EQ(stream->recv_exactly(said.size()), said);
    return server;
  }

  // "?" stands for a digit that each flow has of its own.
  static bool is_as_explained(const std::string& explained, const std::string& sent) {
    return std::equal(explained.begin(), explained.end(), sent.begin(), sent.end(),
                      [](char a, char b) { return a == b || a == '?'; });
  }

  static std::string hexadecimal(const std::string& bytes) {
    std::string out;
    for (const char byte : bytes) {
      for (const int digit : {byte >> 4 & 0xf, byte & 0xf}) out += "0123456789abcdef"[digit];
    }
    return out;
  }

 private:
  std::optional<Process> dns_;
  struct Reached {
    std::string server;
    std::optional<TcpStream> stream;
  };
  Reached reached() const {
    Reached found;
    const bool somebody = wait_until([&] {
      for (const TcpListener& server : servers_) {
        found.stream = server.accept_within(1ms);
        if (!found.stream) continue;
        found.server = server.address().text();
        return true;
      }
      return false;
    });
    EXPECT_TRUE(somebody) << "no server was reached\n" << daemon_->log();
    return found;
  }

  const std::array<TcpListener, 7> servers_ = {
      TcpListener(at("127.0.0.1", 3001)), TcpListener(at("::1", 3001)),
      TcpListener(at("127.0.0.1", 3002)), TcpListener(at("127.0.0.1", 3003)),
      TcpListener(at("127.0.0.1", 3004)), TcpListener(at("127.0.0.1", 3005)),
      TcpListener(at("127.0.0.1", 3006)),
  };
};
INSTANTIATE_TEST_SUITE_P(drive, Explain, testing::Values(Drive{"auto"}), drive_name);

TEST_P(Explain, Ipv4) {
  EXPECT_EQ(expect_as_explained(at("127.0.0.1", 2525), at("127.2.0.1", 0)), "127.0.0.1:3001");
}

TEST_P(Explain, Ipv6) {
  EXPECT_EQ(expect_as_explained(at("2001:db8::25", 2525), at("2001:db8::7", 0)), "127.0.0.1:3001");
}

TEST_P(Explain, EveryAddress) {
  EXPECT_EQ(expect_as_explained(at("127.0.0.9", 2526), at("127.2.0.1", 0)), "127.0.0.1:3001");
  EXPECT_EQ(expect_as_explained(at("::1", 2526), at("2001:db8::7", 0)), "127.0.0.1:3001");
}

TEST_P(Explain, RouteBySourceAndVersion1) {
  EXPECT_EQ(expect_as_explained(at("127.0.0.1", 2525), at("127.1.2.3", 0)), "[::1]:3001");
}

TEST_P(Explain, RouteBySniAndAlpn) {
  const TlsHello hello{.sni = "Mta-STS.example.net", .alpn = {"h2", "http/1.1"}};
  EXPECT_EQ(expect_as_explained(at("127.0.0.1", 8443), at("127.2.0.1", 0), &hello), "127.0.0.1:3001");
}

TEST_P(Explain, UniqueIdAndChecksum) {
  const TlsHello hello{.sni = "tagged.example", .alpn = {"h2"}};
  EXPECT_EQ(expect_as_explained(at("127.0.0.1", 8443), at("127.2.0.1", 0), &hello), "127.0.0.1:3001");
}

TEST_P(Explain, NoRouteMatches) {
  const TlsHello other_alpn{.sni = "mta-sts.example.net", .alpn = {"http/1.1"}};
  EXPECT_EQ(expect_as_explained(at("127.0.0.1", 8443), at("127.2.0.1", 0), &other_alpn), "127.0.0.1:3002");
  const TlsHello no_sni{.alpn = {"h2"}};
  EXPECT_EQ(expect_as_explained(at("127.0.0.1", 8443), at("127.2.0.1", 0), &no_sni), "127.0.0.1:3002");
}

// The mail listener waits for no hello, so the header cannot say what is in it.
TEST_P(Explain, HelloThatNobodyLooksAt) {
  const TlsHello hello{.sni = "mta-sts.example.net", .alpn = {"h2"}};
  EXPECT_EQ(expect_as_explained(at("127.0.0.1", 2525), at("127.2.0.1", 0), &hello), "127.0.0.1:3001");
}

TEST_P(Explain, ServerByNameAtTheClientsPort) {
  EXPECT_EQ(expect_as_explained(at("127.0.0.8", 3003), at("127.2.0.1", 0)), "127.0.0.1:3003");
}

TEST_P(Explain, FirstInTurn) {
  EXPECT_EQ(expect_as_explained(at("127.0.0.1", 2601), at("127.2.0.1", 0)), "127.0.0.1:3005");
}

TEST_P(Explain, NotTheBackup) {
  EXPECT_EQ(expect_as_explained(at("127.0.0.1", 2602), at("127.2.0.1", 0)), "127.0.0.1:3002");
}

TEST_P(Explain, TheVeryServerByHash) {
  std::map<std::string, int> reached;
  for (int i = 1; i <= 12; ++i) {
    const std::string client =
        i % 2 == 0 ? "127.2.0." + std::to_string(i) : "127.3." + std::to_string(i) + ".1";
    ++reached[expect_as_explained(at("127.0.0.1", 2603), at(client, 0))];
  }
  EXPECT_EQ(reached.size(), 3u);
}

// By weight within the priority, then the backups, by theirs.
TEST_P(Explain, ServersByDns) {
  EXPECT_EQ(expect_as_explained(at("127.0.0.1", 2604), at("127.2.0.1", 0)), "[::1]:3001");
  const Json says = explain(at("127.0.0.1", 2604), at("127.2.0.1", 1)).says;
  EXPECT_EQ(says.at("srv"), "_imap._tcp.example.net");
  std::vector<std::string> servers;
  for (const Json& s : says.at("servers"))
    servers.push_back(
        s.at("server").get<std::string>() + " " + std::to_string(s.at("weight").get<int>()) +
        (s.at("backup") ? " backup " : " ") +
        (s.at("addresses").empty() ? s.at("error") : s.at("addresses").at(0)).get<std::string>());
  EXPECT_EQ(servers, (std::vector<std::string>{"b.example.net:3001 250 [::1]:3001",
                                               "a.example.net:3004 125 127.0.0.1:3004",
                                               "a.example.net:3006 9 backup 127.0.0.1:3006",
                                               "gone.example.net:3005 1 backup no such name"}));
}

TEST_P(Explain, AServiceThatIsNone) {
  const Explained explained = explain(at("127.0.0.1", 2605), at("127.2.0.1", 1));
  EXPECT_EQ(explained.exit_code, 0);
  EXPECT_EQ(explained.says.at("servers"), Json::array());
  EXPECT_EQ(explained.says.at("notes"), Json::array({"_pop3._tcp.example.net: no such name"}));
}

TEST_P(Explain, Rejected) {
  const TlsHello hello{.sni = "www.forbidden.example"};
  const TcpStream client = TcpStream::connect(at("127.0.0.1", 8443));
  client.send_all(hello.bytes());
  client.recv_to_end();
  const Explained explained = explain(at("127.0.0.1", 8443), client.local(), &hello);
  EXPECT_EQ(explained.exit_code, 1);
  EXPECT_TRUE(closed_for(explained.says.at("closed")));
  EXPECT_EQ(explained.says.at("route").at("index"), 2);
}

TEST_P(Explain, NothingListens) {
  EXPECT_EQ(TcpStream::try_connect(at("127.0.0.2", 2525)), ECONNREFUSED);
  EXPECT_EQ(explain(at("127.0.0.2", 2525), at("127.2.0.1", 1)).exit_code, 1);
}

}  // namespace
}  // namespace penstock::test
