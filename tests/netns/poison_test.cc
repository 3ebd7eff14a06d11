// SPDX-License-Identifier: Apache-2.0
// A client on whose bytes the worker crashes: it crashes two workers, then its flow is closed. Nobody else's
// is.
#include <filesystem>
#include <map>
#include <set>
#include <vector>

#include "crash/signals.h"
#include "netns/edge.h"
#include "support/tls_hello.h"

namespace penstock::test {
namespace {

constexpr size_t kOthers = 100;
constexpr const char* kPoison = "lab-poison";
constexpr uint16_t kProxyPort = 8025;

class Poison : public Edge {
 protected:
  void SetUp() override {
    if (!crash::kHandlesSignals) GTEST_SKIP() << "a sanitizer has these signals: nobody is blamed";
    DaemonOptions options;
    options.process.environment["LD_PRELOAD"] = LAB_POISON;
    options.tables = mail_tables() + R"(
[[listener]]
name = "behind-a-proxy"
bind = ["127.0.0.1:8025"]
upstream = "mailbox"
accept_proxy = { from = ["127.0.0.0/8"] }
[[listener]]
name = "web"
bind = ["127.0.0.1:8443"]
upstream = "mailbox"
  [[listener.route]]
  sni = ["*.example"]
  upstream = "mailbox"
)";
    start_with(std::move(options));
    if (HasFatalFailure()) return;
    for (size_t i = 0; i < kOthers; i++) {
      TcpStream client = connect();
      others_.push_back({std::move(client), server_->accept()});
    }
    ASSERT_TRUE(wait_until([&] {
      size_t open = 0;
      for (const Json& flow : daemon_->flows()) open += flow.at("phase") == "open";
      return open == kOthers;
    }));
    carry("before");
  }
  void TearDown() override {
    others_.clear();
    Edge::TearDown();
  }
  void carry(const std::string& what) {
    for (Pair& other : others_) {
      other.client.send_all(what + " up\n");
      other.server.send_all(what + " down\n");
    }
    for (Pair& other : others_) {
      ASSERT_EQ(other.server.recv_line(), what + " up");
      ASSERT_EQ(other.client.recv_line(), what + " down");
    }
  }
  // One flow dies of `bytes` from its client, in `phase`; two workers with it.
  void expect_crashes(uint16_t port, const std::string& bytes, const std::string& phase, uint64_t times) {
    const Json before = daemon_->status().at("worker");
    const TcpStream client = TcpStream::connect(at(kAddress, port));
    client.send_all(bytes);
    EXPECT_EQ(client.recv_to_end(), End::reset);
    ASSERT_TRUE(wait_until([&] { return totals().value("active", uint64_t{0}) == kOthers; }))
        << daemon_->log();
    EXPECT_EQ(totals().at("closed"), (Json{{"worker_crashed", times}}));
    EXPECT_EQ(totals().at("accepted"), kOthers + times);
    const Json after = daemon_->status().at("worker");
    EXPECT_EQ(after.at("crashes"), before.at("crashes").get<uint64_t>() + 2);
    EXPECT_EQ(after.at("starts"), before.at("starts").get<uint64_t>() + 2);
    carry("after " + phase);
    EXPECT_EQ(daemon_->worker(), after.at("pid"));

    const std::string ended = "reason=worker_crashed";
    const auto is_told = [&](uint64_t n) {
      const std::string told = daemon_->log();
      size_t found = told.find(ended);
      while (--n && found != std::string::npos) found = told.find(ended, found + 1);
      return found != std::string::npos;
    };
    ASSERT_TRUE(wait_until([&] { return is_told(times); })) << daemon_->log();
    const std::string log = daemon_->log();
    const size_t at = log.rfind("flow cookie=", log.rfind(ended));
    const std::string cookie = log.substr(at + 5, log.find(' ', at + 5) - at - 5);
    size_t reports = 0;
    for (const auto& entry : std::filesystem::directory_iterator(daemon_->crash_directory())) {
      const std::string report = read_file(entry.path());
      EXPECT_NE(report.find("cause: SIGSEGV"), std::string::npos) << report;
      EXPECT_NE(report.find("(the thread that crashed)"), std::string::npos) << report;
      EXPECT_NE(report.find("end of report"), std::string::npos) << report;
      reports += report.find(cookie + " " + phase + ":") != std::string::npos;
    }
    EXPECT_EQ(reports, 2u) << cookie << " " << phase << "\n" << log;
  }

  Json totals() const {
    try {
      Json totals = daemon_->totals();
      for (auto reason = totals["closed"].begin(); reason != totals["closed"].end();)
        reason = *reason == 0 ? totals["closed"].erase(reason) : std::next(reason);
      return totals;
    } catch (const std::exception&) {
      return Json::object();  // the worker that was asked is gone
    }
  }

 private:
  std::optional<TcpListener> server_{std::in_place, at(kAddress, kServerPort)};
  std::vector<Pair> others_;
};
FOR_BOTH_ENGINES(Poison);

TEST_P(Poison, InTheHello) {
  expect_crashes(kWebPort, TlsHello{.sni = std::string(kPoison) + ".example"}.bytes(), "classifying", 1);
}

TEST_P(Poison, InTheProxyHeaderAndAgain) {
  for (const uint64_t times : {1u, 2u})
    expect_crashes(kProxyPort, std::string("PROXY ") + kPoison, "proxy_header", times);
}

// Flows are adopted before the new program is taken for good: the old one is back, with all of them.
TEST_P(Poison, InTheAdoptionByANewProgram) {
  const TempDir directory;
  const std::filesystem::path program = directory.path() + "/dies-in-adoption";
  std::filesystem::copy_file(daemon_program(), program);
  std::filesystem::permissions(program, std::filesystem::perms(0755));
  // Each time of the same flow, which has done nothing.
  for (const int times : {1, 2, 3}) {
    daemon_->ask({{"command", "upgrade"}, {"program", program}, {"patience_s", 60}});
    Json upgrade;
    ASSERT_TRUE(wait_until([&] {
      try {
        upgrade = daemon_->status().at("worker").at("upgrade");
      } catch (const std::exception&) {
        return false;  // the worker that was asked is gone
      }
      return upgrade.at("answered") == times;
    })) << daemon_->log();
    EXPECT_EQ(upgrade.at("result"), "start_failed") << daemon_->log();
    EXPECT_EQ(std::filesystem::read_symlink("/proc/" + std::to_string(daemon_->process().pid()) + "/exe"),
              daemon_program());
    EXPECT_EQ(totals().at("active"), kOthers);
    EXPECT_EQ(totals().at("closed"), Json::object());
    carry("after it");
  }
}

}  // namespace
}  // namespace penstock::test
