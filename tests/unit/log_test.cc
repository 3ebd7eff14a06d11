// SPDX-License-Identifier: Apache-2.0
#include "base/log.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <regex>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "base/log_ring.h"

namespace penstock {
namespace {

// Standard error goes into a pipe as long as this lives.
class CapturedStderr {
 public:
  CapturedStderr() {
    int ends[2];
    EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0);
    read_.reset(ends[0]);
    saved_.reset(dup(STDERR_FILENO));
    dup2(ends[1], STDERR_FILENO);
    close(ends[1]);
  }
  ~CapturedStderr() { restore(); }

  void nobody_reads() { read_.reset(); }

  // What was written, up to and including what `last` causes; reads while it runs.
  template <typename Last>
  std::string text_after(Last last) {
    std::string out;
    std::thread reader([&] {
      char buffer[4096];
      for (ssize_t n; (n = read(read_.get(), buffer, sizeof buffer)) > 0;)
        out.append(buffer, static_cast<size_t>(n));
    });
    last();
    restore();
    reader.join();
    return out;
  }
  std::string text() {
    return text_after([] {});
  }

 private:
  void restore() {
    if (saved_.valid()) dup2(saved_.get(), STDERR_FILENO);
    saved_.reset();
  }
  Fd read_, saved_;
};

TEST(Log, BeforeStartALineIsWrittenAtOnce) {
  CapturedStderr captured;
  log::info("listening on {}", 25);
  EXPECT_TRUE(std::regex_match(
      captured.text(), std::regex(R"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z info  listening on 25\n)")));
}

TEST(Log, TextLinesInOrder) {
  CapturedStderr captured;
  log::start(log::Level::debug, log::Format::text);
  log::debug("a");
  log::warn("b");
  log::error("c");
  log::stop();
  EXPECT_EQ(std::regex_replace(captured.text(), std::regex(R"((^|\n)[0-9TZ:.-]+ )"), "$1"),
            "debug a\nwarn  b\nerror c\n");
  EXPECT_EQ(log::dropped(), 0u);
}

TEST(Log, JsonIsOneObjectPerLine) {
  CapturedStderr captured;
  log::start(log::Level::info, log::Format::json);
  log::info("{}", "unknown key \"a\\b\"\n\xff");
  log::stop();
  EXPECT_EQ(
      std::regex_replace(captured.text(), std::regex(R"(\d)"), "0"),
      R"({"time":"0000-00-00T00:00:00.000Z","level":"info","message":"unknown key \"a\\b\"\u000a\u00ff"})"
      "\n");
}

TEST(Log, BelowItsLevelNothingIsWritten) {
  CapturedStderr captured;
  log::start(log::Level::warn, log::Format::text);
  EXPECT_FALSE(log::enabled(log::Level::info));
  EXPECT_TRUE(log::enabled(log::Level::warn));
  log::info("not this");
  log::write(log::Level::debug, "nor this");
  log::stop();
  EXPECT_EQ(captured.text(), "");
  log::start(log::Level::info, log::Format::text);
  log::stop();
}

TEST(Log, WhenNobodyReadsTheWriterGoesOnAndTheLossIsCounted) {
  constexpr uint64_t kLines = 20'000;  // more than the queue and the pipe hold
  CapturedStderr captured;
  log::start(log::Level::info, log::Format::text);
  for (uint64_t i = 0; i < kLines; ++i) log::info("line {}", i);
  EXPECT_GT(log::dropped(), 0u);

  const std::string text = captured.text_after([] { log::stop(); });
  EXPECT_EQ(static_cast<uint64_t>(std::count(text.begin(), text.end(), '\n')) + log::dropped(), kLines);
  EXPECT_NE(text.find("line 19999\n"), text.npos) << "the newest lines are kept";
}

