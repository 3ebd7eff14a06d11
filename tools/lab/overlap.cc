// SPDX-License-Identifier: Apache-2.0
#include "overlap.h"

#include <netinet/in.h>

#include <cstddef>
#include <span>

namespace penstock::lab {
namespace {

constexpr size_t kIpBytes = 20, kTcpBytes = 20;
constexpr size_t kIpLength = 2, kIpFragment = 6, kIpProtocol = 9, kIpChecksum = 10, kIpAddresses = 12;
constexpr size_t kTcpSequence = 4, kTcpOffset = 12, kTcpFlags = 13, kTcpChecksum = 16;
constexpr uint8_t kFin = 0x01, kSyn = 0x02, kRst = 0x04, kUrg = 0x20;

uint32_t load(const uint8_t* at, size_t bytes) {
  uint32_t value = 0;
  for (size_t i = 0; i < bytes; ++i) value = value << 8 | at[i];
  return value;
}

void store(uint8_t* at, size_t bytes, uint32_t value) {
  for (size_t i = bytes; i-- > 0; value >>= 8) at[i] = static_cast<uint8_t>(value);
}

uint16_t checksum(std::span<const uint8_t> bytes, uint64_t sum) {  // RFC 1071
  for (size_t i = 0; i < bytes.size(); ++i) sum += i % 2 ? bytes[i] : bytes[i] << 8;
  while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<uint16_t>(~sum);
}

struct Headers {
  size_t ip = 0, all = 0;  // bytes; 0: not what can be cut
};

Headers measure(const Packet& p) {
  if (p.size() < kIpBytes + kTcpBytes || p[0] >> 4 != 4 || p[kIpProtocol] != IPPROTO_TCP) return {};
  const size_t ip = (p[0] & 15u) * 4;
  if (ip < kIpBytes || p.size() < ip + kTcpBytes || load(&p[kIpLength], 2) != p.size()) return {};
  if (load(&p[kIpFragment], 2) & 0x3fff) return {};
  const size_t all = ip + (p[ip + kTcpOffset] >> 4) * 4u;
  if (p.size() < all + 3 || (p[ip + kTcpFlags] & (kSyn | kRst | kUrg))) return {};
  return {ip, all};
}

Packet part(const Packet& p, Headers headers, size_t from, size_t to) {
  Packet out(p.begin(), p.begin() + static_cast<ptrdiff_t>(headers.all));
  const uint8_t* payload = p.data() + headers.all;
  out.insert(out.end(), payload + from, payload + to);
  uint8_t* ip = out.data();
  uint8_t* tcp = ip + headers.ip;
  store(ip + kIpLength, 2, static_cast<uint32_t>(out.size()));
  store(ip + kIpChecksum, 2, 0);
  store(ip + kIpChecksum, 2, checksum({ip, headers.ip}, 0));
  store(tcp + kTcpSequence, 4, load(tcp + kTcpSequence, 4) + static_cast<uint32_t>(from));
  if (headers.all + to < p.size()) tcp[kTcpFlags] = static_cast<uint8_t>(tcp[kTcpFlags] & ~kFin);
  store(tcp + kTcpChecksum, 2, 0);
  const size_t tcp_bytes = out.size() - headers.ip;
  uint64_t pseudo_header = IPPROTO_TCP + tcp_bytes;
  for (size_t i = 0; i < 8; i += 2) pseudo_header += load(ip + kIpAddresses + i, 2);
  store(tcp + kTcpChecksum, 2, checksum({tcp, tcp_bytes}, pseudo_header));
  return out;
}

}  // namespace

std::pair<Packet, Packet> cut_to_overlap(const Packet& packet) {
  const Headers headers = measure(packet);
  if (headers.all == 0) return {};
  const size_t payload = packet.size() - headers.all;
  return {part(packet, headers, 0, payload - payload / 3), part(packet, headers, payload / 3, payload)};
}

}  // namespace penstock::lab
