// SPDX-License-Identifier: Apache-2.0
// crash/report.h: what a worker leaves of its death: one file of at most 64 KiB, written by itself
// (signals.h) or, after SIGKILL, the OOM killer or the watchdog, by the next worker. What is said of one's
// own memory while dying may crash in turn; so the surest comes first, and "end of report" says that nothing
// is missing. README.md shows one. tests/unit/crash_test.cc.
#pragma once
#include <signal.h>
#include <sys/types.h>
#include <ucontext.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/in_hand.h"
#include "base/result.h"
#include "bpf/abi.h"
#include "crash/text.h"

namespace penstock::crash {

inline constexpr size_t kReportBytesMax = 64 << 10;
inline constexpr size_t kReportsKept = 16;
inline constexpr uint32_t kSharedLayout = 1;  // counts up with any change of Shared

// In memory that outlives the worker. Zeros are a valid one.
struct Shared {
  // Whatever is there becomes a valid one; of another layout nothing is kept. REQUIRES: memory is aligned to
  // 8 and has sizeof(Shared)
  static Shared& take_over(std::span<std::byte> memory);

  uint32_t layout;
  std::atomic<int32_t> reported;    // the process that has a report: by its own hand, or by the next worker's
  std::atomic<int64_t> reported_s;  // when: names the file
  std::atomic<uint32_t> guilty;     // 1 + the hand whose thread did it by itself, or stands still; 0: none
  InHand hands[PENSTOCK_THREADS_MAX];
};

// What a report is made of; all of it stays until the process ends.
struct Options {
  int directory = -1;                     // O_RDONLY | O_DIRECTORY
  Shared* shared = nullptr;               // not null
  std::span<const std::byte> log_ring{};  // of a LogRing; empty: no last events
  // A flow in words: at most `bytes`, ends with 0. Called while crashing: no allocation, no lock. Its numbers
  // may be garbage. nullptr: numbers alone.
  void (*describe)(const InHand::Flow& flow, char* out, size_t bytes) = nullptr;
};

struct Cause {
  pid_t process;          // that died
  std::string_view text;  // "SIGKILL", "no heartbeat for 10 s"
};

// For a death that left no report, by the next worker before its threads take flows in hand: the name of the
// file; of the one that is there, if the process has left it. Errors: the directory's, the disk's.
Result<std::string> write_report(const Options& options, const Cause& cause);

// The rest is for signals.cc, in a signal handler.

// What only the process that dies can say.
struct Dying {
  const siginfo_t& info;
  const ucontext_t& context;
  const InHand* own;  // of the thread that crashed, or nullptr
};

// O_EXCL, mode 0640; -1: errno. SIGXFSZ is ignored from then on, so that a limit costs the file alone.
int open_report(const Options& options, pid_t process, int64_t unix_s);
void put_cause(Text& out, const siginfo_t& info);
void put_report(Text& out, const Options& options, int64_t unix_s, const Cause& cause, const Dying* dying);

}  // namespace penstock::crash
