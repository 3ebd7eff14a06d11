// SPDX-License-Identifier: Apache-2.0
#include "base/log_ring.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace penstock {
namespace {

constexpr size_t kBytes = 1 << 20;  // about 2,000 slots

// What is mapped here stays when a child dies.
class SharedMemory {
 public:
  explicit SharedMemory(size_t bytes = kBytes) : bytes_(bytes) {
    void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT_NE(at, MAP_FAILED);
    memory_ = static_cast<std::byte*>(at);
  }
  ~SharedMemory() { munmap(memory_, bytes_); }
  std::span<std::byte> span() { return {memory_, bytes_}; }
  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(memory_);
  }

 private:
  size_t bytes_;
  std::byte* memory_;
};

std::vector<std::string> all_of(LogRing& ring, bool put_out = true) {
  std::vector<std::string> lines;
  ring.end();
  for (LogLine line; ring.wait(line);) {
    lines.emplace_back(line.text());
    ring.done(line, put_out);
  }
  return lines;
}

std::vector<std::string> last_of(std::span<const std::byte> memory, size_t most) {
  const LogTail tail(memory);
  std::vector<uint64_t> positions(most);
  positions.resize(tail.last(positions));
  std::vector<std::string> lines;
  LogLine line;
  for (const uint64_t position : positions)
    if (tail.read(position, line)) lines.emplace_back(line.text());
  return lines;
}

using Lines = std::vector<std::string>;

TEST(LogRing, LinesComeOutInOrderWithTheirTimeAndLevel) {
  SharedMemory memory;
  LogRing ring(memory.span());
  ring.write(2, 1234567890, "a");
  ring.write(0, 1, "");
  LogLine line;
  ASSERT_TRUE(ring.wait(line));
  EXPECT_EQ(line.text(), "a");
  EXPECT_EQ(line.level, 2u);
  EXPECT_EQ(line.time_ns, 1234567890);
  ring.done(line, true);
  EXPECT_EQ(all_of(ring), Lines{""});
  EXPECT_EQ(ring.dropped(), 0u);
}

TEST(LogRing, ALongLineComesOutWholeAndALongerOneIsCut) {
  SharedMemory memory;
  LogRing ring(memory.span());
  const std::string whole(LogLine::kBytesMax, 'x');
  ring.write(1, 0, whole);
  ring.write(1, 0, whole + "y");
  ring.write(1, 0, std::string(489, 'z'));
  EXPECT_EQ(all_of(ring), (Lines{whole, whole.substr(0, whole.size() - 3) + "...", std::string(489, 'z')}));
}

TEST(LogRing, WhenFullTheOldestAreDroppedAndCounted) {
  SharedMemory memory(LogRing::kBytesMin);  // 8 slots
  LogRing ring(memory.span());
  for (int i = 0; i < 20; i++) ring.write(1, 0, std::to_string(i));
  EXPECT_EQ(ring.dropped(), 12u);
  ring.write(1, 0, std::string(1000, 'x'));  // 3 slots
  EXPECT_EQ(ring.dropped(), 15u);
  EXPECT_EQ(all_of(ring), (Lines{"15", "16", "17", "18", "19", std::string(1000, 'x')}));
}

TEST(LogRing, ALineThatIsPutOutWhileTheRingOverrunsItIsNotDropped) {
  SharedMemory memory(LogRing::kBytesMin);
  LogRing ring(memory.span());
  ring.write(1, 0, "slow");
  LogLine line;
  ASSERT_TRUE(ring.wait(line));
  for (int i = 0; i < 9; i++) ring.write(1, 0, std::to_string(i));
  EXPECT_EQ(line.text(), "slow");
  ring.done(line, true);
  EXPECT_EQ(ring.dropped(), 1u) << "0 alone";
  EXPECT_EQ(all_of(ring, false).size(), 8u);
  EXPECT_EQ(ring.dropped(), 9u) << "and what could not be put out";
}

TEST(LogRing, TheNextProcessGoesOnWhereTheLastOneEnded) {
  SharedMemory memory;
  {
    LogRing ring(memory.span());
    EXPECT_EQ(ring.found(), LogRing::Found::nothing);
    for (const char* text : {"out", "in hand", "waiting"}) ring.write(1, 0, text);
    LogLine line;
    ASSERT_TRUE(ring.wait(line));
    ring.done(line, true);
    ASSERT_TRUE(ring.wait(line));
  }
  LogRing ring(memory.span());
  EXPECT_EQ(ring.found(), LogRing::Found::lines);
  ring.write(1, 0, "new");
  EXPECT_EQ(all_of(ring), (Lines{"in hand", "waiting", "new"}));
  EXPECT_EQ(last_of(memory.span(), 2), (Lines{"waiting", "new"})) << "though they are done";
  EXPECT_EQ(last_of(memory.span(), 100).size(), 4u);
  LogRing third(memory.span());
  EXPECT_EQ(third.found(), LogRing::Found::nothing);
}

