// SPDX-License-Identifier: Apache-2.0
// A worker that dies, in any phase and lane: its flows, its listeners and its counters go on with the next
// one.
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <set>
#include <stdexcept>
#include <thread>

#include "crash/signals.h"
#include "flow/close_reason.h"
#include "flow/record.h"
#include "netns/edge.h"
#include "support/tls_hello.h"
#include "support/traces.h"

namespace penstock::test {
namespace {

constexpr uint64_t kBulkBytes = 32 << 20;

class Survive : public Edge {
 protected:
  void kill_worker(int signal = SIGKILL) {
    const pid_t before = daemon_->worker();
    ASSERT_EQ(::kill(before, signal), 0);
    ASSERT_TRUE(daemon_->wait_worker_after(before)) << daemon_->log();
  }
  // Listener "web" on kWebPort, which wants kHeader or its like and then a ClientHello.
  void start_web() {
    DaemonOptions options;
    options.tables = mail_tables() + R"(
[[listener]]
name = "web"
bind = ["127.0.0.1:8443"]
upstream = "mailbox"
accept_proxy = { from = ["127.0.0.0/8"] }
  [[listener.route]]
  sni = ["mail.example"]
  upstream = "mailbox"
)";
    start_with(std::move(options));
  }
  const std::string kHeader = "PROXY TCP4 192.0.2.7 192.0.2.8 40000 25\r\n";
  // What came of it.
  std::string upgrade(const std::string& program) {
    const Json before = daemon_->status().at("worker").at("upgrade");
    const Json asked = daemon_->ask({{"command", "upgrade"}, {"program", program}, {"patience_s", 60}});
    EXPECT_TRUE(asked.contains("asked")) << asked;
    Json now;
    EXPECT_TRUE(wait_until([&] {
      try {
        now = daemon_->status().at("worker").at("upgrade");
      } catch (const std::exception&) {
        return false;  // the worker that was asked is gone
      }
      return now.at("answered") != before.at("answered");
    })) << daemon_->log();
    return now.at("result");
  }
  // But for one, perhaps: flows take what there is below the highest. Also gives the limit before.
  std::vector<Pair> leave_no_descriptor(const TcpListener& server, rlimit* before) {
    const pid_t keeper = daemon_->process().pid();
    std::set<int> open;
    for (const auto& entry : std::filesystem::directory_iterator(fmt::format("/proc/{}/fd", keeper)))
      open.insert(std::stoi(entry.path().filename()));
    EXPECT_EQ(::prlimit(keeper, RLIMIT_NOFILE, nullptr, before), 0);
    const auto end = static_cast<rlim_t>(*open.rbegin()) + 1;
    std::vector<Pair> flows;
    while (2 * (flows.size() + 1) + open.size() <= end) {
      TcpStream client = connect();
      flows.push_back({std::move(client), server.accept()});
    }
    const rlimit none_left{end, before->rlim_max};
    EXPECT_EQ(::prlimit(keeper, RLIMIT_NOFILE, &none_left, nullptr), 0);
    return flows;
  }
  // The daemon's, as the next worker will find it.
  flow::FlowTable flow_table() {
    const std::string directory = fmt::format("/proc/{}/fd", daemon_->process().pid());
    for (const auto& entry : std::filesystem::directory_iterator(directory)) {
      std::error_code gone;
      if (std::filesystem::read_symlink(entry, gone).string().starts_with("/memfd:penstock-flows"))
        if (auto table = flow::FlowTable::reopen(Fd(open(entry.path().c_str(), O_RDWR | O_CLOEXEC)).get()))
          return std::move(*table);
    }
    throw std::runtime_error("no flow table");
  }
  // From here to the end of its scope no worker runs: the keeper, stopped, starts none.
  class Nobody {
   public:
    explicit Nobody(Daemon& daemon) : daemon_(daemon), worker_(daemon.worker()) {
      daemon_.process().signal(SIGSTOP);
      const Fd dead(static_cast<int>(::syscall(SYS_pidfd_open, worker_, 0)));
      ::kill(worker_, SIGKILL);
      pollfd polled{dead.get(), POLLIN, 0};
      ::poll(&polled, 1, static_cast<int>(kPatience.count()));
    }
    void end() {
      daemon_.process().signal(SIGCONT);
      EXPECT_TRUE(daemon_.wait_worker_after(worker_)) << daemon_.log();
    }

