// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <tuple>

#include "sockmap/loopback_flow.h"
#include "sockmap/loopback_stream.h"
#include "sockmap/probe_checks.h"
#include "sockmap/raw_overlap.h"

namespace penstock::sockmap {
namespace {

std::string splice_both_ways(Sockmap& sockmap, uint32_t slot, bool v6) {
  LoopbackFlow flow(sockmap, slot, {.v6 = v6});
  flow.hand_off();
  std::string question(1024, '?'), answer(1024, '!');
  send_all(flow.client(), question);
  require(receive(flow.server(), question.size()) == question, "1 KiB came out changed");
  send_all(flow.server(), answer);
  require(receive(flow.client(), answer.size()) == answer, "1 KiB back came out changed");
  require(flow.redirected(flow.up()) == question.size() && flow.redirected(flow.down()) == answer.size(),
          "the verdict counted wrong");
  return "";
}

}  // namespace

std::string check_splice(Sockmap& sockmap, uint32_t slot) {
  return splice_both_ways(sockmap, slot, false);
}
std::string check_splice_v6(Sockmap& sockmap, uint32_t slot) {
  return splice_both_ways(sockmap, slot, true);
}

std::string check_kick(Sockmap& sockmap, uint32_t slot) {
  LoopbackFlow flow(sockmap, slot);
  send_all(flow.client(), "before ");
  wait_unread(flow.ours(0), 7);
  flow.hand_off();
  send_all(flow.client(), "after");
  require(receive(flow.server(), 12) == "before after",
          "what arrived before the insertion came late, changed or not at all");
  return "";
}

// The target takes 8 KiB of a 64 KiB segment at a time: kernels of mid-2023 to June 2025 begin again at its
// start.
std::string check_partial_send(Sockmap& sockmap, uint32_t slot) {
  constexpr uint64_t kBytes = 128 << 10;
  auto start = std::chrono::steady_clock::now();
  LoopbackFlow flow(sockmap, slot,
                    {.target_send_buffer_bytes = 8 << 10, .server_receive_buffer_bytes = 16 << 10});
  flow.hand_off();
  StreamReader reader(flow.server());
  StreamSender sender(flow.client(), kBytes);
  sender.finish();
  half_close(flow.client());
  wait_for(flow.ours(0), POLLRDHUP, "the FIN");
  flow.check_account(flow.up(), true);
  flow.wait_written(flow.up());
  half_close(flow.ours(1));
  uint64_t received = reader.finish();
  require(received == kBytes, fmt::format("{} bytes sent, {} received", kBytes, received));
  auto took = std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - start);
  return fmt::format("{} KiB in {} ms", kBytes >> 10, took.count());
}

// The kernel's numbers on both sockets against the verdict's, with bytes spliced, unread and a FIN.
std::string check_accounts(Sockmap& sockmap, uint32_t slot) {
  constexpr size_t kSpliced = 100'000, kHeld = 5'000;
  LoopbackFlow flow(sockmap, slot);
  flow.hand_off();
  for (auto [from, to, index] : {std::tuple{flow.client(), flow.server(), flow.up()},
                                 std::tuple{flow.server(), flow.client(), flow.down()}}) {
    send_all(from, std::string(kSpliced, 's'));
    receive(to, kSpliced);
    uint64_t redirected = flow.redirected(index), written = flow.written(index);
    require(redirected == kSpliced, fmt::format("{} bytes sent, {} redirected", kSpliced, redirected));
    require(written == kSpliced, fmt::format("{} bytes delivered, {} counted as written", kSpliced, written));
    flow.close_valve(index);
    send_all(from, std::string(kHeld, 'h'));
    int source = flow.ours(static_cast<int>(index & 1));
    wait_unread(source, kHeld);
    flow.check_account(index, false);
    half_close(from);
    wait_for(source, POLLRDHUP, "the FIN");
    flow.check_account(index, true);
  }
  return "";
}

std::string check_overlap(Sockmap& sockmap, uint32_t slot) {
  LoopbackFlow flow(sockmap, slot);
  send_all(flow.client(), "01234567");
  wait_unread(flow.ours(0), 8);
  require(receive(flow.ours(0), 3) == "012", "loopback changed bytes");
  flow.hand_off();
  send_all(flow.client(), "89");
  require(receive(flow.server(), 7) == "3456789", "bytes that userspace had read were delivered again");
  if (!inject_overlap(flow.client(), 4, "6789ABCDEF"))
    return "by a partly read segment; sending an overlapping one needs CAP_NET_RAW";
  require(receive(flow.server(), 6) == "ABCDEF", "the overlap of two segments was delivered twice");
  return "";
}

// Sixteen pieces of different pages leave as one segment of sixteen fragments.
std::string check_pull(Sockmap& sockmap, uint32_t slot) {
  constexpr size_t kPieces = 16, kPieceBytes = 512, kApart = 2 * kPieceBytes, kPageBytes = 4096;
  LoopbackFlow flow(sockmap, slot);
  flow.hand_off();
  // A piece that lay in two pages would take two of the pipe's sixteen slots.
  alignas(kPageBytes) char source[kPieces * kApart];
  std::string expected;
  iovec pieces[kPieces];
  for (size_t i = 0; i < kPieces; i++) {
    char* piece = source + i * kApart;
    std::fill_n(piece, kPieceBytes, static_cast<char>('a' + i));
    pieces[i] = {piece, kPieceBytes};
    expected.append(piece, kPieceBytes);
  }
  int ends[2];
  require(pipe2(ends, O_CLOEXEC) == 0, fmt::format("pipe: {}", strerror(errno)));
  Fd out(ends[0]), in(ends[1]);
  require(vmsplice(in.get(), pieces, kPieces, 0) == static_cast<ssize_t>(expected.size()), "vmsplice");
  require(::splice(out.get(), nullptr, flow.client(), nullptr, expected.size(), SPLICE_F_MORE) ==
              static_cast<ssize_t>(expected.size()),
          "splice into a socket");
  send_all(flow.client(), ".");
  require(receive(flow.server(), expected.size() + 1) == expected + ".", "a pulled segment came out changed");
  require(sockmap.globals().pulls > 0, "a segment of sixteen fragments was not pulled together");
  return "";
}

std::string check_publish(Sockmap& sockmap, uint32_t slot) {
  LoopbackFlow flow(sockmap, slot);
  penstock_publish what{};
  what.cookie = flow.cookie(0);
  require(sockmap.publish(what) == ENOENT, "publish() found a flow that is not shown");
  int error = sockmap.show(what.cookie, penstock_flow{});
  require(error == 0, fmt::format("write into flows: {}", strerror(error)));
  error = sockmap.publish(what);
  sockmap.hide(what.cookie);
  require(error == 0, fmt::format("run the syscall program: {}", strerror(error)));
  return "";
}

}  // namespace penstock::sockmap
