// SPDX-License-Identifier: Apache-2.0
// Starts that must fail, and how they say it: exit 2 for the operator's mistake, 1 for what the machine
// refuses.
#include <sys/ptrace.h>
#include <sys/wait.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <filesystem>
#include <utility>

#include "netns/edge.h"
#include "support/traces.h"

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
    expect_no_trace(process);
    return {code, process.output()};
  }
  void expect_no_trace(const Process& process) const {
    EXPECT_FALSE(std::filesystem::exists(directory.path() + "/admin.sock"));
    EXPECT_FALSE(std::filesystem::exists(kPin));
    EXPECT_FALSE(has_cgroup_leaf(process.pid()));
  }
  // It serves all the same, after this warning.
  void expect_serves(const std::string& toml, const std::string& warning) const {
    Process process({daemon_program(), "--config", directory.write("penstock.toml", toml)});
    ASSERT_TRUE(process.wait_for("ready")) << process.output();
    EXPECT_NE(process.output().find(warning), std::string::npos) << process.output();
    process.signal(SIGTERM);
    EXPECT_EQ(process.wait_exit(), 0) << process.output();
    expect_no_trace(process);
  }
  static std::string replaced(std::string text, const std::string& what, const std::string& with) {
    return text.replace(text.find(what), what.size(), with);
  }
  std::string minimal(const std::string& engine = "auto") const {
    return "[daemon]\nengine = \"" + engine + "\"\n[admin]\nsocket = \"" + directory.path() +
           "/admin.sock\"\nhttp = \"\"\n[bpf]\nmax_flows = 64\npin = \"" + kPin +
           "\"\n"
           "[upstream.mailbox]\nservers = [\"127.0.0.1:3525\"]\n"
           "[[listener]]\nname = \"mail\"\nbind = [\"127.0.0.1:2525\"]\nupstream = \"mailbox\"\n";
  }
  static constexpr const char* kPin = "/sys/fs/bpf/penstock-start-test";
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

TEST_F(Start, NoSuchUserOrGroup) {
  for (const char* key : {"user", "group"}) {
    const Outcome o =
        run(replaced(minimal(), "[daemon]\n", std::string("[daemon]\n") + key + " = \"nobody-here\"\n"));
    EXPECT_EQ(o.exit_code, 1);
    EXPECT_SAYS(o, std::string("daemon.") + key + ": no such " + key + ": nobody-here");
  }
}

// What was made as root goes with the daemon that is root no more.
TEST_F(Start, AsAnotherUserNothingStays) {
  expect_serves(replaced(minimal(), "[daemon]\n", "[daemon]\nuser = \"nobody\"\n"), "engine");
}

TEST_F(Start, NotOnABpffs) {
  const std::string there = directory.path() + "/pin";
  expect_serves(replaced(minimal(), kPin, there),
                "statistics are not pinned: " + there + " is not on a bpffs (mount -t bpf bpf /sys/fs/bpf)");
}

TEST_F(Start, PinThatCannotBeMade) {
  expect_serves(
      replaced(minimal(), kPin, "/sys/fs/bpf/missing/penstock"),
      "statistics are not pinned: cannot make /sys/fs/bpf/missing/penstock: No such file or directory");
}

TEST_F(Start, PinsOfALivingOneAreLeftAlone) {
  DaemonOptions options;
  options.tables =
      "[upstream.mailbox]\nservers = [\"127.0.0.1:3525\"]\n"
      "[[listener]]\nname = \"mail\"\nbind = [\"127.0.0.1:2526\"]\nupstream = \"mailbox\"\n";
  Daemon first(options);
  ASSERT_TRUE(first.pinned_flows());
  expect_serves(replaced(minimal(), kPin, first.pin()),
                "statistics are not pinned: cannot pin in " + first.pin() + ": another penstock does");
  EXPECT_TRUE(first.pinned_flows());
}

TEST_F(Start, PinIsADanglingLink) {
  std::filesystem::create_directory_symlink("/sys/fs/bpf/missing", kPin);
  Process process({daemon_program(), "--config", directory.write("penstock.toml", minimal())});
  EXPECT_TRUE(process.wait_for("ready")) << process.output();
  EXPECT_TRUE(process.wait_for("statistics are not pinned: cannot make ")) << process.output();
  process.signal(SIGTERM);
  EXPECT_EQ(process.wait_exit(), 0) << process.output();
  std::filesystem::remove(kPin);
}

TEST_F(Start, AdminDirectoryNotWritable) {
  ProcessOptions nobody;
  nobody.uid = 65534;
  const Outcome o = run(minimal(), nobody);
  EXPECT_EQ(o.exit_code, 1);
  EXPECT_SAYS(o, "admin socket " + directory.path() + "/admin.sock: bind: Permission denied");
}