   private:
    Daemon& daemon_;
    pid_t worker_;
  };
};
FOR_BOTH_ENGINES(Survive);
class SurviveRelayed : public Survive {};  // a direction that is held takes no pipe
FOR_ENGINE(SurviveRelayed, "io_uring");

TEST_P(Survive, BytesOnTheirWayBothWays) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  PatternReader at_server(upstream, 1), at_client(client, 2);
  PatternSender up(client, 1), down(upstream, 2);
  for (uint64_t bytes = kBulkBytes; bytes <= 3 * kBulkBytes; bytes += kBulkBytes) {
    at_server.wait_received(bytes);
    at_client.wait_received(bytes);
    kill_worker();
  }
  up.stop();
  down.stop();
  for (PatternReader* reader : {&at_server, &at_client}) {
    const auto result = reader->finish();
    EXPECT_EQ(result.wrong_at, std::nullopt);
    EXPECT_EQ(result.end, End::fin);
    EXPECT_EQ(result.bytes, reader == &at_server ? up.finish() : down.finish());
  }
  EXPECT_TRUE(closed_for("completed"));
  EXPECT_EQ(daemon_->status().at("worker").at("crashes"), 3);
}

TEST_P(Survive, AStalledReader) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  PatternReader at_server(upstream, 1);
  at_server.pause();
  PatternSender up(client, 1, {.bytes_max = kBulkBytes});
  for (int i = 0; i < 2; i++) kill_worker();
  at_server.resume();
  const auto result = at_server.finish();
  EXPECT_EQ(result.bytes, kBulkBytes);
  EXPECT_EQ(result.wrong_at, std::nullopt);
  upstream.half_close();
  EXPECT_EQ(client.recv_to_end(), End::fin);
  EXPECT_TRUE(closed_for("completed"));
}

// A death between the stores of what it is and how much goes in: it is empty then.
TEST_P(SurviveRelayed, APipeWhoseSizeWasNotWritten) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  PatternReader at_server(upstream, 1);
  at_server.pause();
  PatternSender up(client, 1, {.bytes_max = kBulkBytes});
  flow::FlowTable table = flow_table();
  flow::DirectionRecord& direction = table[0].direction[0];
  ASSERT_TRUE(wait_until([&] { return direction.pipe_in >= 0; }));
  Nobody nobody(*daemon_);
  ASSERT_GE(direction.pipe_in, 0);
  const Fd keeper(static_cast<int>(::syscall(SYS_pidfd_open, daemon_->process().pid(), 0)));
  const auto of_keeper = [&](int fd) {
    return static_cast<int>(::syscall(SYS_pidfd_getfd, keeper.get(), fd, 0));
  };
  const Fd pipe(of_keeper(direction.pipe_out)), socket(of_keeper(table[0].fd[1]));
  at_server.resume();
  int left = 0;
  ASSERT_TRUE(wait_until([&] {
    splice(pipe.get(), nullptr, socket.get(), nullptr, 1 << 20, SPLICE_F_NONBLOCK);
    return ioctl(pipe.get(), FIONREAD, &left) == 0 && left == 0;
  }));
  direction.pipe_capacity_bytes = 0;
  nobody.end();
  const auto result = at_server.finish();
  EXPECT_EQ(result.bytes, kBulkBytes);
  EXPECT_EQ(result.wrong_at, std::nullopt);
  upstream.half_close();
  EXPECT_EQ(client.recv_to_end(), End::fin);
  EXPECT_TRUE(closed_for("completed"));
}

TEST_P(Survive, HalfClosed) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  client.send_all_with_fin("QUIT\r\n");
  EXPECT_EQ(upstream.recv_line(), "QUIT\r");
  EXPECT_EQ(upstream.recv_to_end(), End::fin);
  EXPECT_TRUE(daemon_->wait_lane("up", "shut"));
  kill_worker();
  EXPECT_TRUE(daemon_->wait_lane("up", "shut"));
  PatternReader at_client(client, 2);
  PatternSender down(upstream, 2, {.bytes_max = kBulkBytes});
  EXPECT_EQ(at_client.finish().bytes, kBulkBytes);
  EXPECT_TRUE(closed_for("completed"));
}

