// SPDX-License-Identifier: Apache-2.0
// dns/cache.h: answers by (name, family) until they expire. No clock and no lock of its own: the resolver has
// both. Kept true by tests/dns/cache_test.cc.
#pragma once
#include <chrono>
#include <compare>
#include <cstddef>
#include <list>
#include <map>
#include <string>

#include "dns/resolver.h"

namespace penstock::dns {

struct Key {
  std::string name;  // lower case
  Family family = Family::any;
  auto operator<=>(const Key&) const = default;
};

class Cache {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;
  static constexpr std::chrono::seconds kTtlMin{1}, kTtlMax{3600};

  explicit Cache(size_t entries_max) : entries_max_(entries_max) {}
  // nullptr: unknown or expired. Valid until the next call.
  const Answer* find(const Key& key, TimePoint now);
  // `ttl` is clamped to kTtlMin..kTtlMax. When full, the entry stored longest ago goes.
  void store(const Key& key, Answer answer, std::chrono::seconds ttl, TimePoint now);
  size_t size() const { return index_.size(); }

 private:
  struct Entry {
    Key key;
    Answer answer;
    TimePoint expires;
  };
  using Entries = std::list<Entry>;

  void erase(std::map<Key, Entries::iterator>::iterator at);

  size_t entries_max_;
  Entries entries_;  // oldest first
  std::map<Key, Entries::iterator> index_;
};

}  // namespace penstock::dns