TEST(Log, StopWaitsForNoReader) {
  constexpr uint64_t kLines = 5'000;  // more than the pipe holds, less than the queue
  CapturedStderr captured;
  log::start(log::Level::info, log::Format::text);
  for (uint64_t i = 0; i < kLines; ++i) log::info("line {}", i);
  const auto before = std::chrono::steady_clock::now();
  log::stop();
  EXPECT_LT(std::chrono::steady_clock::now() - before, std::chrono::seconds(5));
  EXPECT_GT(log::dropped(), 0u);
  const std::string text = captured.text();
  EXPECT_EQ(static_cast<uint64_t>(std::count(text.begin(), text.end(), '\n')) + log::dropped(), kLines);
}

TEST(Log, AReaderThatIsGoneCostsTheLine) {
  CapturedStderr captured;
  captured.nobody_reads();
  log::start(log::Level::info, log::Format::text);
  log::info("for nobody");
  log::stop();
  EXPECT_EQ(log::dropped(), 1u);
}

TEST(Log, WhatTheProcessBeforeHasLeftInTheRingIsWrittenFirstAndOnce) {
  std::vector<uint64_t> memory(LogRing::kBytesMin / sizeof(uint64_t));
  const std::span<std::byte> ring = std::as_writable_bytes(std::span(memory));
  LogRing(ring).write(static_cast<uint32_t>(log::Level::warn), 1'000'000'000'000'000'000, "left");
  CapturedStderr captured;
  log::start(log::Level::info, log::Format::text, ring);
  log::info("new");
  log::stop();
  log::start(log::Level::info, log::Format::text, ring);
  log::stop();
  EXPECT_TRUE(std::regex_match(captured.text(),
                               std::regex(R"(2001-09-09T01:46:40\.000Z warn  left\n\S+ info  new\n)")));
}

TEST(Log, ARingThatCannotBeReadIsSaidAndBegunAnew) {
  std::vector<uint64_t> memory(LogRing::kBytesMin / sizeof(uint64_t), 0x1b1b1b1b1b1b1b1b);
  CapturedStderr captured;
  log::start(log::Level::info, log::Format::text, std::as_writable_bytes(std::span(memory)));
  log::info("new");
  log::stop();
  EXPECT_TRUE(std::regex_match(captured.text(),
                               std::regex(R"(\S+ warn  the log of .* unreadable.*\n\S+ info  new\n)")));
}

// Who comes after one that died asks whether it had said so before.
TEST(Log, WhatWasWrittenIsKnownPutOutOrNot) {
  std::vector<uint64_t> memory(LogRing::kBytesMin / sizeof(uint64_t));
  const std::span<std::byte> ring = std::as_writable_bytes(std::span(memory));
  LogRing(ring).write(static_cast<uint32_t>(log::Level::info), 1, "flow cookie=1 client=left");
  CapturedStderr captured;
  EXPECT_FALSE(log::was_written("flow cookie=1 client="));  // nobody has a ring
  log::start(log::Level::info, log::Format::text, ring);
  log::info("flow cookie=23 client=new");
  EXPECT_TRUE(log::was_written("flow cookie=1 client="));
  EXPECT_TRUE(log::was_written("flow cookie=23 client="));
  EXPECT_FALSE(log::was_written("flow cookie=2 client="));
  EXPECT_FALSE(log::was_written("cookie=1"));
  log::stop();
  log::start(log::Level::info, log::Format::text, ring);  // both are out
  EXPECT_TRUE(log::was_written("flow cookie=1 client="));
  EXPECT_TRUE(log::was_written("flow cookie=23 client="));
  for (int i = 0; log::was_written("flow cookie=1 client="); i++) {
    ASSERT_LT(i, 100'000);
    log::info("line {}", i);
  }
  log::stop();
}

TEST(Log, EscapedShowsPrintableAsciiAndNothingElse) {
  EXPECT_EQ(log::escaped("mail.example.net"), "mail.example.net");
  EXPECT_EQ(log::escaped(std::string_view("a\0\n\x7f\xff\"\\", 7)), R"(a\x00\x0a\x7f\xff\x22\x5c)");
  EXPECT_EQ(log::escaped("abcdef", 3), "abc");
  EXPECT_EQ(log::escaped(std::string(300, 'x')).size(), 255u);
}

}  // namespace
}  // namespace penstock