// What no worker that died at any instruction leaves: it is recognised, and costs that flow alone.
TEST_P(Survive, ARecordThatCannotBeSo) {
  using flow::FlowRecord;
  const std::pair<const char*, std::function<void(FlowRecord&, const FlowRecord&)>> kTorn[] = {
      {"phase", [](FlowRecord& r, const FlowRecord&) { r.phase = static_cast<flow::Phase>(99); }},
      {"lane", [](FlowRecord& r, const FlowRecord&) { r.direction[1].lane = static_cast<flow::Lane>(7); }},
      {"client", [](FlowRecord& r, const FlowRecord& other) { r.fd[0] = other.fd[0]; }},
      {"server", [](FlowRecord& r, const FlowRecord&) { r.fd[1] = 0; }},
      {"cookie", [](FlowRecord& r, const FlowRecord& other) { r.cookie[1] = other.cookie[1]; }},
      {"listener", [](FlowRecord& r, const FlowRecord&) { r.listener = 77; }},
      {"listener of none", [](FlowRecord& r, const FlowRecord&) { r.listener = UINT32_MAX; }},
      {"upstream", [](FlowRecord& r, const FlowRecord&) { r.upstream = 77; }},
      {"upstream of none", [](FlowRecord& r, const FlowRecord&) { r.upstream = 1 << 30; }},
      {"upstream, closing",
       [](FlowRecord& r, const FlowRecord&) {
         r.phase = flow::Phase::closing;
         r.upstream = 77;
       }},
      {"no upstream, closing",
       [](FlowRecord& r, const FlowRecord&) {
         r.phase = flow::Phase::closing;
         r.reason = static_cast<uint32_t>(flow::CloseReason::no_server);
         r.upstream = UINT32_MAX;
       }},
      {"TLVs", [](FlowRecord& r, const FlowRecord&) { r.tlvs_size = UINT16_MAX; }},
      {"relayed", [](FlowRecord& r, const FlowRecord&) { r.direction[0].relayed_out_bytes = 1 << 20; }},
      {"pipe", [](FlowRecord& r, const FlowRecord& other) {
         r.direction[0].lane = flow::Lane::relay;
         r.direction[0].pipe_in = other.fd[0];
         r.direction[0].pipe_out = other.fd[1];
         r.direction[0].relayed_in_bytes += 10;
       }}};
  start();
  const TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  std::vector<Pair> victims;
  for (size_t i = 0; i < std::size(kTorn); i++) {
    TcpStream victim = connect();
    victims.push_back({std::move(victim), server.accept()});
  }
  ASSERT_TRUE(wait_until([&] {
    const Json flows = daemon_->flows();
    return std::count_if(flows.begin(), flows.end(), [](const Json& f) { return f.at("phase") == "open"; }) ==
           std::ssize(victims) + 1;
  }));
  Nobody nobody(*daemon_);
  flow::FlowTable table = flow_table();
  std::vector<FlowRecord*> records;
  for (uint32_t slot = 0; slot < table.used(); slot++)
    if (table[slot].phase == flow::Phase::open) records.push_back(&table[slot]);
  std::sort(records.begin(), records.end(),
            [](const FlowRecord* a, const FlowRecord* b) { return a->accepted_ns < b->accepted_ns; });
  for (size_t i = 0; i < std::size(kTorn); i++) kTorn[i].second(*records.at(i + 1), *records[0]);
  nobody.end();
  for (size_t i = 0; i < std::size(kTorn); i++) {
    EXPECT_EQ(victims[i].client.recv_to_end(), End::reset) << kTorn[i].first;
    EXPECT_EQ(victims[i].server.recv_to_end(), End::reset) << kTorn[i].first;
  }
  client.send_all("NOOP\r\n");
  EXPECT_EQ(upstream.recv_line(), "NOOP\r");
  upstream.send_all("250\r\n");
  EXPECT_EQ(client.recv_line(), "250\r");
  client.half_close();
  upstream.half_close();
  EXPECT_EQ(client.recv_to_end(), End::fin);
  EXPECT_EQ(upstream.recv_to_end(), End::fin);
  EXPECT_TRUE(daemon_->wait_active(0));
  EXPECT_EQ(daemon_->closed("completed"), 1u);
  EXPECT_EQ(daemon_->closed("adoption_failed"), victims.size());
  const Json status = daemon_->status();
  for (const char* of : {"listeners", "upstreams"})
    for (const Json& counted : status.at(of)) EXPECT_EQ(counted.at("active"), 0) << counted;
  EXPECT_EQ(status.at("listeners").at(0).at("accepted"), victims.size() + 1);
}