TEST_F(Start, BesideALivingOne) {
  const std::string file = directory.write("penstock.toml", minimal());
  Process first({daemon_program(), "--config", file});
  ASSERT_TRUE(first.wait_for("ready")) << first.output();
  Process second({daemon_program(), "--config", file});
  EXPECT_EQ(second.wait_exit(), 1);
  EXPECT_NE(second.output().find("another penstockd is running"), std::string::npos) << second.output();
  EXPECT_TRUE(std::filesystem::exists(std::string(kPin) + "/flows"));
  EXPECT_TRUE(std::filesystem::exists(directory.path() + "/admin.sock"));
  EXPECT_EQ(TcpStream::try_connect(at("127.0.0.1", 2525)), 0);
  first.signal(SIGTERM);
  EXPECT_EQ(first.wait_exit(), 0) << first.output();
  expect_no_trace(first);
}

TEST_F(Start, CgroupNotWritable) {
  const auto start = [&](const std::string& engine) {
    return std::vector<std::string>{
        "unshare",
        "--mount",
        "sh",
        "-ec",
        "mount -o remount,bind,ro $(awk '$3 == \"cgroup2\" { print $2; exit }' /proc/self/mounts)\n"
        "exec \"$0\" --config \"$1\"",
        daemon_program(),
        directory.write(engine + ".toml", minimal(engine))};
  };
  Process relays(start("auto"));
  ASSERT_TRUE(relays.wait_for("ready")) << relays.output();
  EXPECT_NE(relays.output().find("cannot make the cgroup"), std::string::npos) << relays.output();
  EXPECT_NE(relays.output().find("Read-only file system"), std::string::npos) << relays.output();
  relays.signal(SIGTERM);
  EXPECT_EQ(relays.wait_exit(), 0) << relays.output();
  expect_no_trace(relays);

  Process refuses(start("sockmap"));
  EXPECT_EQ(refuses.wait_exit(), 1);
  EXPECT_NE(refuses.output().find("Read-only file system"), std::string::npos) << refuses.output();
  expect_no_trace(refuses);
}

// However few there are: it serves, or it says why not in one line; and leaves nothing.
TEST_F(Start, TooFewDescriptors) {
  unsigned served = 0, refused = 0;
  for (unsigned n = 8; n <= 96; n += 2) {  // the dynamic loader needs some
    ProcessOptions few;
    few.nofile = n;
    few.environment["ASAN_OPTIONS"] = "detect_leaks=0";  // it wants descriptors of its own
    Process process({daemon_program(), "--config", directory.write("penstock.toml", minimal())}, few);
    if (process.wait_for("ready")) {
      ++served;
      process.signal(SIGTERM);
      EXPECT_EQ(process.wait_exit(), 0) << n << ": " << process.output();
    } else {
      ++refused;
      EXPECT_EQ(process.wait_exit(), 1) << n << ": " << process.output();
      const std::string said = process.output(), error = " error ";
      const size_t at = said.find(error);
      EXPECT_NE(at, std::string::npos) << n << ": " << said;
      EXPECT_EQ(said.find(error, at + 1), std::string::npos) << n << ": " << said;
    }
    expect_no_trace(process);
  }
  EXPECT_GT(served, 0u);
  EXPECT_GT(refused, 0u);
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

// What RHEL's sysctl and Docker's default seccomp profile answer, and kernels without it.
TEST_F(Start, EpollWhereIoUringIsRefused) {
  for (const auto& [error, why] :
       {std::pair{EPERM, "Operation not permitted"}, {ENOSYS, "not implemented"}}) {
    ProcessOptions refusing;
    refusing.io_uring_refused = error;
    Process process({daemon_program(), "--config", directory.write("penstock.toml", minimal("io_uring"))},
                    refusing);
    ASSERT_TRUE(process.wait_for("ready")) << process.output();
    const Outcome o{0, process.output()};
    EXPECT_SAYS(o, "io_uring is refused, epoll takes its place: io_uring_setup: ");
    EXPECT_SAYS(o, why);
    EXPECT_SAYS(
        o, "engine io_uring (as configured; everything is relayed, with epoll), epoll (io_uring_setup: ");
    process.signal(SIGTERM);
    EXPECT_EQ(process.wait_exit(), 0) << process.output();
  }
}

TEST_F(Start, ProbeSaysThatIoUringIsRefused) {
  ProcessOptions refusing;
  refusing.io_uring_refused = EPERM;
  Process process({daemon_program(), "--probe"}, refusing);
  EXPECT_EQ(process.wait_exit(), 0) << process.output();  // of the sockmap alone
  const Outcome o{0, process.output()};
  EXPECT_SAYS(o, "NO   io_uring       io_uring_setup: Operation not permitted: kernel.io_uring_disabled");
  EXPECT_SAYS(o, "engine: sockmap");
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
