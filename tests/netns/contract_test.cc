// SPDX-License-Identifier: Apache-2.0
// A daemon whose configuration has every key of the contract, and every command of the contract at it.
#include <csignal>
#include <cstdlib>
#include <filesystem>

#include "netns/edge.h"

namespace penstock::test {
namespace {

constexpr const char* kEveryKey = PENSTOCK_EVERY_KEY;

class Contract : public testing::Test {
 protected:
  struct Ran {
    int exit_code;
    std::string output;  // stdout and stderr
  };
  Ran penstock(std::vector<std::string> words) const {
    words.insert(words.begin(), command_program());
    words.insert(words.end(), {"--socket", directory_.path() + "/admin.sock"});
    Process process(words, environment());
    const int exit_code = process.wait_exit(60s);
    return {exit_code, process.output()};
  }
  // One line of JSON, whatever the exit code.
  Json json(std::vector<std::string> words, int exit_code = 0) const {
    words.push_back("--json");
    const Ran ran = penstock(words);
    EXPECT_EQ(ran.exit_code, exit_code) << words[0] << ": " << ran.output;
    const Json says = Json::parse(ran.output, nullptr, false);
    EXPECT_TRUE(says.is_object()) << words[0] << ": " << ran.output;
    return says;
  }
  // The same for people.
  void text(const std::vector<std::string>& words, int exit_code, const std::string& line) const {
    const Ran ran = penstock(words);
    EXPECT_EQ(ran.exit_code, exit_code) << words[0] << ": " << ran.output;
    EXPECT_NE(ran.output.find(line), std::string::npos) << words[0] << ": " << ran.output;
  }
  ProcessOptions environment() const {
    const std::string daemon = std::filesystem::path(daemon_program()).parent_path();
    return {.environment = {{"DIRECTORY", directory_.path()}, {"PATH", daemon + ":" + ::getenv("PATH")}}};
  }

  Netns netns_;
  Netns::Inside inside_{netns_};
  const TempDir directory_;
};

TEST_F(Contract, EveryCommandWithEveryKey) {
  // Where `daemon.user` may read it again at a reload: the source tree may be root's alone.
  const std::string every_key = directory_.path() + "/every_key.toml";
  std::filesystem::copy_file(kEveryKey, every_key);
  std::filesystem::permissions(every_key, std::filesystem::perms(0644));
  std::filesystem::permissions(directory_.path(), std::filesystem::perms(0755));
  Process daemon({daemon_program(), "--config", every_key}, environment());
  ASSERT_TRUE(daemon.wait_for("ready: engine")) << daemon.output();
  const TcpListener server(at("127.0.0.1", 3525)), second(at("127.0.0.1", 3526));

  text({"check", "-c", every_key}, 0, "ok (2 listeners, 2 upstreams)\n");
  json({"check", "-c", every_key});
  json({"explain", "-c", every_key, "--to", "127.0.0.1:2525", "--from", "127.0.0.1"});
  text({"explain", "-c", every_key, "--to", ":8443", "--from", "127.0.0.1", "--sni", "forbidden.example"}, 1,
       "closed, route_rejected");
  text({"explain", "-c", every_key, "--to", "127.0.0.1:2525", "--from", "198.51.100.7", "--via", "192.0.2.8"},
       1, "closed, denied");
  json({"probe"});

  const Json status = json({"status"});
  EXPECT_EQ(status.at("flows_max"), 64);
  EXPECT_EQ(status.at("totals").at("memory_limit_bytes"), 64 << 20);
  EXPECT_EQ(status.at("listeners").size(), 2u);
  text({"status"}, 0, "192.0.2.1 is no address of this host");
  EXPECT_TRUE(wait_until([&] {
    return penstock({"status"}).output.find("s): connection refused; tls check") != std::string::npos;
  })) << penstock({"status"}).output;

  TcpStream client = TcpStream::connect(at("127.0.0.1", 2525));
  client.send_all("EHLO\r\n");
  Json flows;
  ASSERT_TRUE(wait_until([&] {
    flows = json({"flows", "--listener", "mail", "--client", "127.0.0.0/8"}).at("flows");
    return flows.size() == 1 && flows.at(0).at("phase") == "open";
  })) << daemon.output();
  text({"flows"}, 0, "mailbox");
  const std::string cookie = flows.at(0).at("cookie");
  json({"lane", cookie, "down", "relay"});
  json({"kill", cookie});
  EXPECT_EQ(client.recv_to_end(), End::reset);
  text({"kill", cookie}, 1, cookie);

  json({"drain", "mailbox"});
  text({"drain", "web/nowhere"}, 1, "no upstream or server");
  json({"resume", "mailbox/127.0.0.1:3525"});
  EXPECT_EQ(json({"reload"}).at("pending"), Json::array());
  text({"reload"}, 0, "reloaded\n");
  EXPECT_EQ(json({"doctor", "mailbox", "localhost:3527"}, 1).at("verdict"), "unreachable");

  text({"top"}, 2, "top is not available in this version\n");
  text({"ban", "list"}, 2, "ban is not available in this version\n");

  daemon.signal(SIGHUP);
  EXPECT_TRUE(wait_until([&] { return json({"status"}).at("configuration").at("reloads") == 3; }));
  daemon.signal(SIGTERM);
  EXPECT_EQ(daemon.wait_exit(), 0) << daemon.output();
}

}  // namespace
}  // namespace penstock::test