// What the dead worker alone had is all there is, for the first program's workers and for another's.
TEST_P(Survive, WithoutADescriptorToSpare) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  for (const bool last : {false, true}) {
    rlimit before{};
    const std::vector<Pair> others = leave_no_descriptor(server, &before);
    kill_worker();
    kill_worker();
    client.send_all("NOOP\r\n");
    EXPECT_EQ(upstream.recv_line(), "NOOP\r");
    for (const pid_t process : {daemon_->process().pid(), daemon_->worker()})
      ASSERT_EQ(::prlimit(process, RLIMIT_NOFILE, &before, nullptr), 0);
    if (!last) {
      EXPECT_EQ(upgrade(daemon_program()), "done") << daemon_->log();
    }
    upstream.send_all("250\r\n");
    EXPECT_EQ(client.recv_line(), "250\r");
  }
}

// Of a daemon that has to be ended by force; the streams are not complete.
TEST_P(Survive, NotTheEndOfTheKeeper) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  ASSERT_EQ(::kill(daemon_->worker(), SIGSTOP), 0);
  daemon_->process().signal(SIGTERM);
  daemon_->process().signal(SIGINT);  // two of a kind may be one
  EXPECT_EQ(client.recv_to_end(), End::reset);
  EXPECT_EQ(upstream.recv_to_end(), End::reset);
  EXPECT_EQ(daemon_->process().wait_exit(), 1);
  expect_no_trace(*daemon_);
  daemon_.reset();
}

TEST_P(Survive, AWorkerThatAloneWasToEnd) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  ASSERT_EQ(::kill(daemon_->worker(), SIGTERM), 0);
  ASSERT_TRUE(daemon_->process().wait_for("draining: 1 flows")) << daemon_->log();
  kill_worker();
  const TcpStream client2 = connect();
  const TcpStream upstream2 = server.accept();
  for (auto [from, to] :
       {std::pair<const TcpStream*, const TcpStream*>(&client, &upstream), {&client2, &upstream2}}) {
    from->send_all("EHLO client\r\n");
    EXPECT_EQ(to->recv_line(), "EHLO client\r");
  }
}

TEST_P(Survive, NotTheEndOfAnotherProgramsKeeper) {
  start();
  EXPECT_EQ(upgrade(daemon_program()), "done") << daemon_->log();
  const TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  rlimit before{};
  const std::vector<Pair> others = leave_no_descriptor(server, &before);
  ASSERT_EQ(::kill(daemon_->worker(), SIGSTOP), 0);
  daemon_->process().signal(SIGTERM);
  daemon_->process().signal(SIGINT);
  EXPECT_EQ(client.recv_to_end(), End::reset);
  EXPECT_EQ(upstream.recv_to_end(), End::reset);
  EXPECT_EQ(daemon_->process().wait_exit(), 1);
  daemon_.reset();
}

TEST_P(Survive, AFinWhileNoWorkerRuns) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  Nobody nobody(*daemon_);
  client.send_all_with_fin("QUIT\r\n");
  upstream.send_all_with_fin("221 bye\r\n");
  nobody.end();
  std::string at_server, at_client;
  EXPECT_EQ(upstream.recv_to_end(&at_server), End::fin);
  EXPECT_EQ(client.recv_to_end(&at_client), End::fin);
  EXPECT_EQ(at_server, "QUIT\r\n");
  EXPECT_EQ(at_client, "221 bye\r\n");
  EXPECT_TRUE(closed_for("completed"));
}

