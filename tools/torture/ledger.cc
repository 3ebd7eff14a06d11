// SPDX-License-Identifier: Apache-2.0
#include "ledger.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <utility>

namespace penstock::torture {
namespace {

// The word after " name=".
std::optional<std::string_view> field(std::string_view line, std::string_view name) {
  const size_t at = line.find(name);
  if (at == line.npos) return std::nullopt;
  const std::string_view rest = line.substr(at + name.size());
  return rest.substr(0, rest.find_first_of(" \n"));
}

std::optional<uint64_t> number(std::string_view line, std::string_view name) {
  const auto text = field(line, name);
  uint64_t value = 0;
  if (!text || std::from_chars(text->data(), text->data() + text->size(), value).ec != std::errc{}) return {};
  return value;
}

bool must_come(const LedgerEntry& entry) {
  return entry.judged && !entry.may_be_missing;
}

bool lies_in(const std::optional<uint64_t>& value, const LedgerEntry::Range& range) {
  return !value || (*value >= range.least && *value <= range.most);
}

}  // namespace

std::optional<FlowLine> parse_flow_line(std::string_view line) {
  const auto client = field(line, " client="), proxy = field(line, " proxy="),
             reason = field(line, " reason=");
  if (line.find(" flow cookie=") == line.npos || !client || !reason) return std::nullopt;
  const auto peer = parse_endpoint(proxy.value_or(*client));
  if (!peer) return std::nullopt;
  return FlowLine{*peer, std::string(*reason), std::string(line), number(line, " up="),
                  number(line, " down=")};
}

LedgerEntry entry_of(uint64_t life, const LifePlan& plan, const EndReport& client, const EndReport& server) {
  LedgerEntry entry;
  entry.life = life;
  if (client.reset_sent) entry.reasons.push_back("client_reset");
  if (server.reset_sent) entry.reasons.push_back("upstream_reset");
  // Both streams were whole before the RST was heard of, or there was none.
  if (client.fin_sent && server.fin_sent) entry.reasons.push_back("completed");
  if (client.reset_sent && !server.arrived) {
    entry.may_be_missing = true;
    entry.reasons.push_back("proxy_probe");
  }
  const uint64_t id_bytes = plan.proxied ? 0 : plan.end(Side::client).header.size();
  entry.up = {server.arrived ? server.received + id_bytes : 0, client.sent + id_bytes};
  entry.down = {client.received, server.sent};
  return entry;
}

Verdict compare(const LedgerEntry& entry, const FlowLine& line) {
  if (!entry.judged) return {};
  if (std::find(entry.reasons.begin(), entry.reasons.end(), line.reason) == entry.reasons.end()) {
    return {Failure::wrong_reason,
            fmt::format("the log says {}, it can be {}", line.reason, fmt::join(entry.reasons, " or "))};
  }
  if (!lies_in(line.up_bytes, entry.up) || !lies_in(line.down_bytes, entry.down)) {
    return {Failure::wrong_account,
            fmt::format("the log says {} bytes up, {} down; sent and received were {}-{} up, {}-{} down",
                        line.up_bytes.value_or(0), line.down_bytes.value_or(0), entry.up.least, entry.up.most,
                        entry.down.least, entry.down.most)};
  }
  return {};
}

void Ledger::check(const LedgerEntry& entry, const FlowLine& line) {
  if (entry.failed) tell_line(options_, entry.life, line.text);
  const Verdict verdict = compare(entry, line);
  if (verdict.failure == Failure::none) return;
  tally_.add_failure(verdict.failure);
  tell_failure(options_, entry.life, verdict.failure, verdict.reason);
}

void Ledger::begin(const Endpoint& peer) {
  std::lock_guard lock(mutex_);
  early_.erase(peer);
  const auto before = waiting_.find(peer);
  if (before != waiting_.end() && !must_come(before->second)) waiting_.erase(before);
}

void Ledger::expect(const Endpoint& peer, LedgerEntry entry) {
  std::lock_guard lock(mutex_);
  if (const auto line = early_.extract(peer)) return check(entry, line.mapped());
  must_come_ += must_come(entry);
  waiting_.insert_or_assign(peer, std::move(entry));
}

void Ledger::add_line(std::string_view text) {
  auto line = parse_flow_line(text);
  if (!line) return;
  std::lock_guard lock(mutex_);
  if (std::exchange(last_line_, text) == text) return;
  ++by_reason_[line->reason];
  carried_bytes_ += line->up_bytes.value_or(0) + line->down_bytes.value_or(0);
  if (options_.only_life) fmt::print(stderr, "penstockd: {}\n", text);
  const auto waiting = waiting_.extract(line->peer);
  if (!waiting) {
    early_.insert_or_assign(line->peer, std::move(*line));
    return;
  }
  must_come_ -= must_come(waiting.mapped());
  check(waiting.mapped(), *line);
}

bool Ledger::complete() const {
  std::lock_guard lock(mutex_);
  return must_come_ == 0;
}

void Ledger::settle(uint64_t lines_dropped) {
  std::lock_guard lock(mutex_);
  if (must_come_ <= lines_dropped) return;
  for (const auto& [peer, entry] : waiting_) {
    if (!must_come(entry)) continue;
    tally_.add_failure(Failure::unlogged);
    tell_failure(options_, entry.life, Failure::unlogged, "the log has no line of it: " + peer.text());
  }
}

std::map<std::string, uint64_t> Ledger::by_reason() const {
  std::lock_guard lock(mutex_);
  return by_reason_;
}

uint64_t Ledger::carried_bytes() const {
  std::lock_guard lock(mutex_);
  return carried_bytes_;
}

}  // namespace penstock::torture
