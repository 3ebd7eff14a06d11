// SPDX-License-Identifier: Apache-2.0
// A daemon for the keeper's tests: its worker does what it is told, and relays. Built in two versions.
//   keeper_scene_N [--kept FD | --trial FD] STARTS [NAME=NUMBER]...
// STARTS says how the workers start, in their order; the last word goes for all that follow:
//   ready, hang, exitN, signalN (kills itself with N)
// NAME=NUMBER is a member of keeper::Timing. What the file is called decides how it behaves as a new program:
// see main(). Commands come as lines on descriptor 99, events go to stdout.
#include <fcntl.h>
#include <libgen.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "keeper/keeper.h"
#include "keeper/scene.h"

namespace {

struct Allocations {
  std::atomic<pid_t> of;
  std::atomic<uint64_t> count;
};
Allocations* allocations = nullptr;

}  // namespace

#ifdef SCENE_COUNTS_ALLOCATIONS
extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* malloc(size_t n) noexcept {
  if (allocations && getpid() == allocations->of) allocations->count++;
  return __libc_malloc(n);
}
void* calloc(size_t n, size_t each) noexcept {
  if (allocations && getpid() == allocations->of) allocations->count++;
  return __libc_calloc(n, each);
}
void* realloc(void* p, size_t n) noexcept {
  if (allocations && getpid() == allocations->of) allocations->count++;
  return __libc_realloc(p, n);
}
}
#endif

namespace penstock::keeper {
namespace {

using namespace test;

volatile sig_atomic_t signalled[65];

struct Relay {
  int from, to;
  // False: nothing moved.
  bool move() const {
    return splice(from, nullptr, to, nullptr, 65536, SPLICE_F_NONBLOCK | SPLICE_F_MOVE) > 0;
  }
};
constexpr Relay kRelays[] = {{kPipeIn, kPipeOut}, {kBetweenOut, kTcpOut}, {kTcpIn, kBetweenIn}};

// A sanitizer would make an exit code of it.
void die_of(int signal) {
  ::signal(signal, SIG_DFL);
  raise(signal);
}

std::string next_command() {
  std::string line;
  for (char c; read(kCommands, &c, 1) == 1 && c != '\n';) line += c;
  return line;
}

class SceneWorker {
 public:
  explicit SceneWorker(State& state) : state_(state) {}

  int run(const std::string& how) {
    const auto start = static_cast<unsigned long long>(state_.starts);
    dprintf(STDOUT_FILENO, "worker %llu ends_wanted %u\n", start, state_.ends_wanted.load());
    if (start == 1) dprintf(STDOUT_FILENO, "allocations before %d\n", allocations->count.exchange(0) > 0);
    if (how.starts_with("exit")) return atoi(how.c_str() + 4);
    if (how.starts_with("signal")) die_of(atoi(how.c_str() + 6));
    if (how == "hang")
      for (;;) pause();
    for (int signal : {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2})
      ::signal(signal, [](int number) { signalled[number] = 1; });
    say_ready(state_);
    dprintf(STDOUT_FILENO, "ready %llu version %d\n", start, SCENE_VERSION);
    while (!over_) turn();
    return code_;
  }

 private:
  void end(int code) {
    over_ = true;
    code_ = code;
  }

