// SPDX-License-Identifier: Apache-2.0
#include "flow/account.h"

#include <linux/sock_diag.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

namespace penstock::flow {
namespace {

bool tcp_information(int fd, tcp_info* out) {
  socklen_t size = sizeof *out;
  return getsockopt(fd, IPPROTO_TCP, TCP_INFO, out, &size) == 0;
}

void fill(const tcp_info& information, SocketAccount* out) {
  out->state = information.tcpi_state;
  out->received_bytes = information.tcpi_bytes_received;
  out->acked_bytes = information.tcpi_bytes_acked;
  out->in_flight = information.tcpi_unacked > 0;
}

}  // namespace

bool read_received(int fd, SocketAccount* out) {
  tcp_info now{};
  if (!tcp_information(fd, &now)) return false;
  fill(now, out);
  return true;
}

bool read_account(int fd, bool opened_by_us, SocketAccount* out) {
  tcp_info before{}, after{};
  int queued = 0;
  for (bool first = true;;
       first = false) {  // ends: each round needs an ACK to arrive between two system calls
    if (ioctl(fd, SIOCOUTQ, &queued)) queued = 0;
    if (!tcp_information(fd, &after)) return false;
    // Nothing is counted twice when nothing was queued: what was acked is written.
    if (queued == 0 || (!first && after.tcpi_bytes_acked == before.tcpi_bytes_acked)) break;
    before = after;
  }
  fill(after, out);
  // Our SYN was acked like a byte.
  out->queued_bytes = static_cast<uint64_t>(queued);
  out->written_bytes = after.tcpi_bytes_acked + out->queued_bytes - (opened_by_us ? 1 : 0);
  return true;
}

uint64_t unread_bytes(int fd) {
  ssize_t n = recv(fd, nullptr, 1u << 30, MSG_PEEK | MSG_TRUNC | MSG_DONTWAIT);
  return n > 0 ? static_cast<uint64_t>(n) : 0;
}

uint32_t receive_queue_memory(int fd) {
  uint32_t memory[SK_MEMINFO_VARS] = {};
  socklen_t size = sizeof memory;
  return getsockopt(fd, SOL_SOCKET, SO_MEMINFO, memory, &size) ? 0 : memory[SK_MEMINFO_RMEM_ALLOC];
}

}  // namespace penstock::flow
