// SPDX-License-Identifier: Apache-2.0
#include "daemon/engine.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include "daemon/json.h"
#include "io/twins.h"

namespace penstock::daemon {
namespace {

constexpr const char* kVerdictFile = "/run/penstock/probe";

// This build: another binary at the same place has another size or time.
std::string build() {
  struct stat s {};
  stat("/proc/self/exe", &s);
  return fmt::format("{} {} {}.{}", PENSTOCK_VERSION, s.st_size, s.st_mtim.tv_sec, s.st_mtim.tv_nsec);
}

}  // namespace

EngineChoice choose_engine(config::Engine wanted, bool use_remembered) {
  EngineChoice choice;
  if (wanted == config::Engine::io_uring) {
    choice.reason = "as configured";
    return choice;
  }
  if (use_remembered) {
    if (auto report = sockmap::remembered(kVerdictFile, build())) {
      choice.report = std::move(*report);
      choice.splice = choice.report.sockmap_usable();
      choice.reason = "self-test passed at an earlier start";
      return choice;
    }
  }
  choice.report = sockmap::probe();
  choice.splice = choice.report.sockmap_usable();
  choice.reason = choice.splice ? fmt::format("self-test passed in {} ms", choice.report.elapsed_ms)
                                : fmt::format("self-test failed: {}", choice.report.first_failure);
  sockmap::remember(kVerdictFile, build(), choice.report);
  return choice;
}

int print_probe(bool json) {
  EngineChoice choice = choose_engine(config::Engine::automatic, false);
  auto ring = io::open_io_uring(8);
  sockmap::Capability io_uring{
      "io_uring", ring.ok(), false,
      ring.ok() ? (*ring)->description() : ring.error().message + "; epoll takes its place"};
  choice.report.capabilities.insert(choice.report.capabilities.begin(), io_uring);
  const char* engine = choice.splice ? "sockmap" : "io_uring";
  if (json) {
    Json list = Json::array();
    for (const auto& c : choice.report.capabilities)
      list.push_back({{"name", c.name}, {"ok", c.ok}, {"promise", c.promise}, {"detail", c.detail}});
    Json out = {{"engine", engine},
                {"reason", choice.reason},
                {"elapsed_ms", choice.report.elapsed_ms},
                {"capabilities", list}};
    fmt::print("{}\n", json_line(out));
  } else {
    for (const auto& c : choice.report.capabilities)
      fmt::print("{:<4} {:<14} {}{}\n", c.ok ? "ok" : "NO", c.name, c.detail,
                 !c.ok && c.promise ? " (without it nothing enters the sockmap)" : "");
    fmt::print("engine: {} ({})\n", engine, choice.reason);
  }
  return choice.splice ? 0 : 1;
}

}  // namespace penstock::daemon