TEST(LogRing, TheLastLinesOfARingThatWentRoundMayBeginWithinALongOne) {
  SharedMemory memory(LogRing::kBytesMin);
  LogRing ring(memory.span());
  const std::string two_slots(900, 'x'), one_slot = "y";
  for (int i = 0; i < 5; i++) {
    ring.write(1, 0, two_slots);
    ring.write(1, 0, one_slot);
  }
  EXPECT_EQ(last_of(memory.span(), 100), (Lines{one_slot, two_slots, one_slot, two_slots, one_slot}));
}

TEST(LogRing, AnotherLayoutOrSizeIsBegunAnew) {
  SharedMemory memory;
  LogRing(memory.span()).write(1, 0, "a");
  LogRing smaller(memory.span().first(kBytes / 2));
  EXPECT_EQ(smaller.found(), LogRing::Found::garbage);
  EXPECT_EQ(all_of(smaller), Lines{});
  EXPECT_EQ(last_of(memory.span().first(kBytes / 2), 9), Lines{});
}

// Whatever is there: what comes out is bounded, and afterwards the ring works.
void expect_survives(std::span<std::byte> memory) {
  const size_t slots = memory.size() / 512;
  EXPECT_LE(last_of(memory, 10 * slots).size(), slots);
  LogRing ring(memory);
  ring.write(1, 0, "after");
  const Lines lines = all_of(ring);
  ASSERT_LE(lines.size(), slots);
  ASSERT_FALSE(lines.empty());
  EXPECT_EQ(lines.back(), "after");
}

TEST(LogRing, RandomBytesAreTakenOver) {
  std::mt19937_64 random(1);
  SharedMemory memory(LogRing::kBytesMin + 512);
  for (int round = 0; round < 20'000; round++) {
    for (size_t at = 0; at < memory.span().size() / 8; at++) memory.as<uint64_t>()[at] = random();
    expect_survives(memory.span());
  }
}

TEST(LogRing, ARingWithDamageIsTakenOver) {
  std::mt19937_64 random(2);
  SharedMemory memory(LogRing::kBytesMin + 512);
  for (int round = 0; round < 50'000; round++) {
    memset(memory.span().data(), 0, memory.span().size());
    {
      LogRing ring(memory.span());
      for (int i = 0; i < 12; i++) ring.write(1, 0, std::string(random() % 1500, 'x'));
    }
    for (uint64_t damage = random() % 4; damage-- > 0;) {
      // Half of it within the header or a slot's.
      const size_t at =
          random() % 2 ? random() % memory.span().size() : random() % 10 * 512 + 40 + random() % 48;
      const uint64_t bytes = random() % 2 ? random() : random() % 20;
      memcpy(memory.span().data() + std::min(at, memory.span().size() - 8), &bytes, 8);
    }
    expect_survives(memory.span());
  }
}

// What children tell the parent before they die.
struct Told {
  std::atomic<uint64_t> written[2];  // lines of each thread that write() returned from
  std::atomic<uint64_t> put_out;     // bytes of `out`
  char* out() { return reinterpret_cast<char*>(this + 1); }
};

std::string line_text(unsigned thread, uint64_t number) {
  std::string text = fmt::format("{} {} ", thread, number);
  return text.append((number * 37 + thread) % 1100, static_cast<char>('a' + number % 26));
}

// Checks a line of line_text(), and returns its thread and number.
std::pair<unsigned, uint64_t> parsed(const std::string& text) {
  unsigned thread = 9;
  unsigned long long number = 0;
  EXPECT_EQ(sscanf(text.c_str(), "%u %llu", &thread, &number), 2) << text;
  EXPECT_LT(thread, 2u);
  EXPECT_EQ(text, line_text(thread, number)) << "torn";
  return {thread % 2, number};
}

