// SPDX-License-Identifier: Apache-2.0
// Children that die in each way, and what they leave.
#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <latch>
#include <random>
#include <regex>
#include <thread>
#include <vector>

#include "base/assert.h"
#include "base/fd.h"
#include "base/log_ring.h"
#include "crash/backtrace.h"
#include "crash/directory.h"
#include "crash/signals.h"

namespace penstock::crash {
namespace {

constexpr size_t kRingBytes = 1 << 20;

struct Memory {  // what outlives the children
  Shared shared;
  alignas(4096) std::byte ring[kRingBytes];
};

std::string contents(int directory, const std::string& name) {
  const Fd file(openat(directory, name.c_str(), O_RDONLY));
  std::string text;
  char chunk[4096];
  for (ssize_t n; (n = read(file.get(), chunk, sizeof chunk)) > 0;)
    text.append(chunk, static_cast<size_t>(n));
  return text;
}

std::string output_of(const std::string& command) {
  FILE* pipe = popen(command.c_str(), "r");
  std::string text;
  char chunk[4096];
  for (size_t n; pipe && (n = fread(chunk, 1, sizeof chunk, pipe)) > 0;) text.append(chunk, n);
  if (pipe) pclose(pipe);
  return text;
}

// How a child ended.
struct Death {
  int signal_number = 0;  // 0: it lives, or has exited
  pid_t process = 0;
  std::string said;  // on stderr
};

class Crash : public testing::Test {
 protected:
  Crash() {
    char path[] = "/tmp/penstock-crash.XXXXXX";
    path_ = mkdtemp(path);
    directory_.reset(open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    void* at = mmap(nullptr, sizeof(Memory), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    memory_ = static_cast<Memory*>(at);
    options_.directory = directory_.get();
    options_.shared = &Shared::take_over({reinterpret_cast<std::byte*>(&memory_->shared), sizeof(Shared)});
    options_.log_ring = memory_->ring;
    options_.describe = [](const InHand::Flow& flow, char* out, size_t) {
      strcpy(out, flow.phase == 7 ? "the flow is open" : "a flow");
    };
  }
  ~Crash() override {
    munmap(memory_, sizeof(Memory));
    output_of("rm -rf " + path_);
  }

  // What is in the directory, sorted.
  std::vector<std::string> files() const {
    std::vector<std::string> names;
    DIR* listing = opendir(path_.c_str());
    while (const dirent* entry = readdir(listing))
      if (entry->d_name[0] != '.') names.emplace_back(entry->d_name);
    closedir(listing);
    std::sort(names.begin(), names.end());
    return names;
  }
  // The one report that is there.
  std::string report() const {
    const auto names = files();
    EXPECT_EQ(names.size(), 1u);
    if (names.size() != 1) return {};
    EXPECT_TRUE(is_file_name(names[0])) << names[0];
    std::string text = contents(directory_.get(), names[0]);
    EXPECT_LE(text.size(), kReportBytesMax);
    return text;
  }

  template <typename Life>
  Death die(Life life) {
    const Fd said(memfd_create("stderr", MFD_CLOEXEC));
    Death death;
    death.process = fork();
    if (death.process == 0) {
      dup2(said.get(), STDERR_FILENO);
      const rlimit no_core{0, 0};
      setrlimit(RLIMIT_CORE, &no_core);
      install(options_);
      if (!prepare_thread(&memory_->shared.hands[3])) _exit(1);
      life();
      _exit(0);
    }
    int status = 0;
    EXPECT_EQ(waitpid(death.process, &status, 0), death.process);
    if (WIFSIGNALED(status)) death.signal_number = WTERMSIG(status);
    death.said.resize(4096);
    const ssize_t n = pread(said.get(), death.said.data(), death.said.size(), 0);
    death.said.resize(static_cast<size_t>(std::max<ssize_t>(n, 0)));
    return death;
  }

  std::string path_;
  Fd directory_;
  Memory* memory_;
  Options options_;
};

class Handled : public Crash {
  void SetUp() override {
    if (!kHandlesSignals) GTEST_SKIP() << "the sanitizer's own handlers report";
  }
};

std::string line_of(const std::string& report, const std::string& key) {
  std::smatch found;
  return std::regex_search(report, found, std::regex("(?:^|\n)" + key + ": ([^\n]*)\n")) ? found[1].str()
                                                                                         : "";
}

// The functions of the backtrace, as addr2line names them.
std::string functions_of(const std::string& report) {
  std::string offsets;
  const size_t begin = report.find("\nbacktrace:\n");
  if (begin == report.npos) return "no backtrace";
  const std::string frames = report.substr(begin + strlen("\nbacktrace:\n"));
  const std::regex frame(R"( +\d+ unit_tests\+(0x[0-9a-f]+))");
  for (std::sregex_iterator at(frames.begin(), frames.end(), frame), end; at != end; ++at)
    offsets += " " + (*at)[1].str();
  return output_of("addr2line -Cfe /proc/" + std::to_string(getpid()) + "/exe" + offsets);
}

using testing::AssertionFailure;
using testing::AssertionResult;
using testing::AssertionSuccess;

AssertionResult has(const std::string& text, std::string_view what) {
  if (text.find(what) != text.npos) return AssertionSuccess();
  return AssertionFailure() << "no \"" << what << "\" in\n" << text;
}
AssertionResult is_whole(const std::string& report) {
  if (report.ends_with("\nend of report\n")) return AssertionSuccess();
  return AssertionFailure() << "not whole: " << report.size() << " bytes, at the end "
                            << report.substr(report.size() - std::min<size_t>(report.size(), 200));
}
bool is_printable(const std::string& text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c == '\n' || (c >= 0x20 && c < 0x7f); });
}

volatile int g_never = 0;

[[gnu::noipa]] int read_null(const int* at) {
  return at[2] + g_never;
}
[[gnu::noipa]] int on_hello(const int* at) {
  return read_null(at) + 1;
}
[[gnu::noipa]] int recurse_for_ever(int depth) {
  volatile char frame[256];
  frame[0] = static_cast<char>(depth);
  return depth == -1 ? 0 : recurse_for_ever(depth + 1) + frame[0];
}
[[gnu::noipa]] void assert_what_is_not() {
  PENSTOCK_ASSERT(g_never == 1);
}

TEST_F(Handled, NullDereference) {
  const Death death = die([&] {
    LogRing ring(memory_->ring);
    ring.write(1, 1'000'000'000'000'000'000, "listening on \x1b[31m");
    memory_->shared.hands[3].take({17, 2, 7, 5});
    memory_->shared.hands[5].take({18, 1, 6, 4});
    prctl(PR_SET_NAME, "worker-3");
    on_hello(nullptr);
  });
  EXPECT_EQ(death.signal_number, SIGSEGV);
  const std::string text = report();
  EXPECT_EQ(line_of(text, "version"), PENSTOCK_VERSION);
  EXPECT_TRUE(has(output_of("readelf -n /proc/" + std::to_string(getpid()) + "/exe"),
                  "Build ID: " + line_of(text, "build") + "\n"));
  EXPECT_TRUE(std::regex_match(line_of(text, "time"), std::regex(R"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)")));
  EXPECT_EQ(line_of(text, "process"), std::to_string(death.process));
  EXPECT_EQ(line_of(text, "cause"), "SIGSEGV, si_code 1, address 0x8");
  EXPECT_EQ(line_of(text, "thread"), fmt::format("worker-3 ({})", death.process));
  EXPECT_TRUE(std::regex_search(
      text, std::regex("\n  rip 0x[0-9a-f]{16}\n  rsp 0x[0-9a-f]{16}\n  rbp 0x[0-9a-f]{16}\n")));
  EXPECT_TRUE(has(text,
                  "\n  thread 3: flow 17, generation 2, phase 7, event 5 (the thread that crashed)\n"
                  "  thread 5: flow 18, generation 1, phase 6, event 4\n"));
  EXPECT_TRUE(has(text, "\nin hand, in words:\n  thread 3: the flow is open\nend of report\n"));
  EXPECT_TRUE(has(text, "\n  VmRSS:"));
  EXPECT_TRUE(has(text, "\n  Max locked memory "));
  EXPECT_TRUE(std::regex_search(text, std::regex("\n  [0-9a-f]+-[0-9a-f]+ r-xp [^\n]*/unit_tests\n")));
  EXPECT_EQ(text.find(" rw-p "), text.npos);
  EXPECT_TRUE(has(text, "\nlast events:\n  2001-09-09T01:46:40Z info  listening on \\x1b[31m\n"));
  const std::string functions = functions_of(text);
  EXPECT_TRUE(std::regex_search(
      functions, std::regex(R"(^[^\n]*read_null[^\n]*\n[^\n]*crash_test.cc:\d+\n[^\n]*on_hello)")))
      << functions << text;
  struct stat file {};
  fstatat(directory_.get(), files()[0].c_str(), &file, 0);
  EXPECT_EQ(file.st_mode & 07777, 0640u);
  EXPECT_TRUE(std::regex_match(
      death.said, std::regex("[^ ]+ error process " + std::to_string(death.process) +
                             " crashed: SIGSEGV, si_code 1, address 0x8; report " + files()[0] + "\n")))
      << death.said;
}

TEST_F(Handled, ACallOfNothing) {
  const Death death = die([] {
    void (*volatile nothing)() = nullptr;
    nothing();
  });
  EXPECT_EQ(death.signal_number, SIGSEGV);
  const std::string text = report();
  EXPECT_TRUE(is_whole(text));
  EXPECT_TRUE(has(text, "\nbacktrace:\n  0 0x0\n  1 ")) << "who called it is unknown to the unwinder";
}

TEST_F(Handled, TheStackIsFull) {
  EXPECT_EQ(die([] { recurse_for_ever(0); }).signal_number, SIGSEGV);
  const std::string text = report();
  EXPECT_TRUE(is_whole(text));
  EXPECT_TRUE(std::regex_search(functions_of(text), std::regex("^[^\n]*recurse_for_ever")));
  EXPECT_TRUE(has(text, "\n  63 unit_tests+"));
  EXPECT_EQ(text.find("\n  64 "), text.npos);
}

TEST_F(Handled, TheStackOfAThreadIsFull) {
  const Death death = die([&] {
    std::thread([&] {
      prctl(PR_SET_NAME, "worker-9");
      if (!prepare_thread(&memory_->shared.hands[9])) _exit(1);
      memory_->shared.hands[9].take({1, 2, 3, 4});
      recurse_for_ever(0);
    }).join();
  });
  EXPECT_EQ(death.signal_number, SIGSEGV);
  const std::string text = report();
  EXPECT_TRUE(is_whole(text));
  EXPECT_TRUE(line_of(text, "thread").starts_with("worker-9 ("));
  EXPECT_TRUE(has(text, "thread 9: flow 1, generation 2, phase 3, event 4 (the thread that crashed)"));
}

TEST_F(Handled, AThreadThatBlocksAllSignals) {
  EXPECT_EQ(die([] {
              std::thread([] {
                sigset_t all;
                sigfillset(&all);
                pthread_sigmask(SIG_SETMASK, &all, nullptr);
                if (!prepare_thread(nullptr)) _exit(1);
                on_hello(nullptr);
              }).join();
            }).signal_number,
            SIGSEGV);
  EXPECT_TRUE(is_whole(report()));
}

TEST_F(Handled, AThreadThatWasNotPrepared) {
  EXPECT_EQ(die([] { std::thread([] { on_hello(nullptr); }).join(); }).signal_number, SIGSEGV);
  EXPECT_TRUE(is_whole(report()));
}

TEST_F(Handled, AThreadMayEndAndAnotherBegin) {
  EXPECT_EQ(die([&] {
              for (int i = 0; i < 100; i++)
                std::thread([&] {
                  if (!prepare_thread(nullptr)) _exit(1);
                }).join();
              recurse_for_ever(0);
            }).signal_number,
            SIGSEGV);
  EXPECT_TRUE(is_whole(report()));
}

TEST_F(Handled, AnAssertion) {
  const Death death = die([] { assert_what_is_not(); });
  EXPECT_EQ(death.signal_number, SIGABRT);
  EXPECT_TRUE(has(death.said, "assertion failed: g_never == 1\n"));
  const std::string text = report();
  EXPECT_TRUE(
      has(line_of(text, "cause"), fmt::format("SIGABRT, si_code -6, sent by process {} ", death.process)));
  EXPECT_TRUE(has(functions_of(text), "assert_what_is_not"));
}

TEST_F(Handled, EverySignal) {
  for (const int s : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGSYS, SIGTRAP}) {
    EXPECT_EQ(die([&] { raise(s); }).signal_number, s);
    const std::string text = report();
    EXPECT_TRUE(is_whole(text));
    EXPECT_TRUE(line_of(text, "cause").starts_with("SIG" + std::string(sigabbrev_np(s)) + ", ")) << text;
    unlinkat(directory_.get(), files()[0].c_str(), 0);
  }
  EXPECT_EQ(die([] { raise(SIGTERM); }).signal_number, SIGTERM);
  EXPECT_TRUE(files().empty());
}

TEST_F(Handled, SeveralThreadsAtOnceLeaveOneReport) {
  for (int round = 0; round < 20; round++) {
    EXPECT_EQ(die([] {
                constexpr int kThreads = 8;
                std::latch all(kThreads);
                std::vector<std::thread> threads;
                for (int i = 0; i < kThreads; i++)
                  threads.emplace_back([&] {
                    all.arrive_and_wait();
                    on_hello(nullptr);
                  });
                for (auto& t : threads) t.join();
              }).signal_number,
              SIGSEGV);
    EXPECT_TRUE(is_whole(report()));
    unlinkat(directory_.get(), files()[0].c_str(), 0);
  }
}

TEST_F(Handled, ACrashWithinTheReportEndsItWithTheFirstSignal) {
  options_.describe = [](const InHand::Flow&, char*, size_t) { on_hello(nullptr); };
  const Death death = die([&] {
    memory_->shared.hands[3].take({17, 2, 7, 5});
    abort();
  });
  EXPECT_EQ(death.signal_number, SIGABRT);
  const std::string text = report();
  EXPECT_TRUE(has(text, "\n  thread 3: flow 17,"));
  EXPECT_TRUE(has(text, "\nbacktrace:\n  0 "));
  EXPECT_TRUE(
      text.ends_with("\nin hand, in words:\n\nnot complete: the report crashed in turn: SIGSEGV, "
                     "si_code 1, address 0x8\n"))
      << text;
}

TEST_F(Handled, AnAbortWithinTheReportEndsItToo) {
  options_.describe = [](const InHand::Flow&, char*, size_t) { abort(); };
  EXPECT_EQ(die([&] {
              memory_->shared.hands[3].take({17, 2, 7, 5});
              on_hello(nullptr);
            }).signal_number,
            SIGSEGV);
  EXPECT_TRUE(has(report(), "\nnot complete: the report crashed in turn: SIGABRT, "));
}

TEST_F(Handled, AReportThatStandsStillIsEnded) {
  options_.describe = [](const InHand::Flow&, char*, size_t) {
    for (;;) pause();
  };
  EXPECT_EQ(die([&] {
              sigset_t all;
              sigfillset(&all);
              sigdelset(&all, SIGSEGV);
              pthread_sigmask(SIG_SETMASK, &all, nullptr);
              memory_->shared.hands[3].take({17, 2, 7, 5});
              on_hello(nullptr);
            }).signal_number,
            SIGSEGV);
  EXPECT_TRUE(report().ends_with("\nin hand, in words:\n\nnot complete: it took longer than 2 s\n"));
}

TEST_F(Handled, AFullDiskCostsTheRestOfTheReport) {
  const Death death = die([] {
    const rlimit limit{1000, 1000};
    setrlimit(RLIMIT_FSIZE, &limit);
    on_hello(nullptr);
  });
  EXPECT_EQ(death.signal_number, SIGSEGV);
  EXPECT_EQ(report().size(), 1000u);
  EXPECT_TRUE(has(death.said, "; not all of the report: File too large\n"));
}

TEST_F(Handled, ADirectoryThatCannotBeWrittenCostsTheReport) {
  rmdir(path_.c_str());
  const Death death = die([] { on_hello(nullptr); });
  EXPECT_EQ(death.signal_number, SIGSEGV);
  EXPECT_TRUE(has(death.said, "; no report: No such file or directory\n"));
}

TEST_F(Handled, AsAnotherUser) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  constexpr uid_t kNobody = 65534;
  const auto life = [] {
    if (setresuid(kNobody, kNobody, kNobody)) _exit(1);
    on_hello(nullptr);
  };
  EXPECT_TRUE(has(die(life).said, "; no report: Permission denied\n"));
  ASSERT_EQ(fchown(directory_.get(), kNobody, kNobody), 0);
  EXPECT_EQ(die(life).signal_number, SIGSEGV);
  EXPECT_TRUE(is_whole(report()));
}

