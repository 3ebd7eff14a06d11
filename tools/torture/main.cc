// SPDX-License-Identifier: Apache-2.0
// penstock-torture: see README.md.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/resource.h>

#include <csignal>
#include <memory>
#include <optional>
#include <system_error>
#include <thread>
#include <vector>

#include "audit.h"
#include "base/fd.h"
#include "log_reader.h"
#include "loop.h"
#include "own_daemon.h"

namespace {

using namespace penstock::torture;
using penstock::Fd;

constexpr int64_t kProgressEveryMs = 2000;
constexpr uint64_t kFdsToSpare = 100;

// Each life is two sockets. Returns how many lives there is room for.
uint64_t raise_fd_limit() {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  return limit.rlim_cur / 2 - kFdsToSpare;
}

sigset_t block_signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  return set;
}

// False if told twice to stop.
bool attend(Registry& registry, const Tally& tally, const sigset_t& signals) {
  Progress progress(tally);
  int64_t next_ms = now_ms() + kProgressEveryMs;
  bool told = false;
  while (!registry.finished()) {
    constexpr timespec kWait{0, 20'000'000};
    if (sigtimedwait(&signals, nullptr, &kWait) > 0) {
      if (told) return false;
      told = true;
      registry.stop_beginning();
    }
    if (now_ms() < next_ms) continue;
    next_ms += kProgressEveryMs;
    progress.print(registry.active());
  }
  return true;
}

Fd open_log(const std::string& path) {
  Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) throw std::system_error(errno, std::generic_category(), path);
  lseek(fd.get(), 0, SEEK_END);
  return fd;
}

// 0: all is right, 1: not.
int run(Options& options, const sigset_t& signals) {
  std::optional<OwnDaemon> daemon;
  Tally tally;
  Ledger ledger(options, tally);
  std::optional<LogReader> log;
  if (!options.penstockd.empty()) {
    daemon.emplace(options);
    log.emplace(daemon->take_log(), ledger);
  } else if (!options.log.empty()) {
    log.emplace(open_log(options.log), ledger);
  }
  std::optional<Audit> audit;
  if (!options.admin.empty()) audit.emplace(options.admin);
  Ledger* const read = log ? &ledger : nullptr;

  const int64_t began_ms = now_ms();
  Registry registry(options, tally, read);
  std::vector<std::unique_ptr<Loop>> loops;
  for (unsigned i = 0; i < options.threads; ++i) {
    const auto role = i == 0 ? Loop::Role::first : Loop::Role::further;
    loops.push_back(std::make_unique<Loop>(options, registry, tally, role));
  }
  fmt::print(stderr, "seed {}\n", options.seed);
  std::vector<std::thread> threads;
  for (const auto& loop : loops) threads.emplace_back([&loop] { loop->run(); });
  const bool ended = attend(registry, tally, signals);
  if (!ended) std::_Exit(1);
  for (std::thread& t : threads) t.join();

  if (!options.redials) settle(tally);
  if (audit) audit->settle(options, tally, read);
  const int code = daemon ? daemon->stop() : 0;
  if (log) log->finish();
  print_summary(options, tally, began_ms, audit ? &audit->summary() : nullptr);
  if (code != 0) fmt::print(stderr, "penstockd ended with {}\n", code);
  return tally.failed() == 0 && code == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  Options options = parse_options(argc, argv);
  const uint64_t room = raise_fd_limit();
  if (options.concurrency > room) {
    fmt::print(stderr, "--concurrency {}: the limit of open files leaves room for {}\n", options.concurrency,
               room);
    return 2;
  }
  const sigset_t signals = block_signals();
  try {
    return run(options, signals);
  } catch (const std::exception& e) {
    fmt::print(stderr, "penstock-torture: {}\n", e.what());
    return 1;
  }
}
