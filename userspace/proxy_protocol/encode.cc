// SPDX-License-Identifier: Apache-2.0
#include <arpa/inet.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "base/assert.h"
#include "proxy_protocol/proxy_protocol.h"
#include "proxy_protocol/wire.h"

namespace penstock::proxy_protocol {
namespace {

constexpr size_t kStringTlvBytesMax = 255;

std::span<const uint8_t> bytes_of(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

class Writer {
 public:
  explicit Writer(std::span<uint8_t> out) : out_(out) {}
  size_t size() const { return size_; }
  void u8(size_t value) { out_[size_++] = static_cast<uint8_t>(value); }
  void u16(size_t value) { u8(value >> 8), u8(value & 0xff); }
  void bytes(std::span<const uint8_t> from) {
    std::copy(from.begin(), from.end(), out_.begin() + static_cast<ptrdiff_t>(size_));
    size_ += from.size();
  }
  void text(std::string_view from) { bytes(bytes_of(from)); }
  void decimal(uint16_t value) {
    char digits[5];
    text({digits, std::to_chars(digits, digits + sizeof digits, value).ptr});
  }
  void tlv(uint8_t type, std::span<const uint8_t> value) {
    if (value.empty()) return;
    u8(type), u16(value.size()), bytes(value);
  }

 private:
  std::span<uint8_t> out_;
  size_t size_ = 0;
};

bool as_v4(const Outgoing& what) {
  return what.client.address.is_v4() && what.destination.address.is_v4();
}

void write_v1_address(Writer* out, const IpAddress& address, bool v4) {
  char text[INET6_ADDRSTRLEN];
  if (v4) {
    inet_ntop(AF_INET, &address.bytes[12], text, sizeof text);
    return out->text(text);
  }
  if (!address.is_v4()) {
    inet_ntop(AF_INET6, address.bytes.data(), text, sizeof text);
    return out->text(text);
  }
  // inet_ntop would end a v4-mapped address in a dotted quad, and 2.1 knows hexadecimal groups only.
  out->text("::ffff");
  for (size_t i = 12; i < 16; i += 2) {
    out->text(":");
    const int group = address.bytes[i] << 8 | address.bytes[i + 1];
    out->text({text, std::to_chars(text, text + sizeof text, group, 16).ptr});
  }
}

void write_v1(const Outgoing& what, Writer* out) {
  if (what.local) return out->text("PROXY UNKNOWN\r\n");
  const bool v4 = as_v4(what);
  out->text(v4 ? "PROXY TCP4 " : "PROXY TCP6 ");
  write_v1_address(out, what.client.address, v4);
  out->text(" ");
  write_v1_address(out, what.destination.address, v4);
  out->text(" ");
  out->decimal(what.client.port);
  out->text(" ");
  out->decimal(what.destination.port);
  out->text("\r\n");
}

void write_v2_addresses(const Outgoing& what, bool v4, Writer* out) {
  const size_t from = v4 ? 12 : 0;
  out->bytes(std::span(what.client.address.bytes).subspan(from));
  out->bytes(std::span(what.destination.address.bytes).subspan(from));
  out->u16(what.client.port);
  out->u16(what.destination.port);
}

// What of passed_on is copied.
bool is_said_otherwise(const Outgoing& what, uint8_t type) {
  return type == kTlvNoop || type == kTlvCrc32c || (type == kTlvAlpn && !what.alpn.empty()) ||
         (type == kTlvAuthority && !what.authority.empty()) ||
         (type == kTlvUniqueId && !what.unique_id.empty());
}

bool wants_crc32c(const Outgoing& what) {
  auto rest = what.passed_on;
  for (auto tlv = next_tlv(&rest); tlv; tlv = next_tlv(&rest))
    if (tlv->type == kTlvCrc32c) return true;
  return what.crc32c;
}

// The TLVs in HAProxy's order, then what is passed on.
void write_v2(const Outgoing& what, std::span<uint8_t> header, Writer* out) {
  const bool v4 = as_v4(what);
  out->bytes(kV2Signature);
  out->u8(kV2Version << 4 | (what.local ? kCommandLocal : kCommandProxy));
  out->u8(what.local ? kUnspecified : v4 ? kTcp4 : kTcp6);
  out->u16(0);  // the length, once known
  if (!what.local) write_v2_addresses(what, v4, out);
  size_t crc_at = 0;
  const bool crc32c_wanted = wants_crc32c(what);
  if (crc32c_wanted) {
    out->tlv(kTlvCrc32c, std::array<uint8_t, kCrc32cBytes>{});
    crc_at = out->size() - kCrc32cBytes;
  }
  out->tlv(kTlvAlpn, bytes_of(what.alpn));
  out->tlv(kTlvAuthority, bytes_of(what.authority));
  out->tlv(kTlvUniqueId, what.unique_id);
  auto rest = what.passed_on;
  for (auto tlv = next_tlv(&rest); tlv; tlv = next_tlv(&rest))
    if (!is_said_otherwise(what, tlv->type)) out->bytes(tlv->bytes);
  Writer(header.subspan(kV2LengthOffset)).u16(out->size() - kV2FixedBytes);
  if (!crc32c_wanted) return;
  const uint32_t crc = crc32c(header.first(out->size()));
  Writer at(header.subspan(crc_at));
  at.u16(crc >> 16), at.u16(crc & 0xffff);
}

}  // namespace

size_t encode(const Outgoing& what, std::span<uint8_t> out) {
  PENSTOCK_ASSERT(out.size() >= kHeaderBytesMax);
  PENSTOCK_ASSERT(what.authority.size() <= kStringTlvBytesMax && what.alpn.size() <= kStringTlvBytesMax);
  PENSTOCK_ASSERT(what.unique_id.size() <= kUniqueIdBytesMax && what.passed_on.size() <= kPassedOnBytesMax);
  Writer writer(out);
  switch (what.version) {
    case Version::v1:
      write_v1(what, &writer);
      break;
    case Version::v2:
      write_v2(what, out, &writer);
      break;
  }
  return writer.size();
}

}  // namespace penstock::proxy_protocol