TEST_F(Handled, TheNextWorkerWritesNoSecondReport) {
  const Death death = die([] { on_hello(nullptr); });
  const auto name = write_report(options_, {death.process, "SIGSEGV"});
  ASSERT_TRUE(name.ok());
  EXPECT_EQ(name.value(), files()[0]);
  EXPECT_EQ(line_of(report(), "written by"), "itself");
}

TEST_F(Crash, TheNextWorkerReportsADeathThatLeftNothing) {
  const Death death = die([&] {
    LogRing ring(memory_->ring);
    ring.write(2, 0, "memory is short");
    memory_->shared.hands[3].take({17, 2, 7, 5});
    kill(getpid(), SIGKILL);
  });
  EXPECT_EQ(death.signal_number, SIGKILL);
  EXPECT_TRUE(files().empty());
  const auto name = write_report(options_, {death.process, "SIGKILL\x1b"});
  ASSERT_TRUE(name.ok()) << name.error().message;
  const std::string text = report();
  EXPECT_TRUE(is_whole(text));
  EXPECT_EQ(line_of(text, "cause"), "SIGKILL\\x1b");
  EXPECT_EQ(line_of(text, "process"), std::to_string(death.process));
  EXPECT_EQ(line_of(text, "written by"), "process " + std::to_string(getpid()));
  EXPECT_TRUE(has(text, "in hand:\n  thread 3: flow 17, generation 2, phase 7, event 5\n"));
  EXPECT_TRUE(has(text, "last events:\n  1970-01-01T00:00:00Z warn  memory is short\n"));
  EXPECT_TRUE(has(text, "in hand, in words:\n  thread 3: the flow is open\n"));
  const auto again = write_report(options_, {death.process, "SIGKILL"});
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again.value(), name.value());
  EXPECT_EQ(files().size(), 1u);
}

