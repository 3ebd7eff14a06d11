// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "sim/life.h"

namespace penstock::sim {
namespace {

void on_abort(int) {
  const char* title = g_kernel ? g_kernel->title.c_str() : "sim";
  (void)!write(2, title, strlen(title));
  (void)!write(2, ": died\n", 7);
  _exit(1);
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

int usage() {
  fputs("penstock-sim [--seed N] [--lives N] [--life N]\n", stderr);
  return 2;
}

int run(int argc, char** argv) {
  uint64_t seed = 1, lives = 1000;
  std::string only;
  for (int i = 1; i < argc; i++) {
    const std::string option = argv[i];
    if (i + 1 == argc) return usage();
    const char* value = argv[++i];
    if (option == "--seed") seed = strtoull(value, nullptr, 10);
    else if (option == "--lives") lives = strtoull(value, nullptr, 10);
    else if (option == "--life") only = value;
    else return usage();
  }
  for (int s : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE}) signal(s, on_abort);
  Summary all;
  if (!only.empty()) {
    all.add(one_life(seed, strtoull(only.c_str(), nullptr, 10), true));
    lives = 1;
  } else {
    for (uint64_t n = 0; n < lives; n++) all.add(one_life(seed, n, false));
  }
  fmt::print("seed {}: {} lives, {} flows, {} bytes spliced, {} relayed\n", seed, lives, all.flows, all.spliced_bytes, all.relayed_bytes);
  for (const auto& [reason, n] : all.closed) fmt::print("  {} {}\n", flow::text(reason), n);
  for (const auto& [why, n] : all.lane_changes) fmt::print("  lane: {} {}\n", flow::text(why), n);
  return 0;
}

}  // namespace
}  // namespace penstock::sim

int main(int argc, char** argv) {
  return penstock::sim::run(argc, argv);
}
