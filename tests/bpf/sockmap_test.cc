// SPDX-License-Identifier: Apache-2.0
// The acts of sockmap.h, one at a time, in the situations in which the flow engine relies on them.
#include "sockmap/sockmap.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <vector>

#include "sockmap/loopback_flow.h"
#include "sockmap/loopback_stream.h"
#include "support/wait.h"

namespace penstock::sockmap {
namespace {

using test::wait_until;

class SockmapTest : public testing::Test {
 protected:
  SockmapTest() {
    Options options;
    options.flows_max = 8;
    options.threads = 8;
    options.memory_limit_bytes = 1u << 30;
    auto opened = Sockmap::open(options);
    if (!opened) throw std::runtime_error(opened.error().message);
    sockmap_ = std::move(*opened);
  }
  uint64_t held() { return sockmap_->globals().held_bytes; }
  penstock_direction& direction(uint32_t index) { return sockmap_->direction(index); }
  std::vector<penstock_event> events(uint32_t thread) {
    std::vector<penstock_event> out;
    sockmap_->consume(thread, [&](const penstock_event& e) { out.push_back(e); });
    return out;
  }
  std::unique_ptr<Sockmap> sockmap_;
};

const FlowShape kSlowTarget{.target_send_buffer_bytes = 16 << 10, .server_receive_buffer_bytes = 16 << 10};

FlowShape slow_target(uint32_t high_bytes) {
  FlowShape shape = kSlowTarget;
  shape.high_bytes = high_bytes;
  return shape;
}

TEST_F(SockmapTest, ChargesAreGoneWhenTheFlowIs) {
  {
    LoopbackFlow a(*sockmap_, 0, kSlowTarget), b(*sockmap_, 1, kSlowTarget);
    for (LoopbackFlow* f : {&a, &b}) {
      f->hand_off();
      StreamSender sender(f->client(), 300'000);
      sender.finish();
      ASSERT_TRUE(wait_until([&] { return f->redirected(f->up()) == 300'000; }));
    }
    EXPECT_GE(held(), 400'000u);
    EXPECT_EQ(held(), direction(0).charged + direction(2).charged);
  }
  EXPECT_EQ(held(), 0u);
}

TEST_F(SockmapTest, ChargesAreGoneWhenTheTargetHasCaughtUp) {
  LoopbackFlow flow(*sockmap_, 0, kSlowTarget);
  flow.hand_off();
  StreamSender sender(flow.client(), 300'000);
  sender.finish();
  ASSERT_TRUE(wait_until([&] { return flow.redirected(flow.up()) == 300'000; }));
  EXPECT_GE(held(), 200'000u);
  StreamReader reader(flow.server());
  EXPECT_TRUE(wait_until([&] { return reader.received() == 300'000; }));
  EXPECT_EQ(held(), 0u);
}

TEST_F(SockmapTest, TheKernelSaysWhichValveItClosed) {
  LoopbackFlow idle(*sockmap_, 1), flow(*sockmap_, 3, slow_target(64 << 10));
  idle.hand_off();
  flow.hand_off();
  StreamSender sender(flow.client(), 256 << 10);
  wait_for(sockmap_->event_fd(3), POLLIN, "the event");
  auto came = events(3);
  ASSERT_EQ(came.size(), 1u);
  EXPECT_EQ(came[0].kind, PENSTOCK_EVENT_CLOSED);
  EXPECT_EQ(came[0].direction, flow.up());
  EXPECT_EQ(came[0].epoch, direction(flow.up()).epoch);
  EXPECT_TRUE(wait_until([&] { return sockmap_->closed(flow.up()); }));
  EXPECT_FALSE(sockmap_->closed(flow.down()));
  EXPECT_TRUE(events(1).empty());
  StreamReader reader(flow.server());  // lets the sender end
  flow.wait_written(flow.up());
  flow.reopen(flow.up(), true);
  sender.stop();
}

// What bpf_map_delete_elem() from userspace gets wrong once in some hundred times. Nobody paces the senders,
// but what they have under way fits into the receiver's buffer: where it does not, TCP drops it, shows a
// window of 0, takes the other side's ACKs as beyond that window (BeyondWindow in nstat), and two directions
// at once wait for each other's timeouts (6.18; whoever does not read for a while can see it, sockmap or
// not).
TEST_F(SockmapTest, TwoThousandClosingsUnderLoadLoseNothing) {
  constexpr uint64_t kWaitingMax = 1 << 20;
  LoopbackFlow flow(*sockmap_, 0, {.high_bytes = 2 << 20});
  for (int end : {flow.client(), flow.server()}) {
    int bytes = 512 << 10;
    ASSERT_EQ(setsockopt(end, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes), 0);
  }
  flow.hand_off();
  StreamReader up(flow.server()), down(flow.client());
  StreamSender up_sender(flow.client(), UINT64_MAX), down_sender(flow.server(), UINT64_MAX);
  auto failed = [&] { return up.failed() || down.failed(); };  // finish() says how
  for (int i = 0; i < 2000 && !failed(); i++) {
    uint32_t index = i & 1 ? flow.up() : flow.down();
    flow.close_valve(index);
    if (i % 16 < 2) flow.check_account(index, false);
    bool fresh = i % 64 < 2;
    if (fresh) flow.wait_written(index);
    ASSERT_TRUE(
        wait_until([&] { return flow.redirected(index) - flow.written(index) < kWaitingMax || failed(); }));
    uint64_t before = flow.redirected(index);
    flow.reopen(index, fresh);
    ASSERT_TRUE(wait_until([&] { return flow.redirected(index) > before || failed(); }));
  }
  up_sender.stop();
  down_sender.stop();
  uint64_t sent_up = up_sender.finish(), sent_down = down_sender.finish();
  ASSERT_TRUE(wait_until([&] {
    for (uint32_t index : {flow.up(), flow.down()}) {
      if (!sockmap_->closed(index)) continue;
      flow.wait_written(index);
      flow.reopen(index, true);
    }
    return (up.received() == sent_up && down.received() == sent_down) || failed();
  })) << up.received()
      << " of " << sent_up << " up, " << down.received() << " of " << sent_down << " down";
  half_close(flow.ours(0));
  half_close(flow.ours(1));
  EXPECT_EQ(up.finish(), sent_up);
  EXPECT_EQ(down.finish(), sent_down);
  EXPECT_EQ(flow.redirected(flow.up()), sent_up);
  EXPECT_EQ(flow.redirected(flow.down()), sent_down);
}

TEST_F(SockmapTest, AfterOurFinTheValveStaysOpenAndSaysSo) {
  LoopbackFlow flow(*sockmap_, 0);
  flow.hand_off();
  half_close(flow.ours(0));  // our FIN to the client: its direction can no longer be closed by a send
  EXPECT_FALSE(sockmap_->close_valve(flow.up(), flow.ours(0)));
  EXPECT_FALSE(sockmap_->closed(flow.up()));
  send_all(flow.client(), "still spliced");
  EXPECT_EQ(receive(flow.server(), 13), "still spliced");
  EXPECT_FALSE(sockmap_->closed(flow.up())) << "the refused order was carried out later";
}

TEST_F(SockmapTest, ClosingTwiceIsClosing) {
  LoopbackFlow flow(*sockmap_, 0);
  flow.hand_off();
  EXPECT_TRUE(sockmap_->close_valve(flow.up(), flow.ours(0)));
  EXPECT_TRUE(sockmap_->close_valve(flow.up(), flow.ours(0)));
  send_all(flow.client(), "held");
  wait_unread(flow.ours(0), 4);
  EXPECT_EQ(flow.redirected(flow.up()), 0u);
  flow.reopen(flow.up(), true);
  EXPECT_EQ(receive(flow.server(), 4), "held");
}

TEST_F(SockmapTest, ABulkDirectionLeavesTheSpliceLongBeforeItsThreshold) {
  FlowShape shape = kSlowTarget;
  shape.high_bytes = 1u << 30;
  shape.bulk_bytes = 64 << 10;
  LoopbackFlow flow(*sockmap_, 0, shape);
  flow.hand_off();
  StreamSender sender(flow.client(), 4 << 20);
  EXPECT_TRUE(within_patience([&] { return sockmap_->closed(flow.up()); }));
  EXPECT_GE(direction(flow.up()).backlog, 64u << 10);
  EXPECT_LT(direction(flow.up()).charged, 1u << 20);
  flow.check_account(flow.up(), false);
  sender.stop();
}

TEST_F(SockmapTest, PortionsThatAreTakenAtOnceStayInTheSplice) {
  FlowShape shape;
  shape.bulk_bytes = 64 << 10;
  LoopbackFlow flow(*sockmap_, 0, shape);
  flow.hand_off();
  for (int i = 0; i < 200; i++) {
    send_all(flow.client(), std::string(32 << 10, 'p'));
    receive(flow.server(), 32 << 10);
  }
  EXPECT_FALSE(sockmap_->closed(flow.up()));
}

TEST_F(SockmapTest, TargetThatIsNotThereBreaksTheFlowLoudly) {
  LoopbackFlow flow(*sockmap_, 0);
  uint64_t cookies[2] = {flow.cookie(0), flow.cookie(1)};
  ASSERT_EQ(sockmap_->take(0, 0, cookies, {1 << 20, 1 << 20, 1 << 20}), 0);
  ASSERT_EQ(sockmap_->open_valve(flow.up(), flow.ours(0), true), 0);  // nobody joined
  send_all(flow.client(), "lost");
  wait_for(sockmap_->event_fd(0), POLLIN, "the event");
  auto came = events(0);
  ASSERT_EQ(came.size(), 1u);
  EXPECT_EQ(came[0].kind, PENSTOCK_EVENT_BROKEN);
  EXPECT_EQ(direction(flow.up()).broken, PENSTOCK_BROKEN_TARGET_GONE);
  EXPECT_EQ(flow.redirected(flow.up()), 0u);
  sockmap_->leave(0, cookies);
}

TEST_F(SockmapTest, ASlotCanBeTakenAgain) {
  for (int life = 0; life < 3; life++) {
    LoopbackFlow flow(*sockmap_, 0, kSlowTarget);
    flow.hand_off();
    EXPECT_EQ(flow.redirected(flow.up()), 0u);
    send_all(flow.client(), "life");
    EXPECT_EQ(receive(flow.server(), 4), "life");
    EXPECT_EQ(flow.redirected(flow.up()), 4u);
  }
}

}  // namespace
}  // namespace penstock::sockmap
