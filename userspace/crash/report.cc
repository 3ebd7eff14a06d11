// SPDX-License-Identifier: Apache-2.0
#include "crash/report.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <iterator>
#include <utility>

#include "base/assert.h"
#include "base/fd.h"
#include "base/log_ring.h"
#include "crash/backtrace.h"
#include "crash/directory.h"

namespace penstock::crash {
namespace {

// Together less than kReportBytesMax.
constexpr size_t kEventsMax = 100, kEventBytesMax = 1024, kEventsBytesMax = 24 << 10;
constexpr size_t kHandsMax = 64, kDescribedMax = 16, kDescriptionBytesMax = 256;
constexpr size_t kMappingsMax = 64, kProcLineBytes = 200;

// The lines of a file under /proc that are wanted, at most `most`.
template <typename Wanted>
void put_lines(Text& out, const char* path, size_t most, Wanted wanted) {
  const Fd file(open(path, O_RDONLY | O_CLOEXEC));
  char chunk[1024], line[kProcLineBytes];
  size_t used = 0;
  for (ssize_t n; most > 0 && (n = read(file.get(), chunk, sizeof chunk)) > 0;)
    for (const char c : std::string_view(chunk, static_cast<size_t>(n))) {
      if (c != '\n') {
        if (used < sizeof line) line[used++] = c;
        continue;
      }
      const std::string_view whole(line, std::exchange(used, 0));
      if (most == 0 || !wanted(whole)) continue;
      (out << "  ").printable(whole, kProcLineBytes) << "\n";
      most--;
    }
}

void put_memory(Text& out) {
  put_lines(out, "/proc/self/status", 24, [](std::string_view line) {
    return line.starts_with("Vm") || line.starts_with("Rss") || line.starts_with("Threads");
  });
  put_lines(out, "/proc/self/limits", 8, [](std::string_view line) {
    for (const std::string_view of :
         {"address space", "data size", "stack size", "locked memory", "open files"})
      if (line.find(of) == strlen("Max ")) return true;
    return false;
  });
}

void put_mappings(Text& out) {
  put_lines(out, "/proc/self/maps", kMappingsMax, [](std::string_view line) {
    const size_t permissions = line.find(' ');
    return permissions < line.size() && line.substr(permissions + 1, 4).find('x') != line.npos;
  });
}

void put_hands(Text& out, const Shared& shared, const InHand* own) {
  size_t shown = 0;
  for (const InHand& hand : shared.hands) {
    const auto flow = hand.flow();
    if (!flow || (shown == kHandsMax && &hand != own)) continue;
    shown++;
    out << "  thread " << &hand - shared.hands << ": flow " << int64_t{flow->slot} << ", generation "
        << int64_t{flow->generation} << ", phase " << int64_t{flow->phase} << ", event "
        << int64_t{flow->event} << (&hand == own ? " (the thread that crashed)\n" : "\n");
  }
}

void put_descriptions(Text& out, const Options& options, const InHand* own) {
  size_t shown = 0;
  for (const InHand& hand : options.shared->hands) {
    const auto flow = hand.flow();
    if (!flow || (own && &hand != own)) continue;
    if (shown++ == kDescribedMax) return;
    char text[kDescriptionBytesMax] = "";
    options.describe(*flow, text, sizeof text);
    out << "  thread " << &hand - options.shared->hands << ": ";
    out.printable({text, strnlen(text, sizeof text)}, 2 * sizeof text) << "\n";
  }
}

void put_events(Text& out, std::span<const std::byte> log_ring) {
  const LogTail tail(log_ring);
  uint64_t positions[kEventsMax];
  const size_t count = tail.last(positions);
  LogLine line;
  auto cost = [&](uint64_t position) {  // with time, level and end
    return tail.read(position, line) ? std::min(printable_size(line.text()), kEventBytesMax) + 40 : 0;
  };
  size_t first = count, bytes = 0;
  while (first > 0 && (bytes += cost(positions[first - 1])) <= kEventsBytesMax) first--;
  for (const uint64_t position : std::span(positions).subspan(first, count - first)) {
    if (!tail.read(position, line)) continue;
    constexpr std::string_view kLevels[] = {"debug", "info ", "warn ", "error"};  // log::Level
    (out << "  ").time(line.time_ns / 1'000'000'000) << " ";
    out << kLevels[std::min<size_t>(line.level, std::size(kLevels) - 1)] << " ";
    out.printable(line.text(), kEventBytesMax) << "\n";
  }
}

std::string_view name_of(int signal_number) {
  switch (signal_number) {
    case SIGSEGV:
      return "SIGSEGV";
    case SIGBUS:
      return "SIGBUS";
    case SIGILL:
      return "SIGILL";
    case SIGFPE:
      return "SIGFPE";
    case SIGABRT:
      return "SIGABRT";
    case SIGSYS:
      return "SIGSYS";
    case SIGTRAP:
      return "SIGTRAP";
  }
  return "signal";
}

}  // namespace

Shared& Shared::take_over(std::span<std::byte> memory) {
  PENSTOCK_ASSERT(memory.size() >= sizeof(Shared) && reinterpret_cast<uintptr_t>(memory.data()) % 8 == 0);
  auto* shared = reinterpret_cast<Shared*>(memory.data());
  if (shared->layout != kSharedLayout) std::fill_n(memory.data(), sizeof(Shared), std::byte{});
  shared->layout = kSharedLayout;
  return *shared;
}

int open_report(const Options& options, pid_t process, int64_t unix_s) {
  signal(SIGXFSZ, SIG_IGN);
  const FileName name = file_name(unix_s, process);
  return openat(options.directory, name.text, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0640);
}

void put_cause(Text& out, const siginfo_t& info) {
  out << name_of(info.si_signo) << ", si_code " << info.si_code;
  if (info.si_code <= 0) {
    out << ", sent by process " << info.si_pid << " of user " << info.si_uid;
  } else if (info.si_signo == SIGSYS) {
    (out << ", system call " << info.si_syscall << " at ")
        .hex(reinterpret_cast<uintptr_t>(info.si_call_addr));
  } else {
    (out << ", address ").hex(reinterpret_cast<uintptr_t>(info.si_addr));
  }
}

void put_report(Text& out, const Options& options, int64_t unix_s, const Cause& cause, const Dying* dying) {
  (out << "penstockd crash report\nversion: " PENSTOCK_VERSION "\nbuild: " << build_id() << "\ntime: ")
      .time(unix_s);
  out << "\nprocess: " << cause.process << "\nwritten by: ";
  if (dying) {
    char name[16] = "";
    prctl(PR_GET_NAME, name);
    out << "itself\ncause: ";
    put_cause(out, dying->info);
    (out << "\nthread: ").printable({name, strnlen(name, sizeof name)}, 4 * sizeof name);
    out << " (" << gettid() << ")\nregisters:\n";
    put_registers(out, dying->context);
  } else {
    (out << "process " << getpid() << "\ncause: ").printable(cause.text, kEventBytesMax) << "\n";
  }
  out << "in hand:\n";
  put_hands(out, *options.shared, dying ? dying->own : nullptr);
  out.flush();
  if (dying) {
    out << "memory:\n";
    put_memory(out);
    out << "executable mappings:\n";
    put_mappings(out);
    out.flush();
  }
  out << "last events:\n";
  put_events(out, options.log_ring);
  out.flush();
  if (dying) {
    out << "backtrace:\n";
    out.flush();
    put_backtrace(out, dying->context);
    out.flush();
  }
  if (options.describe) {
    out << "in hand, in words:\n";
    out.flush();
    put_descriptions(out, options, dying ? dying->own : nullptr);
  }
  out << "end of report\n";
  out.flush();
}

Result<std::string> write_report(const Options& options, const Cause& cause) {
  Shared& shared = *options.shared;
  if (shared.reported == cause.process) return std::string(file_name(shared.reported_s, cause.process).text);
  const int64_t now_s = time(nullptr);
  const Fd file(open_report(options, cause.process, now_s));
  if (!file.valid()) return Error{strerror(errno)};
  Text out(file.get(), kReportBytesMax);
  put_report(out, options, now_s, cause, nullptr);
  if (out.error()) return Error{strerror(out.error())};
  shared.reported_s = now_s;
  shared.reported = cause.process;
  return std::string(file_name(now_s, cause.process).text);
}

}  // namespace penstock::crash
