// SPDX-License-Identifier: Apache-2.0
#include "support/raw_segment.h"

#include <arpa/inet.h>
#include <linux/sockios.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
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

// REQUIRES: TCP_REPAIR is on.
RawSegments::Sequence RawSegments::sequence(const TcpStream& stream) {
  return {queue_sequence(stream.fd(), kSendQueue), queue_sequence(stream.fd(), kReceiveQueue)};
}

void RawSegments::inject(const TcpStream& stream, int32_t shift, std::string_view payload) const {
  set(stream.fd(), TCP_REPAIR, 1);
  Sequence where = sequence(stream);
  set(stream.fd(), TCP_REPAIR, kRepairOffWithoutProbe);
  where.next_sent += static_cast<uint32_t>(shift);
  send_raw(stream, where, payload);
}

void RawSegments::repeat_with_fin(const TcpStream& stream, std::string_view last_sent) const {
  set(stream.fd(), TCP_REPAIR, 1);
  Sequence where = sequence(stream);
  set(stream.fd(), TCP_REPAIR, kRepairOffWithoutProbe);
  where.next_sent -= static_cast<uint32_t>(last_sent.size());
  send_raw(stream, where, last_sent, true);
}

void RawSegments::send_as(const TcpStream& stream, std::string_view before, std::string_view chunk,
                          std::initializer_list<Segment> segments) const {
  const int fd = stream.fd();
  int unsent = 0;
  if (::ioctl(fd, SIOCOUTQNSD, &unsent) != 0) fail("SIOCOUTQNSD");
  if (unsent != 0) return stream.send_all(chunk);  // repair would take those for sent, too
  set(fd, TCP_REPAIR, 1);
  const Sequence where = sequence(stream);
  set(fd, TCP_REPAIR_QUEUE, kSendQueue);
  const ssize_t queued =
      ::send(fd, chunk.data(), chunk.size(), MSG_DONTWAIT);  // counts as sent, nothing leaves
  set(fd, TCP_REPAIR, kRepairOffWithoutProbe);
  const size_t n = queued > 0 ? static_cast<size_t>(queued) : 0;  // the send buffer may be full
  for (const Segment& s : segments) {
    std::string payload;
    if (s.from < 0) payload = before.substr(before.size() - static_cast<size_t>(-s.from));
    const size_t begin = static_cast<size_t>(std::max(s.from, 0)),
                 end = std::min(static_cast<size_t>(s.to), n);
    if (begin >= end) continue;
    payload += chunk.substr(begin, end - begin);
    send_raw(stream, {where.next_sent + static_cast<uint32_t>(s.from), where.next_received}, payload);
  }
  stream.send_all(chunk.substr(n));
}

void RawSegments::send_raw(const TcpStream& stream, Sequence where, std::string_view payload,
                           bool fin) const {
  const Endpoint from = stream.local(), to = stream.peer();
  tcphdr tcp{};
  tcp.source = htons(from.port);
  tcp.dest = htons(to.port);
  tcp.seq = htonl(where.next_sent);
  tcp.ack_seq = htonl(where.next_received);
  tcp.doff = sizeof tcp / 4;
  tcp.psh = tcp.ack = 1;
  tcp.fin = fin;
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
