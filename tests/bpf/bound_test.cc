// SPDX-License-Identifier: Apache-2.0
// The memory that waits for a target: estimated, summed, bounded. The reader of every flow here has stopped.
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <thread>

#include "backlog_oracle.h"
#include "sockmap/loopback_flow.h"
#include "sockmap/loopback_stream.h"
#include "support/wait.h"

namespace penstock::sockmap {
namespace {

using test::wait_until;

constexpr uint32_t kSegmentBytes = 96 << 10;  // truesize of a loopback segment, at most

class Bound : public testing::Test {
 protected:
  Bound() {
    Options options;
    options.flows_max = 8;
    options.threads = 8;
    options.memory_limit_bytes = 1u << 30;
    auto opened = Sockmap::open(options);
    if (!opened) throw std::runtime_error(opened.error().message);
    sockmap_ = std::move(*opened);
  }
  penstock_direction& direction(uint32_t index) { return sockmap_->direction(index); }
  penstock_globals& globals() { return sockmap_->globals(); }
  std::unique_ptr<Sockmap> sockmap_;
};

// Counts no less than there is, except for the first segment, part of which the target may have taken.
void expect_covered(const Backlog& real, uint64_t charged) {
  EXPECT_GE(charged + real.first_bytes, std::max(real.truesize_bytes, real.linear_bytes))
      << real.segments << " segments of " << real.bytes << " bytes";
}

TEST_F(Bound, TheKernelClosesAtTheThreshold) {
  constexpr uint32_t kHighBytes = 512 << 10;
  for (bool v6 : {false, true}) {
    for (int round = 0; round < 5; round++) {
      LoopbackFlow flow(*sockmap_, 0, {.v6 = v6, .high_bytes = kHighBytes});
      BacklogOracle oracle(flow.ours(1));
      flow.hand_off();
      StreamSender sender(flow.client(), UINT64_MAX);
      uint32_t charged_max = 0;
      ASSERT_TRUE(wait_until([&] {
        charged_max = std::max(charged_max, direction(flow.up()).charged);
        return sockmap_->closed(flow.up());
      }));
      charged_max = std::max(charged_max, direction(flow.up()).charged);
      EXPECT_LE(charged_max, kHighBytes + 2 * kSegmentBytes);
      EXPECT_LE(oracle.measure().truesize_bytes, kHighBytes + 2 * kSegmentBytes);
      flow.check_account(flow.up(), false);
      sender.stop();
    }
  }
}

TEST_F(Bound, TheTrimFilterHoldsWhereNobodyCloses) {
  constexpr uint32_t kLimitBytes = 512 << 10;
  LoopbackFlow flow(*sockmap_, 0,
                    {.target_send_buffer_bytes = 64 << 10,
                     .server_receive_buffer_bytes = 64 << 10,
                     .limit_bytes = kLimitBytes});
  BacklogOracle oracle(flow.ours(1));
  flow.hand_off();
  StreamSender sender(flow.client(), 4 << 20);
  ASSERT_TRUE(wait_until([&] { return direction(flow.up()).trimmed >= 8; }));
  Backlog real = oracle.measure();
  EXPECT_LE(real.truesize_bytes, kLimitBytes + 2 * kSegmentBytes);
  expect_covered(real, direction(flow.up()).charged);
  StreamReader reader(flow.server());
  EXPECT_TRUE(wait_until([&] { return reader.received() == 4 << 20 || reader.failed(); }));
  half_close(flow.ours(1));
  EXPECT_EQ(reader.finish(), 4u << 20);
}

TEST_F(Bound, AtTheLimitOfAllFlowsTheHolderIsTrimmedAndTheIdleOnePasses) {
  LoopbackFlow holder(*sockmap_, 0,
                      {.target_send_buffer_bytes = 16 << 10, .server_receive_buffer_bytes = 16 << 10});
  LoopbackFlow idle(*sockmap_, 1), late(*sockmap_, 2);
  holder.hand_off();
  idle.hand_off();
  late.hand_off();
  StreamSender first(holder.client(), 300'000);
  first.finish();
  ASSERT_TRUE(wait_until([&] { return holder.redirected(holder.up()) == 300'000; }));
  uint64_t limit = globals().memory_limit_bytes;

  globals().memory_limit_bytes = globals().held_bytes / 9 * 10;  // above 7/8, below 15/16
  send_all(holder.client(), "late");
  ASSERT_TRUE(wait_until([&] { return direction(holder.up()).trimmed > 0; }));
  EXPECT_EQ(holder.redirected(holder.up()), 300'000u);
  send_all(idle.client(), "served");
  EXPECT_EQ(receive(idle.server(), 6), "served");
  EXPECT_EQ(direction(idle.up()).trimmed, 0u);

  globals().memory_limit_bytes = globals().held_bytes;  // above 15/16: over for everybody
  send_all(late.client(), "refused");
  ASSERT_TRUE(wait_until([&] { return direction(late.up()).trimmed > 0; }));
  EXPECT_EQ(late.redirected(late.up()), 0u);

  globals().memory_limit_bytes = limit;
  EXPECT_EQ(receive(late.server(), 7), "refused");
  receive(holder.server(), 300'000);
  EXPECT_EQ(receive(holder.server(), 4), "late");
}

TEST_F(Bound, TheThresholdShrinksAsAllFlowsFillTheLimit) {
  constexpr uint32_t kHighBytes = 4 << 20;
  globals().memory_limit_bytes = 2 << 20;  // five eighths of it, an eighth: 160 KiB for the first
  std::vector<std::unique_ptr<LoopbackFlow>> flows;
  std::vector<std::unique_ptr<StreamSender>> senders;
  for (uint32_t slot = 0; slot < 4; slot++) {
    flows.push_back(std::make_unique<LoopbackFlow>(*sockmap_, slot, FlowShape{.high_bytes = kHighBytes}));
    LoopbackFlow& flow = *flows.back();
    flow.hand_off();
    senders.push_back(std::make_unique<StreamSender>(flow.client(), UINT64_MAX));
    ASSERT_TRUE(wait_until([&] { return sockmap_->closed(flow.up()); }));
    EXPECT_LE(direction(flow.up()).charged, (160u << 10) + 2 * kSegmentBytes);
  }
  EXPECT_LE(globals().held_bytes, globals().memory_limit_bytes);
  EXPECT_GT(globals().closes, 3u);
  senders.clear();
}

TEST_F(Bound, OneByteSegmentsAreChargedForWhatTheyCost) {
  // What the two socket buffers take comes first, and is merged there: up to 30,000 (Linux 7.3).
  constexpr uint64_t kSegmentsMax = 100'000;
  constexpr uint32_t kLimitBytes = 4 << 20;  // what is charged too much depends on it
  LoopbackFlow flow(*sockmap_, 0,
                    {.target_send_buffer_bytes = 8 << 10,
                     .server_receive_buffer_bytes = 8 << 10,
                     .limit_bytes = kLimitBytes});
  BacklogOracle oracle(flow.ours(1));
  flow.hand_off();
  // A worker that is only late goes on as soon as nothing comes.
  const auto blocked = [&] {
    const uint64_t before = oracle.measure().segments;
    if (before < 500) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    return oracle.measure().segments == before;
  };
  for (uint64_t sent = 0; sent < kSegmentsMax && !blocked(); sent++) {
    send_all(flow.client(), "x");
    ASSERT_TRUE(wait_until([&] { return flow.redirected(flow.up()) == sent + 1; }));
  }
  Backlog real = oracle.measure();
  ASSERT_GE(real.segments, 500u) << "nothing waits: the test shows nothing";
  expect_covered(real, direction(flow.up()).charged);
  EXPECT_GE(real.truesize_bytes, 100 * real.bytes);
  EXPECT_LE(direction(flow.up()).charged, real.truesize_bytes + kLimitBytes / 8 + 2 * real.first_bytes)
      << "far too high: flows would be held for nothing";
}

TEST_F(Bound, MixedSizesAreChargedForWhatTheyCost) {
  LoopbackFlow flow(*sockmap_, 0,
                    {.target_send_buffer_bytes = 8 << 10, .server_receive_buffer_bytes = 8 << 10});
  BacklogOracle oracle(flow.ours(1));
  flow.hand_off();
  uint64_t sent = 0;
  for (size_t size :
       {40'000, 1, 1, 3'000, 1'400, 60'000, 7, 2'047, 2'048, 2'049, 100, 30'000, 1, 1, 1, 500, 9'000}) {
    for (int repeat = 0; repeat < 4; repeat++) {
      send_all(flow.client(), std::string(size, 'x'));
      sent += size;
      ASSERT_TRUE(wait_until([&] { return flow.redirected(flow.up()) == sent; }));
      expect_covered(oracle.measure(), direction(flow.up()).charged);
    }
  }
  Backlog real = oracle.measure();
  EXPECT_GE(real.segments, 20u);
}

}  // namespace
}  // namespace penstock::sockmap
