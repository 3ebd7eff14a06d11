// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <poll.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "sockmap/loopback_flow.h"
#include "sockmap/loopback_stream.h"
#include "sockmap/probe_checks.h"

namespace penstock::sockmap {
namespace {

// Truesize of the largest segment loopback makes, with its head; BIG TCP is not on by default.
constexpr uint32_t kSegmentBytes = 96 << 10;

bool closed_event_came(Sockmap& sockmap, uint32_t slot, uint32_t index) {
  bool came = false;
  sockmap.consume(slot, [&](const penstock_event& e) {
    came |=
        e.kind == PENSTOCK_EVENT_CLOSED && e.direction == index && e.epoch == sockmap.direction(index).epoch;
  });
  return came;
}

// Lets a direction that the kernel has closed go on once its target has caught up.
void reopen_if_closed(Sockmap& sockmap, LoopbackFlow& flow, uint32_t index) {
  if (!sockmap.closed(index)) return;
  flow.wait_written(index);
  flow.check_account(index, false);
  flow.reopen(index, true);
}

// Until `bytes` have arrived. The event ring is only a reason to look sooner.
void deliver(Sockmap& sockmap, uint32_t slot, LoopbackFlow& flow, uint32_t index, StreamReader& reader,
             uint64_t bytes) {
  auto deadline = std::chrono::steady_clock::now() + kProbePatience;
  while (reader.received() < bytes && !reader.failed()) {
    require(std::chrono::steady_clock::now() < deadline,
            fmt::format("{} bytes sent, {} received", bytes, reader.received()));
    reopen_if_closed(sockmap, flow, index);
    pollfd p{sockmap.event_fd(slot), POLLIN, 0};
    ::poll(&p, 1, 1);
    sockmap.consume(slot, [](const penstock_event&) {});
  }
}

}  // namespace

// bpf_map_delete_elem() from userspace loses what a running verdict loop still finds; so must this not. Both
// directions are loaded, because then the verdict also runs in release_sock() of whoever sends.
std::string check_valve(Sockmap& sockmap, uint32_t slot) {
  // As many as a loaded machine does in a second, where each may wait for its turn on a CPU several times.
  constexpr int kCyclesMin = 60, kCyclesMax = 300;
  constexpr std::chrono::seconds kLong{1};
  constexpr uint32_t kHighBytes = 1 << 20;
  LoopbackFlow flow(sockmap, slot, {.high_bytes = kHighBytes});
  flow.hand_off();
  StreamReader up_reader(flow.server()), down_reader(flow.client());
  StreamSender up_sender(flow.client(), UINT64_MAX, &up_reader),
      down_sender(flow.server(), UINT64_MAX, &down_reader);
  const auto start = std::chrono::steady_clock::now();
  int cycles = 0;
  for (; cycles < kCyclesMax; cycles++) {
    if (cycles >= kCyclesMin && std::chrono::steady_clock::now() > start + kLong) break;
    uint32_t index = cycles & 1 ? flow.up() : flow.down();
    flow.close_valve(index);
    flow.check_account(index, false);
    uint64_t redirected = flow.redirected(index);
    bool fresh = cycles % 8 < 2 || redirected - flow.written(index) > kHighBytes;
    if (fresh) flow.wait_written(index);
    flow.reopen(index, fresh);
    require(within_patience([&] { return flow.redirected(index) > redirected; }),
            "nothing flows after reopening");
  }
  up_sender.stop();
  down_sender.stop();
  deliver(sockmap, slot, flow, flow.up(), up_reader, up_sender.finish());
  deliver(sockmap, slot, flow, flow.down(), down_reader, down_sender.finish());
  half_close(flow.ours(0));
  half_close(flow.ours(1));
  uint64_t bytes = up_reader.finish() + down_reader.finish();
  require(bytes == flow.redirected(flow.up()) + flow.redirected(flow.down()),
          "more bytes arrived than were redirected");
  return fmt::format("{} cycles, {} MiB", cycles, bytes >> 20);
}

std::string check_kernel_close(Sockmap& sockmap, uint32_t slot) {
  constexpr uint32_t kHighBytes = 128 << 10;
  constexpr uint64_t kBytes = 512 << 10;
  LoopbackFlow flow(sockmap, slot,
                    {.target_send_buffer_bytes = 32 << 10,
                     .server_receive_buffer_bytes = 32 << 10,
                     .high_bytes = kHighBytes});
  flow.hand_off();
  StreamSender sender(flow.client(), kBytes);
  wait_for(sockmap.event_fd(slot), POLLIN, "the kernel to close the valve at its threshold");
  require(closed_event_came(sockmap, slot, flow.up()), "the event names another direction");
  require(within_patience([&] { return sockmap.closed(flow.up()); }),
          "the event came, but the valve is open");
  uint32_t held = sockmap.direction(flow.up()).charged;
  require(held <= kHighBytes + 2 * kSegmentBytes,
          fmt::format("{} bytes held at a threshold of {}", held, kHighBytes));
  flow.check_account(flow.up(), false);
  StreamReader reader(flow.server());
  deliver(sockmap, slot, flow, flow.up(), reader, kBytes);
  sender.finish();
  half_close(flow.ours(1));
  require(reader.finish() == kBytes, "more bytes arrived than were sent");
  return fmt::format("{} KiB held at {} KiB", held >> 10, kHighBytes >> 10);
}

// The limit holds several segments, so that what TCP sends again finds room: else each of them may be trimmed
// in its turn, and TCP waits twice as long for every one.
std::string check_trim(Sockmap& sockmap, uint32_t slot) {
  constexpr uint32_t kLimitBytes = 4 * kSegmentBytes;
  constexpr uint64_t kBytes = 10 * (64 << 10);
  LoopbackFlow flow(sockmap, slot,
                    {.target_send_buffer_bytes = 16 << 10,
                     .server_receive_buffer_bytes = 16 << 10,
                     .limit_bytes = kLimitBytes});
  flow.hand_off();
  const penstock_direction& d = sockmap.direction(flow.up());
  StreamSender sender(flow.client(), kBytes);
  require(within_patience([&] { return d.trimmed > 0; }), "nothing is trimmed beyond the limit");
  uint32_t held = d.charged;
  require(held <= kLimitBytes + 2 * kSegmentBytes,
          fmt::format("{} bytes held at a limit of {}", held, kLimitBytes));
  StreamReader reader(flow.server());
  deliver(sockmap, slot, flow, flow.up(), reader, kBytes);
  sender.finish();
  half_close(flow.ours(1));
  require(reader.finish() == kBytes, "more bytes arrived than were sent");
  return fmt::format("{} KiB held at {} KiB, {} segments trimmed", held >> 10, kLimitBytes >> 10, d.trimmed);
}

}  // namespace penstock::sockmap