TEST_P(Survive, ARstWhileNoWorkerRuns) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  Nobody nobody(*daemon_);
  client.reset();
  nobody.end();
  EXPECT_EQ(upstream.recv_to_end(), End::reset);
  EXPECT_TRUE(closed_for("client_reset"));
}

TEST_P(Survive, TheSpliceGoesOnWhileNoWorkerRuns) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  const bool spliced = sockmap();
  Nobody nobody(*daemon_);
  client.send_all("EHLO client\r\n");
  EXPECT_EQ(upstream.readable_within(spliced ? kPatience : 100ms), spliced);  // relayed, they wait
  nobody.end();
  EXPECT_EQ(upstream.recv_line(), "EHLO client\r");
  upstream.send_all("250 server\r\n");
  EXPECT_EQ(client.recv_line(), "250 server\r");
}

TEST_P(Survive, NewcomersWhileNoWorkerRuns) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  Nobody nobody(*daemon_);
  std::vector<TcpStream> clients;
  for (int i = 0; i < 20; i++) {
    clients.push_back(connect());
    clients.back().send_all("EHLO client\r\n");
  }
  nobody.end();
  std::vector<TcpStream> accepted;
  for (size_t i = 0; i < clients.size(); i++) {
    accepted.push_back(server.accept());
    EXPECT_EQ(accepted.back().recv_line(), "EHLO client\r");
  }
  EXPECT_EQ(daemon_->totals().at("accepted"), clients.size());
}

// The dead worker's ring lives on for a while, and is woken for it; nobody comes after it.
TEST_P(Survive, ANewcomerAloneWhenTheWorkerDies) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  for (int i = 0; i < 20; i++) {
    std::optional<TcpStream> client;
    std::thread late([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(10 * i));
      client = connect();
    });
    EXPECT_EQ(upgrade(daemon_program()), "done");
    late.join();
    const TcpStream upstream = server.accept();
    client->send_all("EHLO client\r\n");
    EXPECT_EQ(upstream.recv_line(), "EHLO client\r");
  }
}

TEST_P(Survive, WhileItDials) {
  start();
  std::optional<TcpListener> server(std::in_place, at(kAddress, kServerPort),
                                    0);  // the SYN comes again after 1 s
  const TcpStream in_the_way = TcpStream::connect(server->address());
  const TcpStream client = connect();
  client.send_all("early ");
  daemon_->wait_flow("dialing");
  kill_worker();
  daemon_->wait_flow("dialing");
  client.send_all("and late");
  const TcpStream first_out = server->accept();
  const TcpStream upstream = server->accept();
  EXPECT_EQ(upstream.recv_exactly(14), "early and late");
}

TEST_P(Survive, WithinTheHelloAndTheProxyHeader) {
  start_web();
  const TcpListener server(at(kAddress, kServerPort));
  const std::string header = kHeader, hello = TlsHello{.sni = "mail.example"}.bytes(), all = header + hello;
  // Cut within the header, right behind it, within the hello.
  for (const size_t cut : {size_t{9}, header.size(), header.size() + 20}) {
    const TcpStream client = TcpStream::connect(at(kAddress, kWebPort));
    client.send_all(all.substr(0, cut));
    daemon_->wait_flow(cut < header.size() ? "proxy_header" : "classifying");
    kill_worker();
    daemon_->wait_flow(cut < header.size() ? "proxy_header" : "classifying");
    client.send_all(all.substr(cut));
    const TcpStream upstream = server.accept();
    EXPECT_EQ(upstream.recv_exactly(hello.size()), hello);
    EXPECT_EQ(daemon_->wait_flow().at("client"), "192.0.2.7:40000");
    client.half_close();
    EXPECT_EQ(upstream.recv_to_end(), End::fin);
    upstream.half_close();
    EXPECT_EQ(client.recv_to_end(), End::fin);
    EXPECT_TRUE(daemon_->wait_active(0));
  }
}

