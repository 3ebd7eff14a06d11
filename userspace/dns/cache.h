// SPDX-License-Identifier: Apache-2.0
// dns/cache.h: answers by name and kind: how long they serve, and when to ask again. No clock and no lock of
// its own: the resolver has both. Kept true by tests/dns/cache_test.cc.
#pragma once
#include <chrono>
#include <compare>
#include <cstddef>
#include <list>
#include <map>
#include <optional>
#include <string>

#include "dns/resolver.h"

namespace penstock::dns {

struct Key {
  std::string name;  // lower case
  Family family = Family::any;
  bool srv = false;  // then `family` is any
  auto operator<=>(const Key&) const = default;
};

class Cache {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;
  // How long "there is no such name" serves, and a failure with nothing older to serve.
  static constexpr std::chrono::seconds kFailureTtl{1};
  // At least between two questions for one name while DNS is down, and by renew().
  static constexpr std::chrono::seconds kAskAgain{1};
  // For so long after a failure the next is expected, and nobody waits for it.
  static constexpr std::chrono::seconds kFailing{5};

  enum class Step {
    ask,            // there is nothing to serve
    ask_briefly,    // expired, and DNS may be well: serve it if no answer comes within kStaleWait
    serve_and_ask,  // expired, and DNS was down just now: nobody waits
    serve,          // fresh, or as above and asked less than kAskAgain ago
  };
  struct Found {
    Step step;
    const Answer* answer;  // null with Step::ask. Valid until the next call
  };

  Cache(size_t entries_max, const Options& options) : entries_max_(entries_max), options_(options) {}
  void configure(const Options& options, TimePoint now);

  Found find(const Key& key, TimePoint now);
  // What was said within the last kAskAgain, or null. Valid until the next call.
  const Answer* asked_lately(const Key& key, TimePoint now);

  // What DNS has said at `now` to the question of `asked`, for better or worse. `ttl` counts when something
  // was found. When full, the entry stored longest ago goes. Both return what to tell who waits.
  Answer store(const Key& key, Answer answer, std::chrono::seconds ttl, TimePoint asked, TimePoint now);
  // DNS has said nothing: what was found earlier stays.
  Answer store_failure(const Key& key, const std::string& error, TimePoint asked, TimePoint now);
  size_t size() const { return index_.size(); }

 private:
  struct Entry {
    Key key;
    Answer answer;
    TimePoint asked;
    std::optional<TimePoint> failed;  // the last attempt, when it failed
  };
  using Entries = std::list<Entry>;

  Entry* current(const Key& key, TimePoint now);
  Answer put(const Key& key, Answer answer, TimePoint asked, std::optional<TimePoint> failed);
  void erase(std::map<Key, Entries::iterator>::iterator at);

  size_t entries_max_;
  Options options_;
  Entries entries_;  // oldest first
  std::map<Key, Entries::iterator> index_;
};

}  // namespace penstock::dns
