// SPDX-License-Identifier: Apache-2.0
// flow/record.h: everything a later worker needs to go on with a flow, in shared memory: fixed size, no
// pointers, written before the step it describes. What is not here (armed operations, timers, the run queue)
// can be derived. A record has one writer, its thread. Of another's only what is Observed may be read:
//   generation (acquire), phase (acquire; `free`: there is nothing to read), the rest, still(generation)
// tests/unit/record_test.cc.
#pragma once
#include <array>
#include <atomic>
#include <cstdint>
#include <span>
#include <string_view>

#include "base/endpoint.h"
#include "base/fd.h"
#include "base/layout.h"
#include "base/result.h"
#include "flow/machine.h"
#include "proxy_protocol/proxy_protocol.h"

namespace penstock::flow {

inline constexpr size_t kOwnIdTlvBytes =
    3 + proxy_protocol::kOwnUniqueIdBytes;                  // kept free of a proxy's TLVs: prime.cc
inline constexpr uint32_t kRecordLayout = 7 + kLayoutStep;  // base/layout.h
inline constexpr size_t kRecordBytes = 1600;  // in every layout: what a program does not know it clears

enum Side : uint32_t { kClient = 0, kUpstream = 1 };  // of sockets
enum Direction : uint32_t { kUp = 0, kDown = 1 };     // direction d: source = socket d, target = socket d ^ 1

// A word that others may read at any moment: each access is one load or one store, by itself in no order with
// others. It can be copied, so that a record can be assigned as a whole.
template <typename T>
class Observed {
 public:
  constexpr Observed(T value = {}) : value_(value) {}
  Observed(const Observed& other) : value_(other.load()) {}
  Observed& operator=(const Observed& other) { return *this = other.load(); }
  Observed& operator=(T value) {
    store(value);
    return *this;
  }
  operator T() const { return load(); }
  T load(std::memory_order order = std::memory_order_relaxed) const { return value_.load(order); }
  void store(T value, std::memory_order order = std::memory_order_relaxed) { value_.store(value, order); }

 private:
  static_assert(std::atomic<T>::is_always_lock_free);
  std::atomic<T> value_;
};

struct DirectionRecord {
  Observed<Lane> lane = Lane::none;
  uint32_t lane_changes = 0;
  Observed<int32_t> pipe_in = -1;  // a descriptor, as pipe_out; -1: no pipe. What is in it: FIONREAD
  int32_t pipe_out = -1;
  Observed<uint32_t> pipe_capacity_bytes = 0;
  uint32_t fin_received = 0;       // the source said FIN; passed on when lane is shut
  uint64_t header_bytes = 0;       // PROXY header we sent to the target ourselves
  uint64_t discarded_bytes = 0;    // PROXY header of the source that was read off
  uint64_t relayed_in_bytes = 0;   // source -> pipe
  uint64_t relayed_out_bytes = 0;  // pipe -> target
  uint64_t quiet_ns = 0;           // how long it must be quiet to go back to splice
};

struct FlowRecord {
  Observed<Phase> phase = Phase::free;  // advance() stores it (release) after what it speaks of
  Observed<uint32_t> generation = 0;    // counts up each time the slot is taken
  int32_t fd[2] = {-1, -1};             // by Side
  uint64_t cookie[2] = {0, 0};
  Observed<uint32_t> thread = UINT32_MAX;  // nobody's until it is set, before the phase
  uint32_t listener = 0, upstream = 0;     // slots in the statistics; upstream UINT32_MAX: not routed yet
  int32_t route = -1;
  Endpoint client, destination;  // as accepted, or as the PROXY header of `proxy` says
  Endpoint proxy;                // the trusted proxy in front, as accepted; port 0: none, or no header yet
  uint16_t port = 0;             // ours, the one it came in on, whatever a header says
  Endpoint server_endpoint;      // as dialled last
  uint64_t accepted_ns = 0, opened_ns = 0, deadline_ns = 0;
  uint32_t header_sent_bytes = 0, header_size = 0;
  uint32_t reason = 0;            // CloseReason, valid in Phase::closing
  Observed<uint32_t> known = 0;   // the programs know the cookies: forget them at the end
  uint32_t joined = 0;            // bit s: socket s is in `targets`
  uint32_t upstream_counted = 0;  // in the upstream's `active`
  uint32_t local = 0;             // `proxy` says that the connection is its own
  uint32_t unproven = 0;          // a stranger where proxies are trusted: its first bytes are yet to be seen
  uint32_t plan = 0;              // Plan::id() of the configuration it came in under
  uint32_t ended = 0;             // its end is counted, where there are no maps
  uint32_t logged = 0;            // its line is in the log
  uint32_t crashes = 0;           // of workers that had it in hand
  uint32_t admitted = 0;          // the client may come in: its lists and limits were asked
  uint64_t server = 0;            // Server::id() of the one chosen; 0: none yet
  DirectionRecord direction[2];
  uint8_t sni_size = 0, alpn_size = 0;  // ALPN: the first name offered
  std::array<char, 255> sni_bytes{};
  std::array<char, 255> alpn_bytes{};
  std::string_view sni() const { return {sni_bytes.data(), sni_size}; }
  std::string_view alpn() const { return {alpn_bytes.data(), alpn_size}; }
  // What goes into the header we send as it is: TLVs of `proxy`, a UNIQUE_ID made here.
  uint16_t tlvs_size = 0;
  std::array<uint8_t, proxy_protocol::kPassedOnBytesMax> tlvs_bytes{};
  std::span<const uint8_t> tlvs() const { return std::span(tlvs_bytes).first(tlvs_size); }
  void add_tlv(std::span<const uint8_t> tlv);  // REQUIRES: it fits
  std::string_view unique_id() const;          // the first UNIQUE_ID among them; empty: none
#if PENSTOCK_LAYOUT_STEP
  uint64_t not_cookie = 0;  // ~cookie[kClient] since its connection was accepted; 0: by an older program
  std::array<uint64_t, 16> reserved{};
#else
  std::array<uint64_t, 17> reserved{};
#endif

  // All as at the start, of the next generation. REQUIRES: phase `free`, and the slot is the caller's.
  void take();
  // After what was read of another's record: all of it was of this generation.
  bool still(uint32_t of_generation) const;
};

static_assert(sizeof(FlowRecord) == kRecordBytes);

// The records of all threads: a memfd, so that whoever holds the descriptor can map the same flows.
class FlowTable {
 public:
  static Result<FlowTable> create(uint32_t flows_max);
  // That of another program, by the descriptor of its memory, which stays the caller's.
  static Result<FlowTable> reopen(int memory);
  void is_ours_now();  // this program writes it from here on
  FlowTable(FlowTable&& other) noexcept;
  FlowTable& operator=(FlowTable&&) = delete;
  ~FlowTable();
  FlowRecord& operator[](uint32_t slot) { return records_[slot]; }
  uint32_t size() const { return size_; }
  int memory() const { return number_; }
  // No slot from here on was ever taken.
  std::atomic<uint32_t>& used() { return header_->used; }

 private:
  struct Header {
    uint32_t layout, record_bytes, flows_max;
    std::atomic<uint32_t> used;
  };
  static constexpr size_t kRecordsAt = 4096;
  FlowTable() = default;
  Fd memory_;  // if it was created here
  int number_ = -1;
  Header* header_ = nullptr;
  FlowRecord* records_ = nullptr;
  uint32_t size_ = 0;
};

}  // namespace penstock::flow
