// SPDX-License-Identifier: Apache-2.0
#include "dns/cache.h"

#include <algorithm>
#include <utility>

namespace penstock::dns {

void Cache::configure(const Options& options, TimePoint now) {
  bool other_servers = options.servers != options_.servers;
  options_ = options;
  for (Entry& entry : entries_) {
    Answer& answer = entry.answer;
    if (answer.found()) answer.expires = std::min(answer.expires, answer.obtained + options_.ttl_max);
    if (!other_servers) continue;
    answer.expires = std::min(answer.expires, now);
    entry.failed.reset();  // it was not these that failed
  }
}

// The entry when there is something to serve, if only in need. Takes note of what has become stale.
Cache::Entry* Cache::current(const Key& key, TimePoint now) {
  auto at = index_.find(key);
  if (at == index_.end()) return nullptr;
  Entry& entry = *at->second;
  auto serves_until = entry.answer.expires;
  if (entry.answer.found()) serves_until += options_.stale;
  if (serves_until <= now) {
    erase(at);
    return nullptr;
  }
  entry.answer.stale = entry.answer.expires <= now;
  return &entry;
}

Cache::Found Cache::find(const Key& key, TimePoint now) {
  Entry* entry = current(key, now);
  if (!entry) return {Step::ask, nullptr};
  Step step = Step::serve;
  if (entry->answer.stale) {
    bool failing = entry->failed && now < *entry->failed + kFailing;
    if (!failing) {
      step = Step::ask_briefly;
    } else if (now >= entry->asked + kAskAgain) {
      step = Step::serve_and_ask;
    }
  }
  return {step, &entry->answer};
}

const Answer* Cache::asked_lately(const Key& key, TimePoint now) {
  Entry* entry = current(key, now);
  return entry && now < entry->asked + kAskAgain ? &entry->answer : nullptr;
}

Answer Cache::store(const Key& key, Answer answer, std::chrono::seconds ttl, TimePoint asked, TimePoint now) {
  answer.obtained = now;
  answer.expires =
      now + (answer.found() ? std::clamp<std::chrono::milliseconds>(ttl, options_.ttl_min, options_.ttl_max)
                            : kFailureTtl);
  return put(key, std::move(answer), asked, std::nullopt);
}

Answer Cache::store_failure(const Key& key, const std::string& error, TimePoint asked, TimePoint now) {
  Entry* entry = current(key, now);
  if (entry && entry->answer.found()) {
    entry->answer.error = error;
    entry->asked = asked;
    entry->failed = now;
    return entry->answer;
  }
  Answer nothing;
  nothing.error = error;
  nothing.expires = now + kFailureTtl;
  return put(key, std::move(nothing), asked, now);
}

Answer Cache::put(const Key& key, Answer answer, TimePoint asked, std::optional<TimePoint> failed) {
  if (auto at = index_.find(key); at != index_.end()) erase(at);
  if (entries_.size() == entries_max_) erase(index_.find(entries_.front().key));
  entries_.push_back({key, std::move(answer), asked, failed});
  index_.emplace(key, std::prev(entries_.end()));
  return entries_.back().answer;
}

void Cache::erase(std::map<Key, Entries::iterator>::iterator at) {
  entries_.erase(at->second);
  index_.erase(at);
}

}  // namespace penstock::dns