TEST_F(Crash, TheNextWorkerSaysWhyItCouldNotReport) {
  rmdir(path_.c_str());
  const auto name = write_report(options_, {1, "SIGKILL"});
  ASSERT_FALSE(name.ok());
  EXPECT_EQ(name.error().message, "No such file or directory");
}

TEST_F(Crash, ReportsOfGarbageAreBoundedAndPrintable) {
  options_.describe = [](const InHand::Flow& flow, char* out, size_t bytes) {
    memset(out, static_cast<int>(flow.slot), bytes);  // and no end
  };
  std::mt19937_64 random(1);
  for (int round = 0; round < 200; round++) {
    memset(static_cast<void*>(memory_), 0, sizeof(Memory));
    {
      LogRing ring(memory_->ring);
      for (int i = 0; i < 200; i++)
        ring.write(i % 5, static_cast<int64_t>(random()), std::string(random() % 5000, '\xff'));
    }
    auto* words = reinterpret_cast<uint64_t*>(memory_);
    constexpr size_t kWords = sizeof(Memory) / sizeof(uint64_t);
    if (round % 2)
      for (size_t i = 0; i < kWords; i++) words[i] = random();
    else
      for (uint64_t damage = random() % 1000; damage > 0; damage--) words[random() % kWords] = random();
    for (size_t i = 0; i < sizeof(Shared) / sizeof(uint64_t); i++) words[i] = random();
    if (round % 4 == 0)  // the largest ones
      for (InHand& hand : memory_->shared.hands) hand.take({UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX});
    const auto name = write_report(options_, {INT32_MAX, "SIGKILL"});
    ASSERT_TRUE(name.ok()) << name.error().message;
    const std::string text = report();
    ASSERT_TRUE(is_printable(text));
    ASSERT_TRUE(is_whole(text));
    unlinkat(directory_.get(), name.value().c_str(), 0);
  }
}

