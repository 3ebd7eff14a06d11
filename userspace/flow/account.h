// SPDX-License-Identifier: Apache-2.0
// flow/account.h: what the kernel itself says a socket has received and taken. Of one direction, at rest:
//   received(source) - FIN - unread - discarded header == written(target) - header sent + bytes in the pipe
// Nothing here counts what we did: a byte that we or the sockmap lost shows.
#pragma once
#include <cstdint>

namespace penstock::flow {

struct SocketAccount {
  uint8_t state = 0;            // TCP_ESTABLISHED.. (net/tcp_states.h)
  uint64_t received_bytes = 0;  // in order, whether read or not; a FIN counts one
  uint64_t acked_bytes = 0;     // by the peer
  uint64_t written_bytes = 0;   // taken from us by the socket, whether sent or not
  uint64_t queued_bytes = 0;    // of these, not yet acked
  bool in_flight = false;       // some of these are sent; not so what a closed window holds back
};

// `opened_by_us`: the socket did the connect(2). False only when `fd` is no TCP socket.
// written is bytes_acked + write_seq - snd_una, not bytes_sent - bytes_retrans + notsent: a segment that the
// local queueing discipline refused counts in bytes_sent twice (net/ipv4/tcp_output.c, __tcp_transmit_skb).
// While the sockmap writes, less than the truth by what it wrote during the call; never more.
// REQUIRES: no shutdown(SHUT_WR) of ours yet, for written_bytes: our FIN would count.
bool read_account(int fd, bool opened_by_us, SocketAccount* out);
// The same without what was written: one system call instead of two, or three while something is queued.
bool read_received(int fd, SocketAccount* out);

// Bytes in the receive queue. By MSG_PEEK | MSG_TRUNC: SIOCINQ lies on sockmapped sockets of some kernels.
uint64_t unread_bytes(int fd);

// The memory (truesize) of the receive queue.
uint32_t receive_queue_memory(int fd);

}  // namespace penstock::flow
