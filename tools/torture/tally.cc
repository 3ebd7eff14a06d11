// SPDX-License-Identifier: Apache-2.0
#include "tally.h"

#include <fmt/format.h>

#include <chrono>
#include <cstdio>

namespace penstock::torture {
namespace {

constexpr double kMega = 1e6;
constexpr uint64_t kToldMax = 50;

}  // namespace

int64_t now_us() {
  using namespace std::chrono;
  return duration_cast<microseconds>(steady_clock::now().time_since_epoch()).count();
}
int64_t now_ms() {
  return now_us() / 1000;
}

uint64_t Tally::failed() const {
  uint64_t sum = 0;
  for (const auto& f : failures) sum += f.load();
  return sum;
}

void raise_to(std::atomic<uint64_t>& most, uint64_t value) {
  uint64_t seen = most.load();
  while (seen < value && !most.compare_exchange_weak(seen, value)) {
  }
}

void tell_line(const Options& o, uint64_t life, std::string_view line) {
  static std::atomic<uint64_t> told = 0;
  if (told.fetch_add(1) < kToldMax)
    fmt::print(stderr, "FAIL life {} seed {}: its line: {}\n", life, o.seed, line);
}

void tell_failure(const Options& o, std::optional<uint64_t> life, Failure failure,
                  const std::string& reason) {
  static std::atomic<uint64_t> told = 0;
  if (told.fetch_add(1) >= kToldMax) return;
  const std::string whose = life ? fmt::format("life {}", *life) : "no life";
  fmt::print(stderr, "FAIL {} seed {}: {}: {}\n", whose, o.seed, name_of(failure), reason);
}

void Progress::print(uint64_t active) {
  const int64_t now = now_ms();
  const double seconds = static_cast<double>(std::max<int64_t>(1, now - at_ms_)) / 1000;
  const uint64_t done = tally_.done, bytes = tally_.bytes_up + tally_.bytes_down;
  fmt::print(stderr, "{} done, {} active, {:.0f} lives/s, {:.1f} MB/s, {} failures\n", done, active,
             static_cast<double>(done - done_) / seconds,
             static_cast<double>(bytes - bytes_) / seconds / kMega, tally_.failed());
  at_ms_ = now;
  done_ = done;
  bytes_ = bytes;
}

void settle(Tally& tally) {
  const uint64_t explained = tally.upstream_never_dialled;
  for (uint64_t left = tally.headerless; left > explained; --left) tally.add_failure(Failure::headerless);
}

void print_summary(const Options& o, const Tally& t, int64_t began_ms, const nlohmann::ordered_json* audit) {
  const double wall_s = static_cast<double>(std::max<int64_t>(1, t.last_end_ms - began_ms)) / 1000;
  nlohmann::json failures = nlohmann::json::object();
  for (size_t f = 1; f < kFailures; ++f) {
    if (t.failures[f] > 0) failures[std::string(name_of(static_cast<Failure>(f)))] = t.failures[f].load();
  }
  nlohmann::ordered_json summary = {
      {"seed", o.seed},
      {"lives", t.done.load()},
      {"failed", t.failed()},
      {"failures", failures},
      {"wall_s", wall_s},
      {"lives_per_s", static_cast<double>(t.done) / wall_s},
      {"bytes_up", t.bytes_up.load()},
      {"bytes_down", t.bytes_down.load()},
      {"megabytes_per_s", static_cast<double>(t.bytes_up + t.bytes_down) / wall_s / kMega},
      {"reset_by_client", t.reset_by_client.load()},
      {"reset_by_server", t.reset_by_server.load()},
      {"half_closed", t.half_closed.load()},
      {"upstream_never_dialled", t.upstream_never_dialled.load()},
      {"headerless", t.headerless.load()},
      {"health_checks", t.health_checks.load()},
  };
  if (o.recipe.mix == Mix::never_read) summary["starved_resets"] = t.starved_resets.load();
  if (o.recipe.mix == Mix::stall) summary["stalled_bytes_max"] = t.stalled_bytes_max.load();
  if (o.probe_client) {
    summary["probes_good"] = t.probes_good.load();
    summary["probes_bad"] = t.probes_bad.load();
    summary["probe_worst_ms"] = static_cast<double>(t.probe_worst_us) / 1000;
  }
  if (audit != nullptr) summary.update(*audit);
  if (o.json) {
    fmt::print("{}\n", summary.dump(2));
    return;
  }
  for (const auto& [name, value] : summary.items()) fmt::print("{:<23} {}\n", name, value.dump());
}

}  // namespace penstock::torture
