// SPDX-License-Identifier: Apache-2.0
// flow/socket_options.h: what both legs of a flow are set to. Accepted sockets inherit it from their
// listener.
#pragma once
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstdint>

namespace penstock::flow {

// Keepalive after `keepalive_ms` of silence, five probes in as long again; TCP_USER_TIMEOUT says the same of
// data nobody acknowledges, and of a window that stays shut.
inline void set_keepalive(int fd, uint32_t keepalive_ms) {
  constexpr uint32_t kIdleMaxS = 32'767;  // net/tcp.h: MAX_TCP_KEEPIDLE
  int one = 1, idle_s = static_cast<int>(std::clamp(keepalive_ms / 1000, 1u, kIdleMaxS)), count = 5;
  int interval_s = std::max(1, idle_s / count);
  unsigned user_timeout_ms = 2 * std::clamp(keepalive_ms, 1000u, kIdleMaxS * 1000);
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
  setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &user_timeout_ms, sizeof user_timeout_ms);
}

// What is handed on is sent on. Neither SO_SNDBUF, SO_RCVBUF nor TCP_NOTSENT_LOWAT: the sockmap's worker
// sleeps a jiffy whenever the target's buffer is full, so a small buffer is a slow flow.
inline void set_no_delay(int fd) {
  int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

// tcp(7): off, an ACK may wait for data to go with; the kernel turns it on again by itself.
inline void set_quick_ack(int fd, bool on) {
  int value = on;
  setsockopt(fd, IPPROTO_TCP, TCP_QUICKACK, &value, sizeof value);
}

}  // namespace penstock::flow
