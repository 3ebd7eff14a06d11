// SPDX-License-Identifier: Apache-2.0
#include "dns/cache.h"

#include <algorithm>
#include <utility>

namespace penstock::dns {

const Answer* Cache::find(const Key& key, TimePoint now) {
  auto at = index_.find(key);
  if (at == index_.end()) return nullptr;
  if (at->second->expires <= now) {
    erase(at);
    return nullptr;
  }
  return &at->second->answer;
}

void Cache::store(const Key& key, Answer answer, std::chrono::seconds ttl, TimePoint now) {
  if (auto at = index_.find(key); at != index_.end()) erase(at);
  if (entries_.size() == entries_max_) erase(index_.find(entries_.front().key));
  entries_.push_back({key, std::move(answer), now + std::clamp(ttl, kTtlMin, kTtlMax)});
  index_.emplace(key, std::prev(entries_.end()));
}

void Cache::erase(std::map<Key, Entries::iterator>::iterator at) {
  entries_.erase(at->second);
  index_.erase(at);
}

}  // namespace penstock::dns
