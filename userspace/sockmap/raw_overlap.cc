// SPDX-License-Identifier: Apache-2.0
#include "sockmap/raw_overlap.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "base/fd.h"
#include "sockmap/loopback_flow.h"

namespace penstock::sockmap {
namespace {

void require_call(int result, std::string_view call) {
  require(result >= 0, fmt::format("{}: {}", call, strerror(errno)));
}

void set_repair(int fd, int option, int value) {
  require_call(::setsockopt(fd, IPPROTO_TCP, option, &value, sizeof value), "TCP_REPAIR");
}

uint32_t next_sequence(int fd, int queue) {
  set_repair(fd, TCP_REPAIR_QUEUE, queue);
  uint32_t sequence = 0;
  socklen_t length = sizeof sequence;
  require_call(::getsockopt(fd, IPPROTO_TCP, TCP_QUEUE_SEQ, &sequence, &length), "TCP_QUEUE_SEQ");
  return sequence;
}

// RFC 1071, of bytes in network order; the result is in host order.
uint16_t checksum(std::string_view bytes) {
  uint32_t sum = 0;
  for (size_t i = 0; i < bytes.size(); i++)
    sum += static_cast<uint32_t>(static_cast<uint8_t>(bytes[i])) << (i & 1 ? 0 : 8);
  while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<uint16_t>(~sum);
}

template <typename T>
std::string_view raw(const T& object) {
  return {reinterpret_cast<const char*>(&object), sizeof object};
}

}  // namespace

bool inject_overlap(int fd, uint32_t overlap_bytes, std::string_view payload) {
  Fd socket(::socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_TCP));  // the kernel writes the IP header
  if (!socket.valid()) {
    require(errno == EPERM, fmt::format("raw socket: {}", strerror(errno)));
    return false;
  }
  sockaddr_in from{}, to{};
  socklen_t length = sizeof from;
  require_call(::getsockname(fd, reinterpret_cast<sockaddr*>(&from), &length), "getsockname");
  require_call(::getpeername(fd, reinterpret_cast<sockaddr*>(&to), &length), "getpeername");

  set_repair(fd, TCP_REPAIR, TCP_REPAIR_ON);
  uint32_t send_next = next_sequence(fd, TCP_SEND_QUEUE), receive_next = next_sequence(fd, TCP_RECV_QUEUE);
  set_repair(fd, TCP_REPAIR, TCP_REPAIR_OFF_NO_WP);

  tcphdr header{};
  header.source = from.sin_port;
  header.dest = to.sin_port;
  header.seq = htonl(send_next - overlap_bytes);
  header.ack_seq = htonl(receive_next);
  header.doff = sizeof header / 4;
  header.psh = header.ack = 1;
  header.window = htons(512);
  uint16_t tcp_bytes = htons(static_cast<uint16_t>(sizeof header + payload.size()));
  std::string pseudo_header;
  pseudo_header.append(raw(from.sin_addr)).append(raw(to.sin_addr)).append("\0\6", 2).append(raw(tcp_bytes));
  header.check = htons(checksum(pseudo_header.append(raw(header)).append(payload)));

  std::string segment = std::string(raw(header)).append(payload);
  to.sin_port = 0;
  require_call(static_cast<int>(::sendto(socket.get(), segment.data(), segment.size(), 0,
                                         reinterpret_cast<const sockaddr*>(&to), sizeof to)),
               "send a raw segment");
  return true;
}

}  // namespace penstock::sockmap
