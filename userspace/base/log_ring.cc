// SPDX-License-Identifier: Apache-2.0
#include "base/log_ring.h"

#include <algorithm>
#include <cstring>

#include "base/assert.h"

// Of the two that libstdc++ 12 and later have, the one that GCC 11's has too: EL 9.
asm(".symver _ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE, "
    "_ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE@GLIBCXX_3.4.11");

namespace penstock {
namespace {

constexpr uint64_t kMagic = 0x676e6972676f6c70;  // "plogring"
constexpr size_t kSlotBytes = 512;               // most lines take one
constexpr size_t kTextBytes = kSlotBytes - 24;   // of a slot
constexpr size_t kPartsMax = LogLine::kBytesMax / kTextBytes;
constexpr uint64_t kPositionMax = uint64_t{1} << 62;
constexpr std::string_view kCut = "...";

uint64_t parts_of(size_t line_bytes) {
  return std::max<uint64_t>(1, (line_bytes + kTextBytes - 1) / kTextBytes);
}

}  // namespace

// Positions count slots from 1 on. Every line in [read, next) is whole; next - read <= slots.
struct LogRing::Header {
  std::atomic<uint64_t> magic;
  uint32_t layout, slot_bytes;
  uint64_t slots;
  std::atomic<uint64_t> next, read, dropped;
  uint64_t reserved[2];
};

// A line is one slot, or as many consecutive ones as its text needs.
struct LogRing::Slot {
  std::atomic<uint64_t> position;  // whose text this is; 0 while it changes
  int64_t time_ns;
  uint32_t line_bytes;  // of all parts
  uint16_t part;        // 0 in a line's first slot
  uint16_t level;
  char text[kTextBytes];
};

const size_t LogRing::kBytesMin = sizeof(Header) + kPartsMax * sizeof(Slot);

LogRing::LogRing(std::span<std::byte> memory)
    : header_(reinterpret_cast<Header*>(memory.data())),
      slots_(reinterpret_cast<Slot*>(header_ + 1)),
      count_((memory.size() - sizeof(Header)) / sizeof(Slot)) {
  static_assert(sizeof(Header) == 64 && sizeof(Slot) == kSlotBytes && LogLine::kBytesMax % kTextBytes == 0);
  static_assert(std::atomic<uint64_t>::is_always_lock_free);
  PENSTOCK_ASSERT(memory.size() >= kBytesMin && reinterpret_cast<uintptr_t>(memory.data()) % 8 == 0);
  Header& h = *header_;
  const uint64_t next = h.next, read = h.read;
  if (h.magic == kMagic && h.layout == kLogRingLayout && h.slot_bytes == kSlotBytes && h.slots == count_ &&
      1 <= read && read <= next && next < kPositionMax && next - read <= count_) {
    found_ = read < next ? Found::lines : Found::nothing;
    return;
  }
  found_ = h.magic == 0 ? Found::nothing : Found::garbage;
  h.layout = 0;  // so that dying in here leaves garbage, too
  if (found_ == Found::garbage)
    std::fill_n(reinterpret_cast<std::byte*>(slots_), count_ * sizeof(Slot), std::byte{});
  h.slot_bytes = kSlotBytes;
  h.slots = count_;
  h.next = h.read = 1;
  h.dropped = 0;
  std::atomic_ref(h.layout).store(kLogRingLayout, std::memory_order_release);
  h.magic.store(kMagic, std::memory_order_release);
}

void LogRing::write(uint32_t level, int64_t time_ns, std::string_view text) {
  const bool cut = text.size() > LogLine::kBytesMax;
  const size_t size = cut ? LogLine::kBytesMax : text.size();
  const uint64_t parts = parts_of(size);
  std::unique_lock lock(mutex_);
  const uint64_t at = header_->next.load(std::memory_order_relaxed);
  while (at + parts - header_->read.load(std::memory_order_relaxed) > count_) drop_front();
  for (uint64_t i = 0; i < parts; i++) slots_[(at + i) % count_].position.store(0, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_release);
  for (uint64_t i = 0; i < parts; i++) {
    Slot& s = slots_[(at + i) % count_];
    s.time_ns = time_ns;
    s.line_bytes = static_cast<uint32_t>(size);
    s.part = static_cast<uint16_t>(i);
    s.level = static_cast<uint16_t>(level);
    const std::string_view rest = text.substr(i * kTextBytes, std::min(size - i * kTextBytes, kTextBytes));
    memcpy(s.text, rest.data(), rest.size());
    if (cut && i + 1 == parts) kCut.copy(s.text + kTextBytes - kCut.size(), kCut.size());
  }
  for (uint64_t i = 0; i < parts; i++)
    slots_[(at + i) % count_].position.store(at + i, std::memory_order_release);
  header_->next.store(at + parts, std::memory_order_release);
  lock.unlock();
  wake_.notify_one();
}

bool LogRing::wait(LogLine& line) {
  std::unique_lock lock(mutex_);
  for (;;) {
    if (take_front(line)) return true;
    if (ending_) return false;
    wake_.wait(lock);
  }
}

bool LogRing::take_front(LogLine& line) {
  const LogTail tail(header_, slots_, count_);
  while (header_->read.load(std::memory_order_relaxed) < header_->next.load(std::memory_order_relaxed)) {
    held_ = header_->read.load(std::memory_order_relaxed);
    if (tail.read(held_, line)) return true;
    held_ = 0;
    drop_front();  // garbage
  }
  return false;
}

// REQUIRES: read < next. Of garbage a slot counts as a line.
void LogRing::drop_front() {
  const uint64_t at = header_->read.load(std::memory_order_relaxed);
  const uint64_t next = header_->next.load(std::memory_order_relaxed);
  uint64_t end = at + 1;
  while (end < next && slots_[end % count_].part == end - at) end++;
  header_->read.store(end, std::memory_order_relaxed);
  if (at != held_) header_->dropped.fetch_add(1, std::memory_order_relaxed);
}

void LogRing::done(const LogLine& line, bool was_put_out) {
  const std::lock_guard lock(mutex_);
  if (header_->read.load(std::memory_order_relaxed) == line.position) drop_front();
  if (!was_put_out) header_->dropped.fetch_add(1, std::memory_order_relaxed);
  held_ = 0;
}

void LogRing::end() {
  const std::lock_guard lock(mutex_);
  ending_ = true;
  wake_.notify_all();
}

uint64_t LogRing::dropped() const {
  return header_->dropped.load(std::memory_order_relaxed);
}

LogTail::LogTail(std::span<const std::byte> memory) {
  if (memory.size() < LogRing::kBytesMin || reinterpret_cast<uintptr_t>(memory.data()) % 8 != 0) return;
  header_ = reinterpret_cast<const LogRing::Header*>(memory.data());
  slots_ = reinterpret_cast<const LogRing::Slot*>(header_ + 1);
  const uint64_t count = (memory.size() - sizeof(LogRing::Header)) / sizeof(LogRing::Slot);
  if (header_->magic == kMagic && header_->layout == kLogRingLayout && header_->slots == count)
    count_ = count;
}

bool LogTail::read(uint64_t position, LogLine& line) const {
  if (count_ == 0) return false;
  const LogRing::Slot& first = slots_[position % count_];
  if (first.position.load(std::memory_order_acquire) != position || first.part != 0) return false;
  line.position = position;
  line.time_ns = first.time_ns;
  line.level = first.level;
  line.size = first.line_bytes;
  if (line.size > LogLine::kBytesMax) return false;
  const uint64_t parts = parts_of(line.size);
  for (uint64_t i = 0; i < parts; i++) {
    const LogRing::Slot& s = slots_[(position + i) % count_];
    if (s.position.load(std::memory_order_acquire) != position + i || s.part != i) return false;
    memcpy(line.bytes + i * kTextBytes, s.text, std::min(line.size - i * kTextBytes, kTextBytes));
  }
  std::atomic_thread_fence(std::memory_order_acquire);
  for (uint64_t i = 0; i < parts; i++)
    if (slots_[(position + i) % count_].position.load(std::memory_order_relaxed) != position + i)
      return false;
  return true;
}

size_t LogTail::last(std::span<uint64_t> positions) const {
  const uint64_t next = count_ == 0 ? 0 : header_->next.load(std::memory_order_acquire);
  if (next == 0 || next >= kPositionMax || positions.empty()) return 0;
  size_t found = 0;
  uint64_t end = next;  // of what is still to be looked at
  while (found < positions.size() && end > 1 && next - end < count_) {
    const LogRing::Slot& s = slots_[--end % count_];
    if (s.position.load(std::memory_order_acquire) == end && s.part == 0)
      positions[positions.size() - ++found] = end;
  }
  std::copy(positions.end() - static_cast<ptrdiff_t>(found), positions.end(), positions.begin());
  return found;
}

}  // namespace penstock
