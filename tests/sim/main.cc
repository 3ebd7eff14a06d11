// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "sim/life.h"
#include "sim/scenarios.h"
#include "sim/script.h"

namespace penstock::sim {
namespace {

void on_abort(int) {
  const char* title = g_kernel ? g_kernel->title.c_str() : "sim";
  (void)!write(2, title, strlen(title));
  (void)!write(2, ": died\n", 7);
  _exit(1);
}

void print_adopted(const Summary& s) {
  for (const auto& [phase, n] : s.adopted) fmt::print("  adopted: {} {}\n", flow::text(phase), n);
}

uint64_t seed_of(uint64_t seed, uint64_t life) {
  Random r(seed ^ (life * 0xd1342543de82ef95));
  return r.next();
}

Summary one_life(uint64_t seed, uint64_t number, bool trace) {
  Kernel kernel(seed_of(seed, number));
  kernel.title = fmt::format("penstock-sim --seed {} --life {}", seed, number);
  kernel.tracing = trace;
  const Shape shape = random_shape(kernel.random);
  kernel.weather = shape.weather;
  Life life(kernel, shape);
  return life.live();
}

struct Failing {
  uint64_t nth = UINT64_MAX;   // operation, from 0; none
  uint32_t variant = 0;        // of its errors
  uint64_t dies = UINT64_MAX;  // at this moment: the begin or end of a system call, from 0
};
struct Played {
  uint64_t fallible, moments;
  uint32_t errors;  // of the one that failed
  Summary summary;
};

Played play(const Scenario& scenario, uint64_t seed, const Failing& failing, bool trace) {
  Kernel kernel(seed);
  kernel.title =
      fmt::format("penstock-sim --seed {} --scenario {} --nth {} --variant {} --dies {}", seed, scenario.name,
                  static_cast<int64_t>(failing.nth), failing.variant, static_cast<int64_t>(failing.dies));
  kernel.tracing = trace;
  kernel.fail_nth = failing.nth;
  kernel.fail_variant = failing.variant;
  kernel.die_nth = failing.dies;
  Shape shape = calm_shape();
  scenario.change(&shape);
  kernel.weather = shape.weather;
  Life life(kernel, shape);
  Summary summary = life.live();
  return {kernel.fallible, kernel.moments, kernel.failed_errors, std::move(summary)};
}

// Every operation of every scenario, with every error it may have.
void fail_each(uint64_t seed) {
  uint64_t all = 0;
  for (const Scenario& s : scenarios()) {
    const uint64_t count = play(s, seed, {}, false).fallible;
    uint64_t reached = 0, lives = 0;
    for (uint64_t n = 0; n < count; n++) {
      uint32_t errors = 1;
      for (uint32_t variant = 0; variant < errors; variant++, lives++) {
        errors = play(s, seed, {n, variant}, false).errors;
        reached += variant == 0 && errors > 0;
      }
    }
    fmt::print("{:24} {} of {} operations failed, in {} lives\n", s.name, reached, count, lives);
    fflush(stdout);
    all += lives;
  }
  fmt::print("{} scenarios, {} lives\n", scenarios().size(), all);
}

// The process dies before and after each system call of every scenario.
void die_everywhere(uint64_t seed) {
  Summary all;
  uint64_t lives = 0;
  for (const Scenario& s : scenarios()) {
    const uint64_t moments = play(s, seed, {}, false).moments;
    for (uint64_t n = 0; n < moments; n++)
      all.add(play(s, seed, {.nth = UINT64_MAX, .variant = 0, .dies = n}, false).summary);
    fmt::print("{:24} died at each of {} moments\n", s.name, moments);
    fflush(stdout);
    lives += moments;
  }
  fmt::print("{} scenarios, {} lives, {} deaths\n", scenarios().size(), lives, all.deaths);
  print_adopted(all);
}

int usage() {
  fputs(
      "penstock-sim [--seed N] [--lives N]             random lives\n"
      "penstock-sim [--seed N] --life N                one of them, with a trace\n"
      "penstock-sim [--seed N] --scenario each         every operation of every scenario fails once\n"
      "penstock-sim [--seed N] --scenario deaths       the process dies before and after every system call\n"
      "penstock-sim [--seed N] --scripts N             for differential_test\n"
      "penstock-sim [--seed N] --scenario NAME [--nth N [--variant N]] [--dies N]   one of them, with a "
      "trace\n",
      stderr);
  return 2;
}

int run(int argc, char** argv) {
  uint64_t seed = 1, lives = 1000, scripts = 0;
  std::string only, scenario;
  Failing failing;
  for (int i = 1; i < argc; i++) {
    const std::string option = argv[i];
    if (i + 1 == argc) return usage();
    const char* value = argv[++i];
    if (option == "--seed")
      seed = strtoull(value, nullptr, 10);
    else if (option == "--lives")
      lives = strtoull(value, nullptr, 10);
    else if (option == "--life")
      only = value;
    else if (option == "--scenario")
      scenario = value;
    else if (option == "--scripts")
      scripts = strtoull(value, nullptr, 10);
    else if (option == "--nth")
      failing.nth = strtoull(value, nullptr, 10);
    else if (option == "--dies")
      failing.dies = strtoull(value, nullptr, 10);
    else if (option == "--variant")
      failing.variant = static_cast<uint32_t>(strtoul(value, nullptr, 10));
    else
      return usage();
  }
  for (int s : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE}) signal(s, on_abort);
  if (scripts) {
    print_scripts(seed, scripts);
    return 0;
  }
  if (scenario == "each") {
    fail_each(seed);
    return 0;
  }
  if (scenario == "deaths") {
    die_everywhere(seed);
    return 0;
  }
  if (!scenario.empty()) {
    for (const Scenario& s : scenarios())
      if (s.name == scenario) {
        play(s, seed, failing, true);
        return 0;
      }
    return usage();
  }
  Summary all;
  if (!only.empty()) {
    all.add(one_life(seed, strtoull(only.c_str(), nullptr, 10), true));
    lives = 1;
  } else {
    for (uint64_t n = 0; n < lives; n++) all.add(one_life(seed, n, false));
  }
  fmt::print("seed {}: {} lives, {} flows, {} bytes spliced, {} relayed, {} deaths\n", seed, lives, all.flows,
             all.spliced_bytes, all.relayed_bytes, all.deaths);
  for (const auto& [reason, n] : all.closed) fmt::print("  {} {}\n", flow::text(reason), n);
  for (const auto& [why, n] : all.lane_changes) fmt::print("  lane: {} {}\n", flow::text(why), n);
  print_adopted(all);
  return 0;
}

}  // namespace
}  // namespace penstock::sim

int main(int argc, char** argv) {
  return penstock::sim::run(argc, argv);
}