TEST_F(Handled, TheLargestReportIsWhole) {
  options_.describe = [](const InHand::Flow&, char* out, size_t bytes) { memset(out, 0xff, bytes); };
  const Death death = die([&] {
    LogRing ring(memory_->ring);
    for (int i = 0; i < 200; i++) ring.write(3, 0, std::string(4000, '\xff'));
    for (InHand& hand : memory_->shared.hands) hand.take({UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX});
    const long page = sysconf(_SC_PAGESIZE);
    for (int i = 0; i < 200; i++)  // apart, so that each is a line of its own
      mmap(reinterpret_cast<void*>(0x10000000000 + i * 2 * page), 1, PROT_READ | PROT_EXEC,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (!prepare_thread(nullptr)) _exit(1);
    recurse_for_ever(0);
  });
  const std::string text = report();
  EXPECT_TRUE(is_whole(text));
  EXPECT_TRUE(is_printable(text));
  EXPECT_GT(text.size(), kReportBytesMax / 2);
  RecordProperty("bytes", std::to_string(text.size()));
}

TEST_F(Crash, OnlyTheNewestReportsAreKeptAndNobodyElsesFileIsRemoved) {
  std::vector<std::string> foreign = {"crash-20250101T000000Z-1.txt.bak", "crash-20251301T000000Z-1.txt",
                                      "crash-old.txt", "penstock.toml"};
  auto create = [&](const std::string& name) {
    Fd(openat(directory_.get(), name.c_str(), O_WRONLY | O_CREAT, 0600));
  };
  for (const auto& name : foreign) create(name);
  foreign.push_back("crash-20240101T000000Z-1.txt");
  mkdirat(directory_.get(), foreign.back().c_str(), 0700);
  foreign.push_back("crash-20240101T000000Z-2.txt");
  ASSERT_EQ(symlinkat("penstock.toml", directory_.get(), foreign.back().c_str()), 0);
  for (pid_t process = 1; process <= 300; process++) create(file_name(1'700'000'000 + process, process).text);
  keep_newest(directory_.get(), kReportsKept);
  std::vector<std::string> expected = foreign;
  for (pid_t process = 285; process <= 300; process++)
    expected.push_back(file_name(1'700'000'000 + process, process).text);
  std::sort(expected.begin(), expected.end());
  EXPECT_EQ(files(), expected);
  keep_newest(directory_.get(), kReportsKept);
  EXPECT_EQ(files(), expected);
  keep_newest(-1, kReportsKept);
}

TEST(CrashNames, AreStrict) {
  EXPECT_STREQ(file_name(0, 1).text, "crash-19700101T000000Z-1.txt");
  EXPECT_STREQ(file_name(1763789467, INT32_MAX).text, "crash-20251122T053107Z-2147483647.txt");
  EXPECT_TRUE(is_file_name("crash-20251122T053107Z-2147483647.txt"));
  for (const char* name : {"",
                           "crash-",
                           "crash-.txt",
                           "crash-20251122T053107Z-.txt",
                           "crash-20251122T053107Z-2147483648.txt",
                           "crash-20251122T053107Z-0.txt",
                           "crash-20251122T053107Z-01.txt",
                           "crash-20251122T053107Z--1.txt",
                           "crash-20251122T053107Z-+1.txt",
                           "crash-20251122T053107Z-1 .txt",
                           "crash-20251122T053107Z-1.txt~",
                           "crash-20251122t053107Z-1.txt",
                           "crash-20251122T053107z-1.txt",
                           "crash-20251132T053107Z-1.txt",
                           "crash-20250022T053107Z-1.txt",
                           "crash-20251122T243107Z-1.txt",
                           "crash-20251122T056007Z-1.txt",
                           "crash-20251122T053160Z-1.txt",
                           "crash--0251122T053107Z-1.txt",
                           "crash-2025112xT053107Z-1.txt",
                           "Crash-20251122T053107Z-1.txt"})
    EXPECT_FALSE(is_file_name(name)) << name;
}

TEST(CrashNames, DatesAreThoseOfGmtime) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 100'000; i++) {
    const auto t = static_cast<int64_t>(random() % 253'402'300'800);  // the year 9999
    tm expected{};
    gmtime_r(&t, &expected);
    const Date d = date_of(t);
    ASSERT_EQ(fmt::format("{}-{}-{} {}:{}:{}", d.year, d.month, d.day, d.hour, d.minute, d.second),
              fmt::format("{}-{}-{} {}:{}:{}", expected.tm_year + 1900, expected.tm_mon + 1, expected.tm_mday,
                          expected.tm_hour, expected.tm_min, expected.tm_sec));
    ASSERT_TRUE(is_file_name(file_name(t, 1).text));
  }
}

}  // namespace
}  // namespace penstock::crash
