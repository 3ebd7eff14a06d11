// SPDX-License-Identifier: Apache-2.0
// torture/ledger.h: what penstockd says of each life in its access log, against what the life's plan and both
// ends imply: the reason it ended for, and the bytes it carried each way. A line and the end of its life may
// come in either order. Thread-safe.
#pragma once
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "tally.h"

namespace penstock::torture {

struct EndpointHash {
  size_t operator()(const Endpoint& e) const {
    return std::hash<std::string_view>()({reinterpret_cast<const char*>(e.address.bytes.data()), 16}) +
           e.port;
  }
};

// One line of the access log.
struct FlowLine {
  Endpoint peer;             // whose connection it was: with a PROXY header the proxy's in front
  std::string reason, text;  // of it, the whole line
  std::optional<uint64_t> up_bytes, down_bytes;  // carried; not said of a connection refused at accept
};
std::optional<FlowLine> parse_flow_line(std::string_view line);  // none: a line about something else

// What may be said of a life that is over.
struct LedgerEntry {
  uint64_t life = 0;
  bool judged = true;           // else any line will do, or none
  bool failed = false;          // then its line is told: it may say why
  bool may_be_missing = false;  // turned away before it was a flow: not every such line is written
  std::vector<std::string_view> reasons;
  struct Range {
    uint64_t least, most;
  } up, down;
};
LedgerEntry entry_of(uint64_t life, const LifePlan& plan, const EndReport& client, const EndReport& server);
// Failure::none, or what the line says wrong.
Verdict compare(const LedgerEntry& entry, const FlowLine& line);

class Ledger {
 public:
  Ledger(const Options& options, Tally& tally) : options_(options), tally_(tally) {}
  void begin(const Endpoint& peer);  // what is left of a life that had this address before is of no use
  void expect(const Endpoint& peer, LedgerEntry entry);
  void add_line(std::string_view line);
  bool complete() const;  // no life waits for its line
  // At the end: lives without a line are failures, but for as many as the log itself dropped.
  void settle(uint64_t lines_dropped);

  std::map<std::string, uint64_t> by_reason() const;
  uint64_t carried_bytes() const;

 private:
  void check(const LedgerEntry& entry, const FlowLine& line);

  const Options& options_;
  Tally& tally_;
  mutable std::mutex mutex_;
  std::unordered_map<Endpoint, LedgerEntry, EndpointHash> waiting_;
  std::unordered_map<Endpoint, FlowLine, EndpointHash> early_;  // their lives are not over yet
  uint64_t must_come_ = 0;                                      // of waiting_
  std::string last_line_;  // a worker that dies as it puts one out has it put out again by the next
  std::map<std::string, uint64_t> by_reason_;
  uint64_t carried_bytes_ = 0;
};

}  // namespace penstock::torture