// A child with two writers, and whatever else, is killed once both together have written `after` lines.
template <typename Also>
void live_and_be_killed(std::span<std::byte> memory, Told& told, uint64_t after, uint64_t spin, Also also) {
  constexpr uint64_t kLinesMax = 300;  // of a life and thread
  const uint64_t before = told.written[0] + told.written[1];
  const pid_t child = fork();
  if (child == 0) {
    LogRing ring(memory);
    const uint64_t begin[2] = {told.written[0], told.written[1]};
    auto write = [&](unsigned thread) {
      for (uint64_t i = begin[thread]; i < begin[thread] + kLinesMax; i++) {
        ring.write(1, 0, line_text(thread, i));
        told.written[thread].store(i + 1, std::memory_order_release);
      }
      for (;;) pause();
    };
    std::thread other(write, 1u), third([&] { also(ring); });
    write(0);
  }
  ASSERT_GT(child, 0);
  while (told.written[0] + told.written[1] < before + after) std::this_thread::yield();
  for (std::atomic<uint64_t> i = 0; i < spin;) i++;
  kill(child, SIGKILL);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int kKills = 100;
#else
constexpr int kKills = 1000;
#endif

TEST(LogRing, NoCommittedLineIsLostAndNoneIsTornHoweverItsWritersDie) {
  std::mt19937_64 random(3);
  SharedMemory memory(2 << 20), said(1 << 12);  // 4,000 slots: 600 lines of up to 3
  Told& told = *said.as<Told>();
  uint64_t unacknowledged = 0;
  for (int round = 0; round < kKills; round++) {
    live_and_be_killed(memory.span(), told, random() % 500, random() % 3000, [](LogRing&) {});
    const uint64_t before[2] = {told.written[0], told.written[1]};
    LogRing ring(memory.span());
    uint64_t next[2] = {UINT64_MAX, UINT64_MAX};
    for (const std::string& text : all_of(ring)) {
      const auto [thread, number] = parsed(text);
      EXPECT_TRUE(next[thread] == UINT64_MAX || next[thread] == number)
          << "not in order: " << text.substr(0, 20);
      next[thread] = number + 1;
    }
    for (unsigned thread : {0, 1}) {
      if (next[thread] == UINT64_MAX) next[thread] = before[thread];
      EXPECT_GE(next[thread], before[thread]) << "a committed line is missing";
      EXPECT_LE(next[thread], before[thread] + 1) << "committed before write() returned";
      unacknowledged += next[thread] - before[thread];
      told.written[thread] = next[thread];
    }
    ASSERT_EQ(ring.dropped(), 0u);
    ASSERT_FALSE(HasFailure());
  }
  RecordProperty("lines", std::to_string(told.written[0] + told.written[1]));
  RecordProperty("committed_unacknowledged", std::to_string(unacknowledged));
}

TEST(LogRing, ALineIsPutOutTwiceOnlyByADeathInBetween) {
  std::mt19937_64 random(4);
  constexpr size_t kOutBytes = 256 << 20;
  SharedMemory memory(2 << 20), said(kOutBytes);
  Told& told = *said.as<Told>();
  const auto put_out = [&](LogRing& ring) {
    for (LogLine line; ring.wait(line);) {
      const uint64_t at = told.put_out.load();
      memcpy(told.out() + at, line.bytes, line.size);
      told.out()[at + line.size] = '\n';
      told.put_out.store(at + line.size + 1);  // as one write(2) into a pipe: all of it or nothing
      ring.done(line, true);
    }
  };
  const int kills = kKills / 4;
  for (int round = 0; round < kills; round++) {
    live_and_be_killed(memory.span(), told, random() % 500, random() % 3000, put_out);
    // What was committed and not acknowledged is not to be written again under its number.
    LogLine line;
    const LogTail tail(memory.span());
    std::vector<uint64_t> positions(600);
    positions.resize(tail.last(positions));
    for (const uint64_t position : positions) {
      ASSERT_TRUE(tail.read(position, line));
      const auto [thread, number] = parsed(std::string(line.text()));
      if (number == told.written[thread]) told.written[thread]++;
    }
    LogRing ring(memory.span());
    ring.end();
    put_out(ring);
    ASSERT_EQ(ring.dropped(), 0u);
  }

  uint64_t next[2] = {0, 0}, twice = 0;
  std::string last;
  for (size_t at = 0, end; at < told.put_out; at = end + 1) {
    end = std::string_view(told.out(), told.put_out).find('\n', at);
    std::string text(told.out() + at, end - at);
    const auto [thread, number] = parsed(text);
    if (text == last) {
      twice++;
      continue;
    }
    ASSERT_EQ(number, next[thread]);
    next[thread]++;
    last = std::move(text);
  }
  EXPECT_EQ(next[0], told.written[0]);
  EXPECT_EQ(next[1], told.written[1]);
  EXPECT_LE(twice, static_cast<uint64_t>(kills));
  RecordProperty("lines", std::to_string(next[0] + next[1]));
  RecordProperty("twice", std::to_string(twice));
}

}  // namespace
}  // namespace penstock