// The kernel tells it once.
TEST_P(Survive, ARstOfWhichTheDeadWorkerWasTold) {
  start_web();
  for (const std::string& bytes : {std::string("PROXY TCP"), kHeader + TlsHello().bytes().substr(0, 20)}) {
    TcpStream client = TcpStream::connect(at(kAddress, kWebPort));
    client.send_all(bytes);
    daemon_->wait_flow(bytes.size() < kHeader.size() ? "proxy_header" : "classifying");
    Nobody nobody(*daemon_);
    flow::FlowTable table = flow_table();
    uint32_t slot = 0;
    while (slot + 1 < table.used() && table[slot].phase == flow::Phase::free) ++slot;
    const Fd keeper(static_cast<int>(::syscall(SYS_pidfd_open, daemon_->process().pid(), 0)));
    const Fd ours(static_cast<int>(::syscall(SYS_pidfd_getfd, keeper.get(), table[slot].fd[0], 0)));
    client.reset();
    int told = 0;
    EXPECT_TRUE(wait_until([&] {
      socklen_t size = sizeof told;
      return ::getsockopt(ours.get(), SOL_SOCKET, SO_ERROR, &told, &size) != 0 || told != 0;
    }));
    EXPECT_EQ(told, ECONNRESET);
    nobody.end();
    EXPECT_TRUE(daemon_->wait_active(0));
  }
  EXPECT_EQ(daemon_->closed("client_reset"), 2u);
}

// What the counters, the command and the pinned map say of a flow is the same after a death as before.
TEST_P(Survive, NamesAndCountersStay) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  client.send_all("EHLO client\r\n");
  EXPECT_EQ(upstream.recv_line(), "EHLO client\r");
  const Json before = daemon_->wait_flow();
  kill_worker();
  const Json after = daemon_->wait_flow();
  for (const char* same : {"cookie", "client", "listener", "upstream", "server"})
    EXPECT_EQ(after.at(same), before.at(same)) << same;
  EXPECT_EQ(after.at("directions").at("up").at("bytes"), 13);
  EXPECT_EQ(daemon_->totals().at("accepted"), 1);
  EXPECT_EQ(daemon_->pinned_flows().value_or(1), 1u);
}

TEST_P(Survive, ReloadedConfigurations) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  const std::string file = read_file(daemon_->config_file());
  const size_t at_name = file.find("name = \"mail\"");
  ASSERT_NE(at_name, std::string::npos);
  std::string changed = file;
  changed.replace(at_name, 13, "name = \"post\"");
  std::ofstream(daemon_->config_file()) << changed;
  EXPECT_EQ(daemon_->ask({{"command", "reload"}}).value("error", ""), "");
  auto [client2, upstream2] = Pair{connect(), server.accept()};
  std::ofstream(daemon_->config_file()) << "what a worker that comes later does not read";
  kill_worker();
  std::map<std::string, int> of;
  for (const Json& flow : daemon_->flows()) of[flow.at("listener").get<std::string>()]++;
  EXPECT_EQ(of, (std::map<std::string, int>{{"mail", 1}, {"post", 1}}));
  client.send_all("one");
  client2.send_all("two");
  EXPECT_EQ(upstream.recv_exactly(3), "one");
  EXPECT_EQ(upstream2.recv_exactly(3), "two");
}

TEST_P(Survive, ACrashIsReported) {
  if (!crash::kHandlesSignals) GTEST_SKIP() << "a sanitizer has these signals";
  start();
  kill_worker(SIGSEGV);
  const auto reports = std::filesystem::directory_iterator(daemon_->crash_directory());
  ASSERT_NE(reports, std::filesystem::directory_iterator());
  const std::string report = read_file(reports->path());
  EXPECT_NE(report.find("cause: SIGSEGV"), std::string::npos) << report;
  EXPECT_NE(report.find("end of report"), std::string::npos) << report;
  EXPECT_TRUE(daemon_->process().wait_for("died: SIGSEGV (Segmentation fault); report ")) << daemon_->log();
}

