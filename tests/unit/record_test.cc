// SPDX-License-Identifier: Apache-2.0
#include "flow/record.h"

#include <gtest/gtest.h>

#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <thread>

namespace penstock::flow {
namespace {

TEST(FlowRecord, taken_again_is_as_at_the_start_but_for_its_generation) {
  FlowTable table = std::move(*FlowTable::create(2));
  FlowRecord& r = table[1];
  EXPECT_EQ(r.phase.load(), Phase::free);
  r.take();
  EXPECT_EQ(r.generation, 1u);
  r.thread = 3;
  r.fd[kClient] = 7;
  r.known = 1;
  r.direction[kDown].lane = Lane::relay;
  r.direction[kDown].pipe_in = 8;
  r.sni_size = 1;
  r.take();
  EXPECT_EQ(r.generation, 2u);
  EXPECT_EQ(r.phase.load(), Phase::free);
  EXPECT_EQ(r.thread, UINT32_MAX);
  EXPECT_EQ(r.fd[kClient], -1);
  EXPECT_EQ(r.known, 0u);
  EXPECT_EQ(r.direction[kDown].lane.load(), Lane::none);
  EXPECT_EQ(r.direction[kDown].pipe_in, -1);
  EXPECT_EQ(r.sni(), "");
}

TEST(FlowRecord, of_a_slot_that_changed_hands_nothing_is_believed) {
  FlowTable table = std::move(*FlowTable::create(1));
  FlowRecord& r = table[0];
  r.take();
  const uint32_t generation = r.generation;
  EXPECT_TRUE(r.still(generation));
  r.take();
  EXPECT_FALSE(r.still(generation));
}

// Its words agree in every record that a reader may believe, however often the slot changes hands meanwhile.
TEST(FlowRecord, whoever_reads_while_the_slot_changes_hands_can_tell) {
  constexpr uint32_t kBelievedMin = 50'000;
  FlowTable table = std::move(*FlowTable::create(1));
  FlowRecord& r = table[0];
  std::atomic<bool> over = false;
  std::thread owner([&] {
    while (!over) {
      r.take();
      const uint32_t generation = r.generation;
      r.thread = generation;
      for (DirectionRecord& d : r.direction) d.pipe_capacity_bytes = generation;
      r.phase.store(Phase::open, std::memory_order_release);
      r.phase.store(Phase::free, std::memory_order_release);
    }
  });
  uint32_t torn = 0;
  for (uint32_t believed = 0; believed < kBelievedMin;) {
    const uint32_t generation = r.generation.load(std::memory_order_acquire);
    if (r.phase.load(std::memory_order_acquire) == Phase::free) {
      std::this_thread::yield();
      continue;
    }
    const uint32_t words[] = {r.thread, r.direction[kUp].pipe_capacity_bytes,
                              r.direction[kDown].pipe_capacity_bytes};
    if (!r.still(generation)) continue;
    believed++;
    for (const uint32_t word : words) torn += word != generation;
  }
  over = true;
  owner.join();
  EXPECT_EQ(torn, 0u);
}

// A field of the next layout lies in what is reserved here: of the flow before it nothing may be left.
TEST(FlowRecord, a_slot_that_is_taken_has_an_empty_reserve) {
  FlowTable table = std::move(*FlowTable::create(1));
  FlowRecord& r = table[0];
  r.reserved.fill(UINT64_MAX);
  r.take();
  for (const uint64_t word : r.reserved) EXPECT_EQ(word, 0u);
}

TEST(FlowTable, is_taken_over_across_one_step_of_its_layout) {
  FlowTable table = std::move(*FlowTable::create(2));
  table[1].listener = 7;
  for (const int step : {-2, -1, 0, 1, 2}) {
    const uint32_t layout = kRecordLayout + static_cast<uint32_t>(step);
    ASSERT_EQ(pwrite(table.memory(), &layout, sizeof layout, 0), ssize_t{sizeof layout});
    auto reopened = FlowTable::reopen(table.memory());
    ASSERT_EQ(static_cast<bool>(reopened), std::abs(step) < 2) << step;
    if (!reopened) continue;
    EXPECT_EQ((*reopened)[1].listener, 7u);
    reopened->is_ours_now();
    uint32_t now = 0;
    ASSERT_EQ(pread(table.memory(), &now, sizeof now, 0), ssize_t{sizeof now});
    EXPECT_EQ(now, kRecordLayout);
  }
}

TEST(FlowTable, with_records_of_another_size_is_not_taken_over) {
  FlowTable table = std::move(*FlowTable::create(1));
  const uint32_t bytes = kRecordBytes - 8;
  ASSERT_EQ(pwrite(table.memory(), &bytes, sizeof bytes, 4), ssize_t{sizeof bytes});
  EXPECT_FALSE(FlowTable::reopen(table.memory()));
}

}  // namespace
}  // namespace penstock::flow
