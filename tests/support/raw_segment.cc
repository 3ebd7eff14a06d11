// SPDX-License-Identifier: Apache-2.0
#include "support/raw_segment.h"

#include <arpa/inet.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <system_error>

namespace penstock::test {
namespace {

[[noreturn]] void fail(const char* what) {
  throw std::system_error(errno, std::generic_category(), what);
}

// linux/tcp.h has these, but clashes with netinet/tcp.h.
constexpr int kRepairOffWithoutProbe = -1;
enum RepairQueue { kReceiveQueue = 1, kSendQueue = 2 };

void set(int fd, int option, int value) {
  if (::setsockopt(fd, IPPROTO_TCP, option, &value, sizeof value) != 0) fail("TCP_REPAIR");
}

uint32_t queue_sequence(int fd, RepairQueue queue) {
  set(fd, TCP_REPAIR_QUEUE, queue);
  uint32_t sequence = 0;
  socklen_t size = sizeof sequence;
  if (::getsockopt(fd, IPPROTO_TCP, TCP_QUEUE_SEQ, &sequence, &size) != 0) fail("TCP_QUEUE_SEQ");
  return sequence;
}

// RFC 1071.
uint16_t checksum(const std::string& bytes) {
  uint32_t sum = 0;
  for (size_t i = 0; i < bytes.size(); i += 2) {
    sum += static_cast<uint32_t>(static_cast<uint8_t>(bytes[i]) << 8);
    if (i + 1 < bytes.size()) sum += static_cast<uint8_t>(bytes[i + 1]);
  }
  while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
  return htons(static_cast<uint16_t>(~sum));
}

template <typename T>
std::string raw(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

in_addr v4_of(const Endpoint& e) {
  in_addr a;
  std::memcpy(&a, &e.address.bytes[12], sizeof a);
  return a;
}

}  // namespace

RawSegments::RawSegments() : raw_(::socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW)) {
  if (!raw_.valid()) fail("raw socket");
}

void RawSegments::inject(const TcpStream& stream, int32_t shift, std::string_view payload) const {
  const int fd = stream.fd();
  set(fd, TCP_REPAIR, 1);
  const uint32_t next_sent = queue_sequence(fd, kSendQueue);
  const uint32_t next_received = queue_sequence(fd, kReceiveQueue);
  set(fd, TCP_REPAIR, kRepairOffWithoutProbe);

  const Endpoint from = stream.local(), to = stream.peer();
  tcphdr tcp{};
  tcp.source = htons(from.port);
  tcp.dest = htons(to.port);
  tcp.seq = htonl(next_sent + static_cast<uint32_t>(shift));
  tcp.ack_seq = htonl(next_received);
  tcp.doff = sizeof tcp / 4;
  tcp.psh = tcp.ack = 1;
  tcp.window = htons(512);
  const uint16_t length = htons(static_cast<uint16_t>(sizeof tcp + payload.size()));
  const std::string pseudo = raw(v4_of(from)) + raw(v4_of(to)) + std::string("\0\6", 2) + raw(length);
  tcp.check = checksum(pseudo + raw(tcp) + std::string(payload));

  iphdr ip{};
  ip.version = 4;
  ip.ihl = sizeof ip / 4;
  ip.ttl = 64;
  ip.protocol = IPPROTO_TCP;
  ip.saddr = v4_of(from).s_addr;
  ip.daddr = v4_of(to).s_addr;
  const std::string packet =
      raw(ip) + raw(tcp) + std::string(payload);  // the kernel fills length, id and checksum
  sockaddr_storage target;
  Endpoint no_port = to;
  no_port.port = 0;
  const socklen_t size = no_port.to_sockaddr(&target);
  if (::sendto(raw_.get(), packet.data(), packet.size(), 0, reinterpret_cast<sockaddr*>(&target), size) < 0) {
    fail("raw sendto");
  }
}

}  // namespace penstock::test