  void turn() {
    bool moved = false;
    for (const Relay& relay : kRelays) moved |= relay.move();
    pollfd watched[] = {{kCommands, POLLIN, 0},
                        {keeper_gone_ ? -1 : hear_of_keepers_end(state_), POLLIN, 0},
                        {kPipeIn, POLLIN, 0},
                        {kTcpIn, POLLIN, 0}};
    const bool relays = fcntl(kPipeIn, F_GETFD) >= 0;
    const timespec timeout{0, moved ? 0 : relays ? 500'000 : 10'000'000};
    sigset_t none;
    sigemptyset(&none);
    const int ready = ppoll(watched, relays && !moved ? 4 : 2, &timeout, &none);
    if (!mute_) beat(state_);
    look_at_signals();
    if (ready <= 0) return;
    if (watched[0].revents & POLLIN) obey(next_command());
    if (watched[1].revents) {
      keeper_gone_ = true;
      dprintf(STDOUT_FILENO, "keeper gone\n");
      end(0);
    }
  }

  void look_at_signals() {
    for (int signal = 1; signal < 65; signal++) {
      if (!signalled[signal]) continue;
      signalled[signal] = 0;
      dprintf(STDOUT_FILENO, "signal %d ends_wanted %u\n", signal, state_.ends_wanted.load());
      if (signal == SIGHUP) {
        say_reloading(state_);
        say_ready(state_);
      }
      if (signal == SIGUSR2 && forges_) dup2(STDIN_FILENO, state_.descriptors[kNewProgram]);
      if (signal == SIGUSR2 && state_.step == UpgradeStep::quiescing && !stubborn_) end(kQuiesced);
      if ((signal == SIGTERM || signal == SIGINT) && !deaf_) {
        if (!drains_ || state_.ends_wanted == 2) end(0);
        if (drains_) dprintf(STDOUT_FILENO, "draining\n");
      }
    }
  }

  void obey(const std::string& line) {
    std::istringstream words(line);
    std::string verb, what;
    uint32_t patience_ms = 0;
    words >> verb >> what >> patience_ms;
    if (verb == "mute") mute_ = true;
    if (verb == "drains") drains_ = true;
    if (verb == "deaf") deaf_ = true;
    if (verb == "forges") forges_ = true;
    if (verb == "stubborn") stubborn_ = true;
    if (verb == "exit") end(std::stoi(what));
    if (verb == "signal") die_of(std::stoi(what));
    if (verb == "close") close(state_.descriptors[static_cast<size_t>(std::stoi(what))]);
    if (verb == "upgrade") dprintf(STDOUT_FILENO, "asked %d\n", ask_upgrade(state_, what, patience_ms));
    if (verb == "allocations")
      dprintf(STDOUT_FILENO, "allocations %llu\n", static_cast<unsigned long long>(allocations->count));
    dprintf(STDOUT_FILENO, "obeyed %s\n", line.c_str());
  }

  State& state_;
  bool over_ = false, mute_ = false, drains_ = false, deaf_ = false, stubborn_ = false, forges_ = false,
       keeper_gone_ = false;
  int code_ = 0;
};

void inherit(const State&, Exec what) {
  if (what == Exec::trial) return;
  for (int fd = kCommands; fd <= kLast; fd++) fcntl(fd, F_SETFD, 0);
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> words;
  std::istringstream in(text);
  for (std::string word; std::getline(in, word, ',');) words.push_back(word);
  return words;
}

}  // namespace
}  // namespace penstock::keeper

int main(int argc, char** argv) {
  using namespace penstock::keeper;
  const rlimit no_core{0, 0};
  setrlimit(RLIMIT_CORE, &no_core);
  const std::string as = basename(argv[0]);
  int at = 1, kept = -1;
  // Version 2 has another layout than version 1, and knows that one too.
  const uint32_t layout = as == "unknown_layout" ? kLayout + 2 : kLayout + SCENE_VERSION - 1;
  if (argc > 2 && !strcmp(argv[1], "--trial")) {
    if (as == "trial_exits") return 1;
    if (as == "trial_crashes") die_of(SIGSEGV);
    if (as == "trial_hangs")
      for (;;) pause();
    if (as == "trial_says_nothing") return 0;
    // One of an unknown layout passes all the same: keep() has to refuse it.
    auto state = map_state(atoi(argv[2]), as == "unknown_layout" ? kLayout : layout);
    if (!state) return 1;
    pass_trial(**state);
    return 0;
  }
  if (argc > 2 && !strcmp(argv[1], "--kept")) {
    kept = atoi(argv[2]);
    at = 3;
  }
  std::vector<std::string> starts = split(argv[at++]);
  Timing timing;
  const std::map<std::string, Timing::ms*> durations = {
      {"steady", &timing.steady},           {"backoff", &timing.backoff},
      {"backoff_max", &timing.backoff_max}, {"tick", &timing.tick},
      {"abort_grace", &timing.abort_grace}, {"end_grace", &timing.end_grace},
      {"quiesce", &timing.quiesce},
  };
  const std::map<std::string, uint32_t*> numbers = {
      {"storm", &timing.storm}, {"stuck_ticks", &timing.stuck_ticks}, {"start_ticks", &timing.start_ticks}};
  for (; at < argc; at++) {
    const std::string word = argv[at], name = word.substr(0, word.find('='));
    const int number = std::stoi(word.substr(word.find('=') + 1));
    if (auto d = durations.find(name); d != durations.end())
      *d->second = Timing::ms(number);
    else
      *numbers.at(name) = static_cast<uint32_t>(number);
  }
  if (as == "start_crashes") starts = {"signal11"};
  if (as == "start_exits") starts = {"exit1"};
  if (as == "start_hangs") starts = {"hang"};
  allocations = static_cast<Allocations*>(
      mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  allocations->of = getpid();
  const auto worker = [&starts](State& state) {
    const size_t start = std::min<size_t>(state.starts, starts.size());
    return SceneWorker(state).run(starts[start - 1]);
  };
  const auto clean_up = [](const State& state) {
    dprintf(STDOUT_FILENO, "cleaned up %s\n", std::string(name(state.phase.load())).c_str());
  };
  return keep(worker, clean_up, timing,
              {.arguments = argv + 1, .kept = kept, .inherit = inherit, .layout = layout});
}
