// SPDX-License-Identifier: Apache-2.0
#include "flow/record.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/assert.h"

namespace penstock::flow {

void FlowRecord::add_tlv(std::span<const uint8_t> tlv) {
  PENSTOCK_ASSERT(tlv.size() <= tlvs_bytes.size() - tlvs_size);
  std::copy(tlv.begin(), tlv.end(), tlvs_bytes.begin() + tlvs_size);
  tlvs_size = static_cast<uint16_t>(tlvs_size + tlv.size());
}

std::string_view FlowRecord::unique_id() const {
  auto rest = tlvs();
  while (auto tlv = proxy_protocol::next_tlv(&rest))
    if (tlv->type == proxy_protocol::kTlvUniqueId)
      return {reinterpret_cast<const char*>(tlv->value.data()), tlv->value.size()};
  return {};
}

// The generation before anything else: whoever has seen a word of the new record sees that too (still()).
void FlowRecord::take() {
  FlowRecord fresh;
  fresh.generation = generation + 1;
  generation = fresh.generation;
  std::atomic_thread_fence(std::memory_order_release);
  *this = fresh;
}

bool FlowRecord::still(uint32_t of_generation) const {
  std::atomic_thread_fence(std::memory_order_acquire);
  return generation == of_generation;
}

Result<FlowTable> FlowTable::create(uint32_t flows_max) {
  static_assert(sizeof(Header) <= kRecordsAt);
  FlowTable t;
  size_t bytes = kRecordsAt + sizeof(FlowRecord) * flows_max;
  t.memory_ = Fd(memfd_create("penstock-flows", MFD_CLOEXEC));
  if (!t.memory_.valid() || ftruncate(t.memory_.get(), static_cast<off_t>(bytes)))
    return Error{fmt::format("cannot make the flow table: {}", strerror(errno))};
  // Pages are zero, and zero is a free record; untouched slots cost nothing.
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, t.memory_.get(), 0);
  if (p == MAP_FAILED) return Error{fmt::format("cannot map the flow table: {}", strerror(errno))};
  t.header_ = static_cast<Header*>(p);
  t.header_->layout = kRecordLayout;
  t.header_->record_bytes = sizeof(FlowRecord);
  t.header_->flows_max = flows_max;
  t.records_ = reinterpret_cast<FlowRecord*>(static_cast<char*>(p) + kRecordsAt);
  t.size_ = flows_max;
  t.number_ = t.memory_.get();
  return t;
}

Result<FlowTable> FlowTable::reopen(int memory) {
  FlowTable t;
  t.number_ = memory;
  struct {
    uint32_t layout, record_bytes, flows_max;
  } header{};
  if (pread(memory, &header, sizeof header, 0) != sizeof header)
    return Error{fmt::format("cannot read the flow table: {}", strerror(errno))};
  if (!can_take_over(header.layout, kRecordLayout) || header.record_bytes != kRecordBytes)
    return Error{fmt::format("the flow table has layout {}, not {}", header.layout, kRecordLayout)};
  const size_t bytes = kRecordsAt + sizeof(FlowRecord) * header.flows_max;
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
  if (p == MAP_FAILED) return Error{fmt::format("cannot map the flow table: {}", strerror(errno))};
  t.header_ = static_cast<Header*>(p);
  t.records_ = reinterpret_cast<FlowRecord*>(static_cast<char*>(p) + kRecordsAt);
  t.size_ = header.flows_max;
  return t;
}

void FlowTable::is_ours_now() {
  header_->layout = kRecordLayout;
}

FlowTable::FlowTable(FlowTable&& other) noexcept
    : memory_(std::move(other.memory_)),
      number_(other.number_),
      header_(std::exchange(other.header_, nullptr)),
      records_(std::exchange(other.records_, nullptr)),
      size_(other.size_) {}

FlowTable::~FlowTable() {
  if (header_) munmap(header_, kRecordsAt + sizeof(FlowRecord) * size_);
}

}  // namespace penstock::flow
