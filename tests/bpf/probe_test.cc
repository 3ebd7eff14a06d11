// SPDX-License-Identifier: Apache-2.0
#include "sockmap/probe.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <string>
#include <thread>

namespace penstock::sockmap {
namespace {

const Capability& named(const ProbeReport& report, const std::string& name) {
  static const Capability kMissing{"", false, false, "not tried"};
  auto c = std::find_if(report.capabilities.begin(), report.capabilities.end(),
                        [&](const Capability& x) { return x.name == name; });
  return c == report.capabilities.end() ? kMissing : *c;
}

TEST(Probe, FindsEverythingOnThisKernel) {
  ProbeReport report = probe();
  for (const Capability& c : report.capabilities) {
    EXPECT_TRUE(c.ok) << c.name << ": " << c.detail;
    std::printf("%-17s %-3s %s\n", c.name.c_str(), c.ok ? "ok" : "no", c.detail.c_str());
  }
  std::printf("elapsed %u ms\n", report.elapsed_ms);
  EXPECT_TRUE(report.sockmap_usable());
  EXPECT_EQ(report.first_failure, "");
  EXPECT_EQ(report.capabilities.size(), 17u);
}

TEST(Probe, NoticesThatOverlapsAreNotCut) {
  Options planted;
  planted.cut = false;
  ProbeReport report = probe(planted);
  EXPECT_FALSE(report.sockmap_usable());
  EXPECT_FALSE(named(report, "overlap").ok);
  EXPECT_EQ(report.first_failure, "overlap: bytes that userspace had read were delivered again");
}

TEST(Probe, NoticesThatFragmentsAreNotPulledAndGoesOn) {
  Options planted;
  planted.pull = false;
  ProbeReport report = probe(planted);
  EXPECT_FALSE(report.has("pull"));
  EXPECT_TRUE(report.has("trim"));
  EXPECT_TRUE(report.sockmap_usable()) << report.first_failure;
}

TEST(Probe, SaysThatLoopbackIsDown) {
  ProbeReport report;
  std::thread([&] {
    ASSERT_EQ(unshare(CLONE_NEWNET), 0);
    report = probe();
  }).join();
  EXPECT_FALSE(report.sockmap_usable());
  EXPECT_EQ(report.first_failure, "loopback: lo is down in this network namespace (ip link set lo up)");
}

class Memory : public testing::Test {
 protected:
  Memory() { report_.capabilities = {{"splice", true, true, ""}, {"pull", false, false, "no, thanks"}}; }
  ~Memory() override { ::unlink(path_.c_str()); }
  std::string path_ = "/tmp/penstock_probe_test." + std::to_string(getpid());
  ProbeReport report_;
};

TEST_F(Memory, KeepsAUsableReport) {
  report_.elapsed_ms = 7;
  remember(path_, "build 1", report_);
  auto again = remembered(path_, "build 1");
  ASSERT_TRUE(again.has_value());
  EXPECT_TRUE(again->sockmap_usable());
  EXPECT_TRUE(again->has("splice"));
  EXPECT_FALSE(again->has("pull"));
  EXPECT_EQ(named(*again, "pull").detail, "no, thanks");
  EXPECT_FALSE(named(*again, "pull").promise);
  EXPECT_EQ(again->elapsed_ms, 7u);
}

TEST_F(Memory, ForgetsAcrossBuilds) {
  remember(path_, "build 1", report_);
  EXPECT_FALSE(remembered(path_, "build 2").has_value());
}

TEST_F(Memory, ForgetsAcrossBoots) {
  remember(path_, "build 1", report_);
  std::ifstream in(path_);
  std::string text((std::istreambuf_iterator<char>(in)), {});
  size_t boot = text.find('\n') + 1;
  text[boot] = text[boot] == '0' ? '1' : '0';
  std::ofstream(path_) << text;
  EXPECT_FALSE(remembered(path_, "build 1").has_value());
}

TEST_F(Memory, ForgetsWhenTheNextReportIsNotUsable) {
  remember(path_, "build 1", report_);
  report_.first_failure = "trim: nothing is trimmed beyond the limit";
  remember(path_, "build 1", report_);
  EXPECT_FALSE(remembered(path_, "build 1").has_value());
}

TEST_F(Memory, TakesNothingFromGarbage) {
  for (const char* text : {"", "\n", "penstock probe 1", "penstock probe 1\n\nbuild 1\n",
                           "\x7f"
                           "ELF"}) {
    std::ofstream(path_) << text;
    EXPECT_FALSE(remembered(path_, "build 1").has_value()) << text;
  }
}

}  // namespace
}  // namespace penstock::sockmap
