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

#include "opening.h"

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
// RST, at the first moment that this holds.
struct Reset {
  // Bytes of the header alone sent · bytes sent · received · ms since this end has its connection · ms since
  // its FIN.
  enum class When { header, sent, received, elapsed, shut } when;
  uint64_t at;
};

inline constexpr uint64_t kWithoutEnd = UINT64_MAX;

struct EndPlan {
  std::string header;                // goes before the stream and is for others: PROXY header, id
  std::vector<Pause> header_pauses;  // rising, by bytes of it sent; each ends a write
  std::string opening;      // the stream's first bytes, where they are not the pattern's: ClientHello
  uint64_t send_bytes = 0;  // with the opening. kWithoutEnd: as many as go out in send_for_ms
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
  std::array<EndPlan, 2> ends;     // by index_of(Side)
  std::optional<Proxied> proxied;  // whose connection it is, as the client's header says
  bool starved = false;            // a proxy may reset it to protect itself: told, not a failure
  EndPlan& end(Side s) { return ends[index_of(s)]; }
  const EndPlan& end(Side s) const { return ends[index_of(s)]; }
};

// What one of the proxy's addresses wants to hear before the stream.
struct Manners {
  bool proxy_header = false;  // it takes the client for a proxy in front (accept_proxy)
  bool client_hello = false;  // it routes by server name
};

struct Recipe {
  Mix mix = Mix::mixed;
  uint64_t bytes_max = 1 << 30;  // one direction of one life
  uint32_t stall_ms_max = 5000;
  // paced, stall, never_read:
  uint32_t flows = 8;
  uint32_t duration_ms = 10'000;
  uint32_t stall_ms = 60'000;
  uint64_t rate_bps = 0;  // of all flows and directions together; 0: as fast as it goes
  Towards towards = Towards::both;
};

LifePlan plan_life(uint64_t run_seed, uint64_t index, const Recipe& recipe, Manners manners = {});
// A short, well-behaved exchange.
LifePlan plan_probe(uint64_t run_seed, uint64_t index, Manners manners = {});
std::string describe(const LifePlan& plan);  // one line

}  // namespace penstock::torture
