// SPDX-License-Identifier: Apache-2.0
// io/deadlines.h: one thread's timers: a heap of (when, id), one entry an id at most. No allocation once it
// has grown. tests/unit/deadlines_test.cc.
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

namespace penstock::io {

class Deadlines {
 public:
  using Id = uint32_t;
  static constexpr uint64_t kNever = UINT64_MAX;

  void set(Id id, uint64_t when_ns) {
    if (id >= places_.size()) places_.resize(id + 1, kAbsent);
    if (places_[id] == kAbsent) {
      heap_.push_back({when_ns, id});
      places_[id] = static_cast<uint32_t>(heap_.size() - 1);
      up(places_[id]);
    } else {
      uint32_t at = places_[id];
      uint64_t before = heap_[at].when_ns;
      heap_[at].when_ns = when_ns;
      when_ns < before ? up(at) : down(at);
    }
  }
  void clear(Id id) {
    if (id >= places_.size() || places_[id] == kAbsent) return;
    remove(places_[id]);
  }
  bool is_set(Id id) const { return id < places_.size() && places_[id] != kAbsent; }
  uint64_t next_ns() const { return heap_.empty() ? kNever : heap_[0].when_ns; }
  // Takes out the earliest one that is due.
  std::optional<Id> pop_due(uint64_t now_ns) {
    if (heap_.empty() || heap_[0].when_ns > now_ns) return std::nullopt;
    Id id = heap_[0].id;
    remove(0);
    return id;
  }

 private:
  static constexpr uint32_t kAbsent = UINT32_MAX;
  struct Entry {
    uint64_t when_ns;
    Id id;
  };
  void place(uint32_t at, Entry e) {
    heap_[at] = e;
    places_[e.id] = at;
  }
  void up(uint32_t at) {
    Entry e = heap_[at];
    for (; at > 0 && heap_[(at - 1) / 2].when_ns > e.when_ns; at = (at - 1) / 2)
      place(at, heap_[(at - 1) / 2]);
    place(at, e);
  }
  void down(uint32_t at) {
    Entry e = heap_[at];
    for (uint32_t child; (child = 2 * at + 1) < heap_.size(); at = child) {
      if (child + 1 < heap_.size() && heap_[child + 1].when_ns < heap_[child].when_ns) child++;
      if (heap_[child].when_ns >= e.when_ns) break;
      place(at, heap_[child]);
    }
    place(at, e);
  }
  void remove(uint32_t at) {
    places_[heap_[at].id] = kAbsent;
    Entry last = heap_.back();
    heap_.pop_back();
    if (at == heap_.size()) return;
    uint64_t before = heap_[at].when_ns;
    place(at, last);
    last.when_ns < before ? up(at) : down(at);
  }
  std::vector<Entry> heap_;
  std::vector<uint32_t> places_;  // id -> index in heap_
};

}  // namespace penstock::io