TEST_P(Survive, Upgrades) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  PatternReader at_server(upstream, 1), at_client(client, 2);
  PatternSender up(client, 1), down(upstream, 2);
  const pid_t keeper = daemon_->process().pid();
  for (uint64_t n = 1; n <= 3; n++) {
    at_server.wait_received(n * kBulkBytes);
    at_client.wait_received(n * kBulkBytes);
    EXPECT_EQ(upgrade(daemon_program()), "done");
    EXPECT_EQ(daemon_->status().at("pid"), keeper);
  }
  up.stop();
  down.stop();
  for (PatternReader* reader : {&at_server, &at_client}) {
    const auto result = reader->finish();
    EXPECT_EQ(result.wrong_at, std::nullopt);
    EXPECT_EQ(result.end, End::fin);
    EXPECT_EQ(result.bytes, reader == &at_server ? up.finish() : down.finish());
  }
  EXPECT_TRUE(closed_for("completed"));
  EXPECT_EQ(daemon_->status().at("worker").at("crashes"), 0);
  at_start_.sockets++;  // a worker of another program has a copy of the admin socket
  kill_worker();        // also of a program that came later
  auto [client2, upstream2] = open_flow(server);
  client2.send_all("one");
  EXPECT_EQ(upstream2.recv_exactly(3), "one");
}

TEST_P(Survive, UpgradesThatFail) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  const TempDir directory;
  const auto expect_failure = [&](const std::string& program, const std::string& result,
                                  const std::string& reason) {
    EXPECT_EQ(upgrade(program), result) << program;
    EXPECT_EQ(daemon_->status().at("worker").at("upgrade").value("reason", ""), reason) << program;
  };
  expect_failure("/nonexistent", "missing", "the program cannot be opened: No such file or directory");
  expect_failure(directory.write("text", "no program", 0755), "not_executable",
                 "the program cannot be executed: Exec format error");
  expect_failure(directory.write("plain", "no program", 0644), "not_executable",
                 "the program cannot be executed: Permission denied");
  expect_failure(directory.write("anybodys", "no program", 0777), "not_trusted",
                 "the program is not root's alone, others own it or may write to it; or it was exchanged "
                 "meanwhile");
  expect_failure("/bin/true", "trial_failed",
                 "it is no penstockd, or one that knows no upgrades: it ended on trial without a word");
  expect_failure("/bin/false", "trial_failed", "it refused on trial, exit code 1; why is in the log");
  client.send_all("EHLO client\r\n");
  EXPECT_EQ(upstream.recv_line(), "EHLO client\r");
  EXPECT_TRUE(wait_until([&] {
    return daemon_->log().find("upgrade: the old program goes on: it refused on trial") != std::string::npos;
  })) << daemon_->log();
}

TEST_P(Survive, UpgradesThatAreRefusedAtOnce) {
  start();
  const auto refused = [&](Json request) {
    request["command"] = "upgrade";
    return daemon_->ask(request).value("error", "");
  };
  for (const int64_t patience_s : {int64_t{0}, int64_t{-1}, int64_t{601}, int64_t{1} << 32})
    EXPECT_EQ(refused({{"patience_s", patience_s}}), "patience_s: accepted: 1 to 600") << patience_s;
  EXPECT_NE(refused({{"program", std::string(256, 'p')}}), "");
  EXPECT_EQ(daemon_->status().at("worker").at("upgrade").at("answered"), 0);
}

// The keeper is gone, so nobody would start another worker: this one ends as by SIGTERM.
TEST_P(Survive, TheKeeperIsKilled) {
  start();
  const TcpListener server(at(kAddress, kServerPort));
  auto [client, upstream] = open_flow(server);
  const pid_t worker = daemon_->worker();
  const Fd end(static_cast<int>(::syscall(SYS_pidfd_open, worker, 0)));
  daemon_->process().signal(SIGKILL);
  EXPECT_TRUE(daemon_->process().wait_for("draining: 1 flows")) << daemon_->log();
  client.send_all_with_fin("QUIT\r\n");
  EXPECT_EQ(upstream.recv_line(), "QUIT\r");
  upstream.half_close();
  EXPECT_EQ(client.recv_to_end(), End::fin);
  pollfd polled{end.get(), POLLIN, 0};
  EXPECT_EQ(::poll(&polled, 1, static_cast<int>(kPatience.count())), 1) << daemon_->log();
  expect_no_trace(*daemon_);
  daemon_.reset();
}

}  // namespace
}  // namespace penstock::test
