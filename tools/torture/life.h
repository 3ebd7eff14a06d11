// SPDX-License-Identifier: Apache-2.0
// torture/life.h: what the two ends of one connection will do, derived from a seed and nothing else, so that
// a failure is replayed by its number. Pure. Played by end_run.h, judged by verdict.h; life_test.cc plays a
// thousand plans on paper to show that none can deadlock.
#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace penstock::torture {

enum class Side : uint8_t { client, server };
constexpr Side other(Side s) {
  return s == Side::client ? Side::server : Side::client;
}
constexpr size_t index_of(Side s) {
  return static_cast<size_t>(s);
}
constexpr std::string_view name_of(Side s) {
  return s == Side::client ? "client" : "server";
}

enum class Mix { mixed, brief, bulk, pingpong, mail, paced, stall, never_read };
enum class Towards { both, up, down };  // up: client to server

// Bytes beyond `at` wait until `until` bytes of the peer have been received. A gate at the last byte holds
// back the FIN.
inline constexpr uint64_t kUntilFin = UINT64_MAX;
struct Gate {
  uint64_t at, until;
};
struct Pause {
  uint64_t at;  // bytes sent, or received
  uint32_t ms;
};
// RST instead of a FIN, at the first moment that this holds.
struct Reset {
  enum class When { sent, received, elapsed } when;
  uint64_t at;  // bytes, or ms since this end has its connection
};

inline constexpr uint64_t kWithoutEnd = UINT64_MAX;

struct EndPlan {
  uint64_t send_bytes = 0;  // kWithoutEnd: as many as go out in send_for_ms
  uint32_t send_for_ms = 0;
  uint32_t write_bytes_min = 1,
           write_bytes_max = 64 << 10;          // each write's size is drawn between, log-uniform
  uint64_t pace_bytes_per_s = 0;                // 0: as fast as it goes
  std::vector<Gate> gates;                      // rising
  std::vector<Pause> send_pauses, read_pauses;  // rising
  uint32_t read_bytes_max = 0;                  // 0: as much as there is
  uint32_t read_gap_ms = 0;                     // after each read
  bool never_read = false;
  int send_buffer_bytes = 0, receive_buffer_bytes = 0;  // 0: the system's
  bool no_delay = true;
  std::optional<Reset> reset;
};

struct LifePlan {
  uint64_t seed = 0;
  std::string_view shape;
  std::array<EndPlan, 2> ends;  // by index_of(Side)
  bool starved = false;         // a proxy may reset it to protect itself: told, not a failure
  EndPlan& end(Side s) { return ends[index_of(s)]; }
  const EndPlan& end(Side s) const { return ends[index_of(s)]; }
};

struct Recipe {
  Mix mix = Mix::mixed;
  uint64_t bytes_max = 64 << 20;  // one direction of one life
  uint32_t stall_ms_max = 2000;
  // paced, stall, never_read:
  uint32_t flows = 8;
  uint32_t duration_ms = 10'000;
  uint32_t stall_ms = 60'000;
  uint64_t rate_bps = 0;  // of all flows and directions together; 0: as fast as it goes
  Towards towards = Towards::both;
};

LifePlan plan_life(uint64_t run_seed, uint64_t index, const Recipe& recipe);
LifePlan plan_probe(uint64_t run_seed, uint64_t index);  // a short, well-behaved exchange
std::string describe(const LifePlan& plan);              // one line

// splitmix64: every 64-bit state gives a good sequence, so a seed needs no warming up.
class Dice {
 public:
  explicit Dice(uint64_t seed) : state_(seed) {}
  uint64_t next();
  uint64_t below(uint64_t n) { return next() % n; }
  uint64_t between(uint64_t low, uint64_t high) { return low + below(high - low + 1); }
  uint64_t log_uniform(uint64_t low, uint64_t high);  // REQUIRES: 1 <= low <= high
  bool chance(double percent) { return static_cast<double>(next() >> 11) * 0x1p-53 * 100 < percent; }

 private:
  uint64_t state_;
};

}  // namespace penstock::torture
