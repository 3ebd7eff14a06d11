// SPDX-License-Identifier: Apache-2.0
// `penstock doctor` before real servers, with and without PROXY: each verdict, the advice, and what the
// server must trust.
#include <array>
#include <future>
#include <thread>

#include "check/doctor.h"
#include "dns/resolver.h"
#include "mail_site.h"

namespace penstock::test {
namespace {

class Doctor : public MailSite {
 protected:
  // An upstream for each way to send the header to each of these ports: "p25-off", "p25-v1", "p25-v2".
  void start_edge_to(const std::vector<uint16_t>& ports) {
    std::string tables;
    for (const uint16_t port : ports) {
      for (const std::string proxy_protocol : {"off", "v1", "v2"})
        tables += "[upstream.p" + std::to_string(port) + "-" + proxy_protocol +
                  "]\nservers = [\"198.51.100.25:" + std::to_string(port) + "\"]\nproxy_protocol = \"" +
                  proxy_protocol + "\"\n";
    }
    start_edge(tables + "[[listener]]\nname = \"x\"\nbind = [\":7\"]\nupstream = \"p" +
               std::to_string(ports[0]) + "-off\"\n");
  }
  struct Said {
    int code;
    Json json;
  };
  Said ask(const std::string& upstream) const {
    Process command({command_program(), "doctor", upstream, "--json", "--socket", daemon_->admin_socket()});
    const int code = command.wait_exit(60s);
    Json json = Json::parse(command.output(), nullptr, false);
    if (json.is_discarded()) throw std::runtime_error(command.output());
    return {code, json};
  }
  void expect(const std::string& upstream, const std::string& verdict, const std::string& expects,
              size_t dials) const {
    SCOPED_TRACE(upstream);
    const Said said = ask(upstream);
    EXPECT_EQ(said.code, verdict == "as_configured" ? 0 : 1);
    EXPECT_EQ(said.json.at("verdict"), verdict) << said.json.dump(2);
    EXPECT_EQ(said.json.value("expects", ""), expects) << said.json.dump(2);
    EXPECT_EQ(said.json.at("dials").size(), dials) << said.json.dump(2);
    EXPECT_EQ(said.json.at("trusted"), kEdgeAtServers);
    if (verdict == "mismatch") {
      const std::string change = "set proxy_protocol = \"" + expects + "\" in [upstream." + upstream + "]";
      EXPECT_NE(said.json.at("advice").get<std::string>().find(change), std::string::npos)
          << said.json.at("advice");
    }
  }
};

TEST_F(Doctor, OfPostfix) {
  start_postfix();
  start_edge_to({kSmtp, kSmtps, kPostscreenProxy, kSmtpProxy});
  expect("p25-off", "as_configured", "off", 1);
  expect("p25-v2", "mismatch", "off", 2);
  expect("p25-v1", "mismatch", "off", 2);
  expect("p465-off", "as_configured", "off", 1);
  expect("p587-v2", "as_configured", "v2", 1);
  expect("p587-off", "mismatch", "v2", 2);
  expect("p2525-v1", "as_configured", "v1", 1);
  expect("p2525-off", "mismatch", "v2", 2);  // a port that says nothing of what is spoken there
}

TEST_F(Doctor, OfDovecot) {
  start_dovecot();
  start_edge_to({kImap, kImaps, kImapProxy, kImapsProxy});
  expect("p143-off", "as_configured", "off", 1);
  expect("p143-v2", "mismatch", "off", 2);
  expect("p993-v2", "mismatch", "off", 2);
  expect("p1143-off", "mismatch", "v2", 2);
  expect("p1143-v2", "as_configured", "v2", 1);
}

TEST_F(Doctor, OfNginx) {
  start_nginx();
  start_edge_to({kHttps, kHttpsProxy, kHttp, kHttpProxy});
  expect("p443-off", "as_configured", "off", 1);
  expect("p443-v2", "mismatch", "off", 2);
  expect("p80-v2", "mismatch", "off", 3);
  // It waits for its client, and takes silence as well as a header: no word of it tells which it expects.
  expect("p1080-v2", "undecided", "", 3);
}

// TLS on a port of its own: the check says what is spoken there.
TEST_F(Doctor, OfTheTypeOfTheCheck) {
  start_nginx();
  start_edge(R"(
[upstream.web]
servers = ["198.51.100.25:1443"]
check = "tls"
[[listener]]
name = "x"
bind = [":7"]
upstream = "web"
)");
  expect("web", "mismatch", "v2", 2);
}

TEST_F(Doctor, LocalIsAskedForWhereChecksSendIt) {
  start_postfix();
  start_edge(R"(
[upstream.v1]
servers = ["198.51.100.25:2525"]
proxy_protocol = "v1"
check = "smtp"
[upstream.v1-local]
servers = ["198.51.100.25:2525"]
proxy_protocol = "v1"
check = { type = "smtp", proxy = "local" }
[upstream.v2]
servers = ["198.51.100.25:2525"]
proxy_protocol = "v2"
check = "smtp"
[[listener]]
name = "x"
bind = [":7"]
upstream = "v1"
)");
  expect("v1", "as_configured", "v1", 1);
  expect("v1-local", "local_refused", "v1", 2);
  expect("v2", "as_configured", "v2", 2);
}

TEST_F(Doctor, SaysWhatItCannotDo) {
  start_edge_to({9});
  Said said = ask("p9-v2");
  EXPECT_EQ(said.code, 1);
  EXPECT_EQ(said.json.at("verdict"), "unreachable");
  EXPECT_EQ(said.json.at("says"), "the server cannot be reached: connection refused");
  EXPECT_EQ(said.json.at("dials").size(), 1u);
  const auto fails_with = [&](const std::vector<std::string>& words, const std::string& what) {
    std::vector<std::string> argv{command_program(), "doctor"};
    argv.insert(argv.end(), words.begin(), words.end());
    argv.insert(argv.end(), {"--socket", daemon_->admin_socket()});
    Process command(argv);
    EXPECT_EQ(command.wait_exit(), 1);
    EXPECT_NE(command.output().find(what), std::string::npos) << command.output();
  };
  fails_with({"mailbox"}, "there is no upstream mailbox (there are: p9-off, p9-v1, p9-v2)");
  fails_with({"p9-v2", "elsewhere"}, "upstream p9-v2 has no server elsewhere (it has: 198.51.100.25:9)");
}

// Of two at once one is told to wait; others are served meanwhile.
TEST_F(Doctor, DelaysNobody) {
  start_dovecot();
  start_edge_to({kImapProxy});
  const Json request = {{"command", "doctor"}, {"upstream", "p1143-off"}};
  std::array<std::future<Json>, 2> asked;
  for (auto& a : asked) a = std::async(std::launch::async, [&] { return daemon_->ask(request); });
  const auto is_ready = [](const std::future<Json>& a) {
    return a.wait_for(0s) == std::future_status::ready;
  };
  ASSERT_TRUE(wait_until([&] { return is_ready(asked[0]) || is_ready(asked[1]); }));
  const size_t refused = is_ready(asked[0]) ? 0 : 1;
  EXPECT_EQ(asked[refused].get().at("error"),
            "the doctor is with 198.51.100.25:1143 of upstream p1143-off: ask again when that is done");
  EXPECT_TRUE(daemon_->status().contains("pid"));
  EXPECT_FALSE(is_ready(asked[1 - refused]));
  EXPECT_EQ(asked[1 - refused].get().at("verdict"), "mismatch");
}

TEST_F(Doctor, InWords) {
  start_dovecot();
  start_edge_to({kImap});
  Process command({command_program(), "doctor", "p143-v2", "--socket", daemon_->admin_socket()});
  EXPECT_EQ(command.wait_exit(60s), 1);
  for (const char* words :
       {"upstream p143-v2, server 198.51.100.25:143, port 143: proxy_protocol = \"v2\", seen by imap",
        "mismatch: the server expects no PROXY header and gets v2",
        "or set proxy_protocol = \"off\" in [upstream.p143-v2]",
        "dovecot: haproxy = yes in the inet_listener",
        "the server sees the edge as 198.51.100.1: that is whom it must trust"})
    EXPECT_NE(command.output().find(words), std::string::npos) << words << " in\n" << command.output();
}

// Also while whoever told it still has to return.
TEST(ADoctor, IsFreeForTheNextOnceItIsTold) {
  const Netns netns;
  const Netns::Inside inside(netns);
  auto resolver = dns::Resolver::start({.servers = {at("127.0.0.1", 53)}});
  ASSERT_TRUE(resolver.ok());
  std::array<std::promise<check::Verdict>, 2> told;
  check::Doctor doctor(**resolver);
  for (auto& t : told) {
    check::Patient patient{.upstream = "mailbox", .server = "127.0.0.1:3525", .host = "127.0.0.1"};
    patient.address = at("127.0.0.1", 3525).address;
    patient.port = 3525;
    const Status asked = doctor.examine(patient, [&](const check::Examination& e) {
      t.set_value(e.verdict);
      std::this_thread::sleep_for(200ms);
    });
    ASSERT_TRUE(asked.ok()) << asked.error().message;
    EXPECT_EQ(t.get_future().get(), check::Verdict::unreachable);
  }
}

}  // namespace
}  // namespace penstock::test
