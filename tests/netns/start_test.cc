// SPDX-License-Identifier: Apache-2.0
// Starts that must fail, and how they say it: exit 2 for the operator's mistake, 1 for what the machine
// refuses.
#include <csignal>
#include <filesystem>

#include "netns/edge.h"

namespace penstock::test {
namespace {

struct Start : testing::Test {
  // Runs the daemon with this file until it ends by itself.
  struct Outcome {
    int exit_code;
    std::string output;
  };
  Outcome run(const std::string& toml, const ProcessOptions& options = {}) const {
    Process process({daemon_program(), "--config", directory.write("penstock.toml", toml)}, options);
    const int code = process.wait_exit();
    return {code, process.output()};
  }
  std::string minimal(const std::string& engine = "auto") const {
    return "[daemon]\nengine = \"" + engine + "\"\n[admin]\nsocket = \"" + directory.path() +
           "/admin.sock\"\nhttp = \"\"\n[bpf]\npin = \"/sys/fs/bpf/penstock-start-test\"\n"
           "[upstream.mailbox]\nservers = [\"127.0.0.1:3525\"]\n"
           "[[listener]]\nname = \"mail\"\nbind = [\"127.0.0.1:2525\"]\nupstream = \"mailbox\"\n";
  }
  Netns netns;
  Netns::Inside inside{netns};
  TempDir directory;
};

#define EXPECT_SAYS(outcome, text) \
  EXPECT_NE((outcome).output.find(text), std::string::npos) << (outcome).output

TEST_F(Start, EveryMistakeOfTheFileAtOnce) {
  const Outcome o =
      run("[upstream.mailbox]\nserver = [\"127.0.0.1:25\"]\n[[listener]]\nname = \"mail\"\nbind = 25\n");
  EXPECT_EQ(o.exit_code, 2);
  EXPECT_SAYS(o, "penstock.toml:2:1: error:");
  EXPECT_SAYS(o, "servers");  // the nearest key
  EXPECT_SAYS(o, "penstock.toml:5:");
}

TEST_F(Start, NoFile) {
  Process process({daemon_program(), "--config", directory.path() + "/missing.toml"});
  EXPECT_EQ(process.wait_exit(), 2);
  EXPECT_TRUE(process.wait_for("missing.toml")) << process.output();
}

TEST_F(Start, BadUsage) {
  Process process({daemon_program(), "--no-such-option"});
  EXPECT_EQ(process.wait_exit(), 2) << process.output();
}

TEST_F(Start, PortInUse) {
  const TcpListener owner(at("127.0.0.1", 2525));
  const Outcome o = run(minimal());
  EXPECT_EQ(o.exit_code, 1);
  EXPECT_SAYS(o, "127.0.0.1:2525");
  EXPECT_SAYS(o, "in use");
}

TEST_F(Start, SockmapWithoutPrivilege) {
  ProcessOptions nobody;
  nobody.uid = 65534;
  std::filesystem::permissions(directory.path(), std::filesystem::perms(0777));
  const Outcome o = run(minimal("sockmap"), nobody);
  EXPECT_EQ(o.exit_code, 1);
  EXPECT_SAYS(o, "engine = \"sockmap\", but");
  EXPECT_SAYS(o, "ermi");  // permission, or not permitted
}

TEST_F(Start, AutoWithoutPrivilegeRelays) {
  std::filesystem::permissions(directory.path(), std::filesystem::perms(0777));
  ProcessOptions nobody;
  nobody.uid = 65534;
  Process process({daemon_program(), "--config", directory.write("penstock.toml", minimal())}, nobody);
  ASSERT_TRUE(process.wait_for("ready")) << process.output();
  EXPECT_NE(process.output().find("io_uring"), std::string::npos) << process.output();
  process.signal(SIGTERM);
  EXPECT_EQ(process.wait_exit(), 0);
}

TEST_F(Start, ProbeFindsTheSockmapEngineHere) {
  Process process({daemon_program(), "--probe"});
  EXPECT_EQ(process.wait_exit(), 0) << process.output();
  EXPECT_TRUE(process.wait_for("sockmap")) << process.output();
}

TEST_F(Start, NothingStaysAfterTheEnd) {
  DaemonOptions options;
  options.tables =
      "[upstream.m]\nservers = [\"127.0.0.1:3525\"]\n[[listener]]\nname = \"mail\"\n"
      "bind = [\"127.0.0.1:2525\"]\nupstream = \"m\"\n";
  Daemon daemon(options);
  EXPECT_TRUE(std::filesystem::exists(daemon.admin_socket()));
  EXPECT_EQ(daemon.stop(), 0);
  EXPECT_FALSE(std::filesystem::exists(daemon.admin_socket()));
  EXPECT_FALSE(std::filesystem::exists(daemon.pin()));
}

}  // namespace
}  // namespace penstock::test
