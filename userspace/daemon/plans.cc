// SPDX-License-Identifier: Apache-2.0
#include "daemon/plans.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/assert.h"

namespace penstock::daemon {

// toml, env, then the slots of listeners and of upstreams, 4 bytes each.
struct Plans::Entry {
  std::atomic<uint32_t> id;  // stored last; 0: nothing
  uint32_t toml_bytes, env_bytes, listeners, upstreams;
  size_t bytes() const { return size_t{toml_bytes} + env_bytes + 4 * (size_t{listeners} + upstreams); }
  uint8_t* text() { return reinterpret_cast<uint8_t*>(this + 1); }
};

Result<Plans> Plans::create() {
  Fd memory(memfd_create("penstock-plans", MFD_CLOEXEC));
  if (!memory.valid() || ftruncate(memory.get(), static_cast<off_t>(kBytes)))
    return Error{fmt::format("cannot keep the configuration: {}", strerror(errno))};
  auto plans = map(memory.get());
  if (plans) plans->memory_ = std::move(memory);
  return plans;
}

Result<Plans> Plans::reopen(int memory) {
  return map(memory);
}

Result<Plans> Plans::map(int file) {
  Plans p;
  p.number_ = file;
  void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (memory == MAP_FAILED) return Error{fmt::format("cannot keep the configuration: {}", strerror(errno))};
  p.bytes_ = static_cast<uint8_t*>(memory);
  return p;
}

Plans::Plans(Plans&& other) noexcept
    : memory_(std::move(other.memory_)),
      number_(other.number_),
      bytes_(std::exchange(other.bytes_, nullptr)),
      used_(std::move(other.used_)) {}

Plans::~Plans() {
  if (bytes_) munmap(bytes_, kBytes);
}

Plans::Entry* Plans::entry(size_t i) const {
  return reinterpret_cast<Entry*>(bytes_ + i * kPlanBytesMax);
}

void Plans::keep(const config::Source& source, const std::shared_ptr<const flow::Plan>& plan) {
  std::erase_if(used_, [&](const auto& u) { return u.first == plan->id(); });
  used_.emplace_back(plan->id(), plan);
  for (size_t i = 0; i < kPlansMax; i++)
    if (entry(i)->id == plan->id()) return;  // of the worker before us
  Entry* place = nullptr;
  for (size_t i = 0; i < kPlansMax; i++) {
    Entry* e = entry(i);
    const auto used =
        std::find_if(used_.begin(), used_.end(), [&](const auto& u) { return u.first == e->id; });
    const bool over = used != used_.end() && used->second.expired();
    if (over) {
      used_.erase(used);
      forget(e);
    }
    if (!place || e->id < place->id) place = e;
  }
  place->id.store(0, std::memory_order_release);
  const config::Config& c = plan->config();
  place->toml_bytes = static_cast<uint32_t>(source.toml.size());
  place->env_bytes = static_cast<uint32_t>(source.env.size());
  place->listeners = static_cast<uint32_t>(c.listeners.size());
  place->upstreams = static_cast<uint32_t>(c.upstreams.size());
  PENSTOCK_ASSERT(sizeof(Entry) + place->bytes() <= kPlanBytesMax);  // 1 MiB each, 1,024 slots each
  uint8_t* at = place->text();
  at = std::copy(source.toml.begin(), source.toml.end(), at);
  at = std::copy(source.env.begin(), source.env.end(), at);
  const auto put = [&](uint32_t slot) {
    memcpy(at, &slot, sizeof slot);
    at += sizeof slot;
  };
  for (size_t i = 0; i < c.listeners.size(); i++) put(plan->listener_slot(i));
  for (size_t i = 0; i < c.upstreams.size(); i++) put(plan->upstream_slot(i));
  place->id.store(plan->id(), std::memory_order_release);
}

void Plans::forget(Entry* e) {
  e->id = 0;
  madvise(e, kPlanBytesMax, MADV_REMOVE);
}

void Plans::keep_only(const std::vector<Kept>& needed) {
  for (size_t i = 0; i < kPlansMax; i++) {
    Entry* e = entry(i);
    const uint32_t id = e->id;
    if (id && std::none_of(needed.begin(), needed.end(), [&](const Kept& k) { return k.id == id; }))
      forget(e);
  }
}

void Plans::keep_start(const config::Source& source) {
  Entry* e = entry(kPlansMax);
  e->toml_bytes = static_cast<uint32_t>(source.toml.size());
  e->env_bytes = static_cast<uint32_t>(source.env.size());
  PENSTOCK_ASSERT(sizeof(Entry) + e->bytes() <= kPlanBytesMax);
  uint8_t* at = std::copy(source.toml.begin(), source.toml.end(), e->text());
  std::copy(source.env.begin(), source.env.end(), at);
}

config::Source Plans::start() const {
  Entry* e = entry(kPlansMax);
  if (sizeof(Entry) + e->bytes() > kPlanBytesMax) return {};
  const char* text = reinterpret_cast<const char*>(e->text());
  return {{text, e->toml_bytes}, {text + e->toml_bytes, e->env_bytes}};
}

std::vector<Plans::Kept> Plans::all() const {
  std::vector<Kept> all;
  for (size_t i = 0; i < kPlansMax; i++) {
    Entry* e = entry(i);
    const uint32_t id = e->id.load(std::memory_order_acquire);
    if (id == 0 || sizeof(Entry) + e->bytes() > kPlanBytesMax) continue;
    const char* text = reinterpret_cast<const char*>(e->text());
    Kept k{.id = id,
           .source = {{text, e->toml_bytes}, {text + e->toml_bytes, e->env_bytes}},
           .listener_slots = {},
           .upstream_slots = {}};
    k.listener_slots.resize(e->listeners);
    k.upstream_slots.resize(e->upstreams);
    const char* slots = text + e->toml_bytes + e->env_bytes;
    if (e->listeners) memcpy(k.listener_slots.data(), slots, 4 * size_t{e->listeners});
    if (e->upstreams)
      memcpy(k.upstream_slots.data(), slots + 4 * size_t{e->listeners}, 4 * size_t{e->upstreams});
    all.push_back(std::move(k));
  }
  std::sort(all.begin(), all.end(), [](const Kept& a, const Kept& b) { return a.id < b.id; });
  return all;
}

}  // namespace penstock::daemon
