// SPDX-License-Identifier: Apache-2.0
// sockmap/loopback_flow.h: a flow for the self-test, over loopback, whose client and server are this process
// too:
//   client -> ours(0) [sockmap] ours(1) -> server
// Whatever fails or takes too long throws CheckFailed, so that a check reads as the story it tells; probe.cc
// catches it.
#pragma once
#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>

#include "base/fd.h"
#include "sockmap/sockmap.h"

namespace penstock::sockmap {

struct CheckFailed : std::runtime_error {
  using std::runtime_error::runtime_error;
};
void require(bool condition, std::string_view reason);

// Long for a loaded machine: a refused sockmap costs more than a slow start. A trimmed segment comes again
// after 0.2, 0.6, 1.4, 3, 6.2 s: under load four were not enough once in some hundred starts (the last 53
// bytes were still out). And machines stand still: four self-tests in namespaces of their own have failed at
// the same moment, each for ten seconds without a byte.
inline constexpr std::chrono::milliseconds kProbePatience{20'000};

// For what announces itself by no event (a counter).
template <typename Predicate>
bool within_patience(Predicate predicate) {
  for (auto deadline = std::chrono::steady_clock::now() + kProbePatience;
       std::chrono::steady_clock::now() < deadline;) {
    if (predicate()) return true;
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  return false;
}

void reset_and_close(Fd& fd);

struct FlowShape {
  bool v6 = false;
  int target_send_buffer_bytes = 0;     // SO_SNDBUF of ours(1); 0: the system's own
  int server_receive_buffer_bytes = 0;  // SO_RCVBUF of server
  uint32_t high_bytes = 1u << 30;       // never closed, never trimmed, unless a check wants it
  uint32_t bulk_bytes = 1u << 30;
  uint32_t limit_bytes = 1u << 30;
};

class LoopbackFlow {
 public:
  // Connected, not yet in the sockmap. Its events go to ring `slot`.
  LoopbackFlow(Sockmap& sockmap, uint32_t slot, const FlowShape& shape = {});
  ~LoopbackFlow();  // out of the sockmap, every end reset
  LoopbackFlow(const LoopbackFlow&) = delete;
  LoopbackFlow& operator=(const LoopbackFlow&) = delete;

  void hand_off();  // both directions into the splice, with what has arrived
  // `fresh` as in Sockmap::open_valve(); followed by the kick.
  void reopen(uint32_t index, bool fresh);
  void close_valve(uint32_t index);
  void reset_client() { reset_and_close(client_); }
  // Waits until the target has taken every redirected byte.
  void wait_written(uint32_t index) const;
  // With the valve closed: bytes_received == redirected + unread (+ 1 after a FIN).
  void check_account(uint32_t index, bool fin_came) const;

  int client() const { return client_.get(); }
  int ours(int side) const { return ours_[side].get(); }
  int server() const { return server_.get(); }
  uint64_t cookie(int side) const { return cookies_[side]; }
  uint32_t up() const { return 2 * slot_; }
  uint32_t down() const { return 2 * slot_ + 1; }
  uint64_t redirected(uint32_t index) const;
  uint64_t written(uint32_t index) const;  // by the target of `index`

 private:
  Sockmap& sockmap_;
  uint32_t slot_;
  FlowShape shape_;
  Fd client_, ours_[2], server_;
  uint64_t cookies_[2] = {};
  bool taken_ = false;
};

// Everything that tcp_sendmsg() has taken on this socket: bytes_acked + SIOCOUTQ, read at one moment. Not
// bytes_sent - bytes_retrans + notsent: a segment the local qdisc refuses is in bytes_sent twice.
uint64_t written_bytes(int fd, bool we_connected);
uint64_t received_bytes(int fd);  // tcpi_bytes_received; a FIN counts 1
uint64_t unread_bytes(int fd);

// Bytes of a blocking conversation. REQUIRES: descriptors of a LoopbackFlow (they do not block).
void send_all(int fd, std::string_view bytes);
std::string receive(int fd, size_t bytes);
short wait_for(int fd, short events, std::string_view what);  // poll(2); returns revents
void wait_unread(int fd, uint64_t bytes);
void half_close(int fd);

}  // namespace penstock::sockmap
