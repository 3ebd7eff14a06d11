// SPDX-License-Identifier: Apache-2.0
// base/log_ring.h: log lines in memory that outlives the process that wrote them. Threads of one process
// write, one of them takes lines out; all may die at any instruction, and the next process goes on:
//   1. What write() returned from is there, in order, until it is done or the oldest of a full ring; of a
//   line
//      whose writer died nothing is there. A line is committed by the one store that moves `next` past it.
//   2. A line is done by the one store that moves `read` past it. Who dies between putting it out and done()
//      has it put out a second time, whole; nothing else comes twice.
//   3. The lock is the process's own, so nobody waits for the dead. It is held for a copy, never for a system
//      call that blocks.
//   4. Whatever the memory holds, taking it over ends, and reads nothing outside it.
// dropped() may be one short for each death. tests/unit/log_ring_test.cc kills it 1,000 times.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <string_view>

namespace penstock {

inline constexpr uint32_t kLogRingLayout = 1;  // counts up with any change of what is in the memory

struct LogLine {
  static constexpr size_t kBytesMax =
      3904;  // with its time and level less than PIPE_BUF: a pipe takes it whole

  std::string_view text() const { return {bytes, size}; }

  uint64_t position = 0;  // counts up
  int64_t time_ns = 0;    // since 1970
  uint32_t level = 0;     // the writer's; after a takeover of garbage any number
  uint32_t size = 0;
  char bytes[kBytesMax];
};

class LogRing {
 public:
  enum class Found { nothing, lines, garbage };  // garbage, or another layout: begun anew

  // Takes over what is there; zeros are an empty ring. It may be mapped anywhere.
  // REQUIRES: `memory` is aligned to 8, has kBytesMin, outlives this; no other process uses it
  explicit LogRing(std::span<std::byte> memory);
  static const size_t kBytesMin;

  Found found() const { return found_; }

  // Of a longer text the rest is cut, with "..." in its place. When there is no room the oldest lines are
  // dropped.
  void write(uint32_t level, int64_t time_ns, std::string_view text);

  // The oldest line that is not done, once there is one; false after end() when none is left. One thread.
  bool wait(LogLine& line);
  void done(const LogLine& line, bool was_put_out);
  void end();

  uint64_t dropped() const;  // lines that were not put out, since the memory was zeros

 private:
  struct Header;
  struct Slot;
  friend class LogTail;

  bool take_front(LogLine& line);
  void drop_front();

  Header* const header_;
  Slot* const slots_;
  const uint64_t count_;  // of slots
  Found found_;
  mutable std::mutex mutex_;  // over all that follows, and over every change of the memory
  std::condition_variable wake_;
  bool ending_ = false;
  uint64_t held_ = 0;  // position of the line between wait() and done(), 0: none
};

// The last lines, done or not, while others may write. No lock, no allocation: for a signal handler.
class LogTail {
 public:
  explicit LogTail(std::span<const std::byte> memory);  // of a LogRing, or garbage, or nothing

  // The positions of the last lines, oldest first; at most positions.size().
  size_t last(std::span<uint64_t> positions) const;
  bool read(uint64_t position, LogLine& line) const;  // false: overwritten meanwhile, or garbage

 private:
  friend class LogRing;
  LogTail(const LogRing::Header* header, const LogRing::Slot* slots, uint64_t count)
      : header_(header), slots_(slots), count_(count) {}

  const LogRing::Header* header_ = nullptr;
  const LogRing::Slot* slots_ = nullptr;
  uint64_t count_ = 0;  // 0: nothing to read
};

}  // namespace penstock
