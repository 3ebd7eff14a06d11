// SPDX-License-Identifier: Apache-2.0
#include "flow/upstream.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "base/assert.h"

namespace penstock::flow {
namespace {

constexpr uint64_t kPreferredNs = 60'000'000'000;
constexpr uint32_t kLinesPerSecond = 8;

uint64_t fnv1a(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  return hash;
}

std::vector<config::Server> servers_of(const std::vector<dns::SrvTarget>& targets) {
  std::vector<config::Server> servers;
  std::set<std::string> seen;
  std::map<uint16_t, uint32_t> weight_most;  // by priority
  for (const dns::SrvTarget& t : targets)
    weight_most[t.priority] = std::max<uint32_t>(weight_most[t.priority], t.weight);
  for (const dns::SrvTarget& t : targets) {
    config::Server s;
    s.host = t.host;
    s.port = t.port;
    s.text = fmt::format("{}:{}", t.host, t.port);
    const uint32_t divisor = 1 + weight_most[t.priority] / (config::kWeightMax + 1);
    s.weight = std::clamp<uint32_t>(t.weight / divisor, 1, config::kWeightMax);
    s.backup = t.priority != targets.front().priority;
    if (seen.insert(s.text).second) servers.push_back(std::move(s));
  }
  return servers;
}

}  // namespace

Server::Server(std::string upstream, config::Server what)
    : upstream_(std::move(upstream)), what_(std::move(what)), id_(fnv1a(what_.text) | 1) {}

bool Server::dial_failed(uint64_t now_ns) {
  const uint32_t before = failures_.fetch_add(1, std::memory_order_relaxed);
  if (before + 1 >= kFailuresMax) shunned_until_ns_ = now_ns + kShunnedNs;
  return before == 0;
}

bool Server::dial_succeeded() {
  if (failures_.load(std::memory_order_relaxed) == 0) return false;
  shunned_until_ns_ = 0;
  return failures_.exchange(0, std::memory_order_relaxed) > 0;
}

bool Server::worth_a_line(uint64_t now_ns) {
  std::lock_guard lock(mutex_);
  if (now_ns >= lines_until_ns_) {
    lines_until_ns_ = now_ns + 1'000'000'000;
    lines_ = 0;
  }
  return lines_++ < kLinesPerSecond;
}

bool Server::set_answer(const dns::Answer& answer) {
  std::lock_guard lock(mutex_);
  const bool changed = answer.stale != answer_.stale;
  answer_ = answer;
  return changed;
}

dns::Answer Server::answer() const {
  std::lock_guard lock(mutex_);
  return answer_;
}

void Server::prefer(const IpAddress& address, uint64_t now_ns) {
  std::lock_guard lock(mutex_);
  preferred_ = address;
  preferred_until_ns_ = now_ns + kPreferredNs;
}

void Server::order(std::vector<IpAddress>* addresses, uint64_t now_ns) const {
  std::lock_guard lock(mutex_);
  if (!preferred_ || preferred_until_ns_ <= now_ns) return;
  const auto found = std::find(addresses->begin(), addresses->end(), *preferred_);
  if (found != addresses->end()) std::rotate(addresses->begin(), found, found + 1);
}

Upstream::Upstream(const config::Upstream& what, const Upstream* previous)
    : what_(what), by_srv_(!what.srv.empty()) {
  if (previous) {
    std::lock_guard lock(previous->mutex_);
    known_ = previous->known_;
    set_.servers = previous->set_.servers;
    drained_ = previous->drained_;
    if (by_srv_ && previous->what_.srv == what.srv) {
      targets_ = previous->targets_;
      kept_drained_ = previous->kept_drained_;
    }
  }
  set_ = make_set(by_srv_ ? servers_of(targets_) : what.servers);
}

Upstream::Set Upstream::make_set(const std::vector<config::Server>& servers) {
  Set set;
  std::map<std::string, std::shared_ptr<Server>, std::less<>> known;
  std::vector<route::Member> members;
  for (const config::Server& s : servers) {
    std::shared_ptr<Server>& server = known[s.text];
    if (!server) {
      const auto before = known_.find(s.text);
      if (before != known_.end()) {
        server = before->second;
        // While it was not named no command could reach it.
        const auto& named = set_.servers;
        if (std::find(named.begin(), named.end(), server) == named.end())
          server->drained = drained_ || kept_drained_.contains(s.text);
      } else {
        server = std::make_shared<Server>(what_.name, s);
        server->drained = drained_ || kept_drained_.contains(s.text);
      }
    }
    set.servers.push_back(server);
    members.push_back({s.text, s.weight, s.backup});
  }
  // A flow knows its server by a plain pointer. Nobody checks one that is gone.
  for (auto& [text, server] : known_)
    if (server->flows.load() > 0 && known.emplace(text, server).second) server->health = Health::unknown;
  known_ = std::move(known);
  if (!members.empty()) set.balance = std::make_unique<route::Balance>(what_.balance, members);
  return set;
}

bool Upstream::set_targets(const std::vector<dns::SrvTarget>& targets) {
  PENSTOCK_ASSERT(by_srv_);
  std::lock_guard lock(mutex_);
  if (targets == targets_) return false;
  targets_ = targets;
  set_ = make_set(servers_of(targets));
  return true;
}

bool Upstream::set_answer(const dns::Answer& answer) {
  {
    std::lock_guard lock(mutex_);
    error_ = answer.error;
  }
  return !answer.targets.empty() && set_targets(answer.targets);
}

std::string Upstream::error() const {
  std::lock_guard lock(mutex_);
  return error_;
}

Server* Upstream::choose(const IpAddress& client, std::span<const Server* const> tried, uint64_t now_ns) {
  std::unique_lock lock(mutex_, std::defer_lock);
  if (by_srv_) lock.lock();
  if (!set_.balance) return nullptr;
  const auto is_tried = [&](uint32_t i) {
    return std::find(tried.begin(), tried.end(), set_.servers[i].get()) != tried.end();
  };
  // The better half of what is known first: those not known to fail, then all that are not drained.
  const auto fit = [&](uint32_t i) {
    const Server& s = *set_.servers[i];
    return !s.drained && !is_tried(i) && s.health != Health::down && !s.shunned(now_ns);
  };
  const auto possible = [&](uint32_t i) {
    const Server& s = *set_.servers[i];
    return !s.drained && !is_tried(i) &&
           (what_.on_down == config::OnDown::attempt || s.health != Health::down);
  };
  const auto flows = [&](uint32_t i) { return set_.servers[i]->flows.load(std::memory_order_relaxed); };
  std::optional<uint32_t> index = set_.balance->choose(client, fit, flows);
  if (!index) index = set_.balance->choose(client, possible, flows);
  if (!index) return nullptr;
  Server* server = set_.servers[*index].get();
  server->flows.fetch_add(1, std::memory_order_relaxed);
  return server;
}

void Upstream::set_drained(bool drained) {
  std::lock_guard lock(mutex_);
  drained_ = drained;
  if (!drained) kept_drained_.clear();
}

bool Upstream::is_drained() const {
  std::lock_guard lock(mutex_);
  return drained_;
}

bool Upstream::keep_drained(std::string_view server, bool drained) {
  if (!by_srv_) return false;
  std::lock_guard lock(mutex_);
  return drained ? kept_drained_.emplace(server).second : kept_drained_.erase(std::string(server)) > 0;
}

std::set<std::string, std::less<>> Upstream::kept_drained() const {
  std::lock_guard lock(mutex_);
  return kept_drained_;
}

Server* Upstream::find(uint64_t id) {
  std::unique_lock lock(mutex_, std::defer_lock);
  if (by_srv_) lock.lock();
  for (const auto& s : set_.servers) {
    if (s->id() != id) continue;
    s->flows.fetch_add(1, std::memory_order_relaxed);
    return s.get();
  }
  return nullptr;
}

size_t Upstream::size() const {
  std::unique_lock lock(mutex_, std::defer_lock);
  if (by_srv_) lock.lock();
  return set_.servers.size();
}

void Upstream::for_each_server(const std::function<void(Server&)>& visit) const {
  std::vector<std::shared_ptr<Server>> servers;
  {
    std::lock_guard lock(mutex_);
    servers = set_.servers;
  }
  for (const auto& s : servers) visit(*s);
}

}  // namespace penstock::flow
