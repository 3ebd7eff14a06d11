// SPDX-License-Identifier: Apache-2.0
// torture/end_run.h: one end of one life, playing its plan on a non-blocking socket. Edge-triggered: it
// remembers what the socket last allowed and works until the socket, the plan or its turn says stop. A
// well-behaved end reads to the FIN before it closes: close() with unread data would send a RST that the plan
// does not know.
#pragma once
#include <fmt/core.h>

#include <string_view>

#include "pattern.h"
#include "registry.h"

namespace penstock::torture {

class EndRun {
 public:
  enum class After { wait, again, over };  // again: its turn is over, not its work

  EndRun(Life& life, Side side, int fd);
  // What the server read beyond the PROXY header.
  void take_early(std::string_view bytes);
  After on_events(uint32_t epoll_events);
  After go_on();  // after again, or when wake_at_ms() has come
  // When to call go_on() without an event; INT64_MAX: never.
  int64_t wake_at_ms() const { return wake_at_ms_; }
  void give_up();  // it hangs
  bool hangs(int64_t hang_ms) const;

  EndReport& report() { return report_; }
  Life& life() { return life_; }
  Side side() const { return side_; }
  int fd() const { return fd_; }
  // Bytes received and checked since the last call.
  uint64_t take_received();
  // During the stall that just ended: what the peer had sent beyond what was read here. 0 if none ended.
  uint64_t stalled_bytes() const { return stalled_bytes_; }

 private:
  bool step();  // true if anything moved
  bool read_some();
  bool write_some();
  bool maybe_shut();
  bool reset_is_due() const;
  bool try_reset();
  void fail_with(int error);
  void check(std::span<const uint8_t> bytes);
  void pass_gates();
  void take_pauses();
  uint64_t send_limit() const;
  uint64_t paced_limit() const;
  uint64_t read_limit() const;
  size_t header_piece() const;
  size_t draw_write_bytes(uint64_t most);
  bool complete() const;
  void set_wake();
  void progress(int64_t until_ms);
  template <typename... A>
  void trace(fmt::format_string<A...> format, A&&... a);

  Life& life_;
  const EndPlan& plan_;
  const Side side_;
  const int fd_;
  const Pattern own_, peers_;
  Dice dice_;
  EndReport report_;
  size_t header_sent_ = 0, header_pause_ = 0;
  bool connected_, readable_, writable_, peer_shut_ = false, over_ = false;
  size_t gate_ = 0, send_pause_ = 0, read_pause_ = 0;
  int64_t now_ms_, began_ms_, send_from_ms_ = 0, read_from_ms_ = 0, shut_ms_ = 0, wake_at_ms_ = INT64_MAX;
  uint64_t send_bytes_;  // of the plan, or frozen when send_for_ms is over
  uint64_t untold_ = 0, stalled_bytes_ = 0;
  bool in_stall_ = false;
};

}  // namespace penstock::torture
