// SPDX-License-Identifier: Apache-2.0
// From start to stop: what SIGTERM does to open flows, what a second one does, what a SIGKILL at any moment
// leaves and who cleans it up. Whatever the end, nothing stays: no pin, socket, cgroup, port.
#include <sys/mount.h>

#include <atomic>
#include <csignal>
#include <filesystem>
#include <random>
#include <thread>

#include "netns/edge.h"
#include "support/named_echo.h"
#include "support/traces.h"

namespace penstock::test {
namespace {

// How many is not asked: on a slow machine questions of begin_drain() are flows by then, too.
constexpr const char* kGraceIsOver = "flows are reset: the grace is over";

class Drain : public Edge {
 protected:
  void start_with_grace(const std::string& grace) {
    DaemonOptions options;
    options.daemon_keys = "shutdown_grace = \"" + grace + "\"";
    options.tables = mail_tables();
    start_with(std::move(options));
  }
  // Returns when it no longer listens.
  void begin_drain(TcpListener& server) {
    server.close();  // or a question that comes too early to be refused would be another flow
    daemon_->process().signal(SIGTERM);
    EXPECT_TRUE(wait_until([&] { return TcpStream::try_connect(at(kAddress, kMailPort)) == ECONNREFUSED; }));
  }
  // REQUIRES: it ends by itself.
  void expect_gone() {
    EXPECT_EQ(daemon_->process().wait_exit(5s), 0) << daemon_->log();
    expect_no_trace(*daemon_);
    expect_log_adds_up(daemon_->log());
    daemon_.reset();
  }
};
FOR_BOTH_ENGINES(Drain);

TEST_P(Drain, OpenFlowsMayFinish) {
  start();
  TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  begin_drain(server);
  EXPECT_EQ(daemon_->status().at("listeners")[0].at("state"), "closed");
  client.send_all("finishing");
  EXPECT_EQ(upstream.recv_exactly(9), "finishing");
  client.half_close();
  EXPECT_EQ(upstream.recv_to_end(), End::fin);
  upstream.half_close();
  EXPECT_EQ(client.recv_to_end(), End::fin);
  EXPECT_TRUE(daemon_->process().wait_for("reason=completed"));
  expect_gone();
}

TEST_P(Drain, TheGraceIsTheEnd) {
  start_with_grace("300ms");
  TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  begin_drain(server);
  EXPECT_EQ(client.recv_to_end(), End::reset);
  EXPECT_EQ(upstream.recv_to_end(), End::reset);
  EXPECT_TRUE(daemon_->process().wait_for(kGraceIsOver)) << daemon_->log();
  EXPECT_TRUE(daemon_->process().wait_for("reason=shutdown"));
  expect_gone();
}

TEST_P(Drain, FlowsThatNeverStopSending) {
  start_with_grace("300ms");
  TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  PatternSender up(client, 1), down(upstream, 2);
  PatternReader at_upstream(upstream, 1), at_client(client, 2);
  begin_drain(server);
  EXPECT_TRUE(daemon_->process().wait_for(kGraceIsOver)) << daemon_->log();
  for (PatternSender* sender : {&up, &down}) {
    const int error = sender->finish_errno();
    EXPECT_TRUE(error == ECONNRESET || error == EPIPE) << error;
  }
  EXPECT_TRUE(daemon_->process().wait_for("reason=shutdown"));
  expect_gone();
}

TEST_P(Drain, SecondSigtermEndsAtOnce) {
  start_with_grace("1h");
  TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  begin_drain(server);
  daemon_->process().signal(SIGTERM);
  EXPECT_EQ(client.recv_to_end(), End::reset);
  EXPECT_EQ(upstream.recv_to_end(), End::reset);
  EXPECT_TRUE(daemon_->process().wait_for("reason=shutdown"));
  expect_gone();
}

// Flows in every phase before `open` when the drain begins, and ended with it.
TEST_P(Drain, FlowsThatAreNotOpenYet) {
  DaemonOptions options;
  options.daemon_keys = "shutdown_grace = \"200ms\"";
  options.tables = mail_tables() +
                   "[upstream.silent]\nservers = [\"192.0.2.99:1\"]\n[[listener]]\nname = \"silent\"\n"
                   "bind = [\"127.0.0.1:2526\"]\nupstream = \"silent\"\n"
                   "[[listener]]\nname = \"web\"\nbind = [\"127.0.0.1:8443\"]\nupstream = \"mailbox\"\n"
                   "[[listener.route]]\nsni = [\"*\"]\nupstream = \"mailbox\"\n";
  const Netns elsewhere;
  Netns::join(netns_, "near", {"192.0.2.1/24"}, elsewhere, "far", {"192.0.2.2/24"});
  netns_.ip("neigh add 192.0.2.99 lladdr 02:00:00:00:00:99 dev near");
  start_with(std::move(options));
  const TcpStream classifying = TcpStream::connect(at(kAddress, kWebPort));
  const TcpStream dialing = TcpStream::connect(at(kAddress, 2526));
  EXPECT_TRUE(wait_until([&] {
    std::string phases;
    for (const auto& flow : daemon_->flows()) phases += flow.at("phase").get<std::string>();
    return phases.size() == 18 && phases.find("dialing") != std::string::npos;
  })) << daemon_->flows();
  daemon_->process().signal(SIGTERM);
  EXPECT_EQ(classifying.recv_to_end(), End::reset);
  EXPECT_EQ(dialing.recv_to_end(), End::reset);
  expect_gone();
}

// Nobody reads what it writes to stderr any more: it ends all the same.
TEST_P(Drain, WithAReaderOfStderrThatStopped) {
  DaemonOptions options;
  options.daemon_keys = "shutdown_grace = \"1h\"";
  options.tables = mail_tables();
  start_with(std::move(options));
  const NamedEcho server("mailbox", at(kAddress, kServerPort));
  const TcpStream open = connect();
  EXPECT_EQ(open.recv_line(), "mailbox -");
  daemon_->process().stop_reading();
  // Past what the pipe holds: from then on its lines wait within the daemon.
  for (int i = 0; i < 400; ++i) {
    const TcpStream client = connect();
    EXPECT_EQ(client.recv_line(), "mailbox -");
    client.half_close();
    EXPECT_EQ(client.recv_to_end(), End::fin);
  }
  daemon_->process().signal(SIGTERM);
  EXPECT_TRUE(wait_until([&] { return TcpStream::try_connect(at(kAddress, kMailPort)) == ECONNREFUSED; }));
  daemon_->process().signal(SIGTERM);
  EXPECT_TRUE(wait_until([&] { return !daemon_->process().running(); }));
  daemon_->process().go_on_reading();
  EXPECT_EQ(daemon_->process().wait_exit(), 0);
  EXPECT_EQ(open.recv_to_end(), End::reset);
  expect_no_trace(*daemon_);
  daemon_.reset();
}

// As systemd makes it: there the self-test's verdict is kept, and later starts are fast. In our mount
// namespace.
bool make_run_directory() {
  return ::mount("none", "/run", "tmpfs", 0, nullptr) == 0 &&
         std::filesystem::create_directory("/run/penstock");
}

// A daemon whose paths stay the same from start to start.
class Restart : public testing::TestWithParam<Drive> {
 protected:
  static void SetUpTestSuite() {
    static const bool made = make_run_directory();
    ASSERT_TRUE(made);
  }
  static constexpr uint16_t kPort = 2525, kServerPort = 3525;
  std::unique_ptr<Process> launch() const {
    ProcessOptions options;
    if (GetParam().epoll) options.io_uring_refused = EPERM;
    return std::make_unique<Process>(std::vector<std::string>{daemon_program(), "--config", config_},
                                     options);
  }
  std::string pin() const {
    return "/sys/fs/bpf/" + std::filesystem::path(directory_.path()).filename().string();
  }
  std::string admin_socket() const { return directory_.path() + "/admin.sock"; }
  std::string toml() const {
    return std::string("[daemon]\nthreads = 2\nshutdown_grace = \"50ms\"\nengine = \"") + GetParam().engine +
           "\"\n[admin]\nsocket = \"" + admin_socket() + "\"\nhttp = \"\"\n[bpf]\nmax_flows = 256\npin = \"" +
           pin() + "\"\n" +
           "[upstream.mailbox]\nservers = [\"127.0.0.1:3525\"]\n"
           "[[listener]]\nname = \"mail\"\nbind = [\"127.0.0.1:2525\"]\nupstream = \"mailbox\"\n";
  }
  void expect_no_trace_of(const Process& process) const {
    EXPECT_FALSE(std::filesystem::exists(admin_socket()));
    EXPECT_FALSE(std::filesystem::exists(pin()));
    EXPECT_FALSE(has_cgroup_leaf(process.pid()));
    EXPECT_EQ(TcpStream::try_connect(at("127.0.0.1", kPort)), ECONNREFUSED);
  }
  // It starts, serves a flow, ends, and leaves nothing.
  void expect_a_clean_life() {
    const auto process = launch();
    ASSERT_TRUE(process->wait_for("ready: ")) << process->output();
    const TcpStream client = TcpStream::connect(at("127.0.0.1", kPort));
    EXPECT_EQ(client.recv_line(), "mailbox -");
    process->signal(SIGTERM);
    EXPECT_EQ(process->wait_exit(), 0) << process->output();
    expect_log_adds_up(process->output());
    expect_no_trace_of(*process);
  }
  Netns netns_;
  Netns::Inside inside_{netns_};
  KernelLog kernel_log_;
  TempDir directory_;
  std::string config_ = directory_.write("penstock.toml", toml());
  NamedEcho server_{"mailbox", at("127.0.0.1", kServerPort)};
};
FOR_BOTH_ENGINES(Restart);

// Of keeper and worker; of the keeper alone: survive_test.cc.
TEST_P(Restart, AfterSigkillTheNextStartCleansUp) {
  const auto killed = launch();
  ASSERT_TRUE(killed->wait_for("ready: ")) << killed->output();
  const TcpStream client = TcpStream::connect(at("127.0.0.1", kPort));
  EXPECT_EQ(client.recv_line(), "mailbox -");
  const std::string pid = std::to_string(killed->pid());
  const pid_t worker = std::stoi("0" + read_file("/proc/" + pid + "/task/" + pid + "/children"));
  killed->signal(SIGSTOP);  // it starts no other
  ASSERT_EQ(::kill(worker, SIGKILL), 0);
  killed->signal(SIGKILL);
  killed->wait_exit();
  EXPECT_EQ(client.recv_to_end(), End::fin);  // the kernel's farewell: its receive queue was empty
  EXPECT_TRUE(std::filesystem::exists(admin_socket()));
  expect_a_clean_life();
  EXPECT_FALSE(has_cgroup_leaf(killed->pid()));
  EXPECT_EQ(kernel_log_.complaints(), "");
}

// A signal at any moment of a start, of a life with flows that open and close, and of the end.
TEST_P(Restart, SignalsAtAnyMoment) {
  const unsigned seed = std::random_device{}();
  std::mt19937 random(seed);
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::atomic<bool> over = false;
  std::thread clients([&] {
    const Netns::Inside inside(netns_);
    while (!over) {
      try {
        const TcpStream client = TcpStream::connect(at("127.0.0.1", kPort));
        client.recv_line();
      } catch (const std::exception&) {
        std::this_thread::yield();  // it is not up, or was killed meanwhile
      }
    }
  });
  for (int round = 0; round < 16; ++round) {
    const auto process = launch();
    // From the first instruction to well within its life: a start takes 0.1 to 0.3 s.
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 400'000));
    const bool kill = round % 2 == 0;
    if (!kill || random() % 2) process->signal(SIGTERM);
    if (random() % 2) std::this_thread::sleep_for(std::chrono::microseconds(random() % 60'000));
    if (kill || random() % 2) process->signal(kill ? SIGKILL : SIGTERM);
    const int code = process->wait_exit();
    if (kill || code == 128 + SIGTERM) continue;  // before it listens to signals, they end it
    EXPECT_EQ(code, 0) << process->output();
    if (process->output().find("ready") != std::string::npos) expect_log_adds_up(process->output());
    expect_no_trace_of(*process);
  }
  over = true;
  clients.join();
  expect_a_clean_life();
  EXPECT_EQ(kernel_log_.complaints(), "");
}

}  // namespace
}  // namespace penstock::test
