// SPDX-License-Identifier: Apache-2.0
// torture/tally.h: what a run adds up to, its progress line and its summary. Thread-safe.
#pragma once
#include <array>
#include <atomic>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "options.h"
#include "verdict.h"

namespace penstock::torture {

int64_t now_ms();  // monotonic
int64_t now_us();

struct Tally {
  std::atomic<uint64_t> done = 0, bytes_up = 0, bytes_down = 0;
  std::atomic<uint64_t> connected = 0, sent_bytes = 0;  // by both ends, read or not
  std::atomic<uint64_t> reset_by_client = 0, reset_by_server = 0, half_closed = 0;
  std::atomic<uint64_t> upstream_never_dialled = 0;  // the client's RST came first
  std::atomic<uint64_t> headerless = 0;              // each must be explained by one of those
  std::atomic<uint64_t> health_checks = 0;           // LOCAL headers
  std::atomic<uint64_t> starved_resets = 0;          // never_read clients that the proxy reset
  std::atomic<uint64_t> stalled_bytes_max = 0;  // sent, and not yet read when a stall of --mode stall ended
  std::atomic<uint64_t> probes_good = 0, probes_bad = 0, probe_worst_us = 0;
  std::array<std::atomic<uint64_t>, kFailures> failures{};
  std::atomic<int64_t> last_end_ms = 0;

  void add_failure(Failure f) { failures[static_cast<size_t>(f)].fetch_add(1); }
  uint64_t failed() const;
};

void raise_to(std::atomic<uint64_t>& most, uint64_t value);

// To stderr; more than 50 are only counted.
void tell_failure(const Options& options, std::optional<uint64_t> life, Failure failure,
                  const std::string& reason);
void tell_line(const Options& options, uint64_t life, std::string_view line);  // likewise, of penstockd's log

// Prints a line about the time since the last call.
class Progress {
 public:
  explicit Progress(const Tally& tally) : tally_(tally), at_ms_(now_ms()) {}
  void print(uint64_t active);

 private:
  const Tally& tally_;
  int64_t at_ms_;
  uint64_t done_ = 0, bytes_ = 0;
};

// At the end of a run: turns what is still unexplained into failures.
void settle(Tally& tally);
// `audit`: what to add, or null.
void print_summary(const Options& options, const Tally& tally, int64_t began_ms,
                   const nlohmann::ordered_json* audit);

}  // namespace penstock::torture
