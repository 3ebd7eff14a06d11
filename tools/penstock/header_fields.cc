// SPDX-License-Identifier: Apache-2.0
#include "header_fields.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/assert.h"
#include "base/endpoint.h"
#include "base/log.h"
#include "proxy_protocol/proxy_protocol.h"
#include "proxy_protocol/wire.h"

namespace penstock::command {
namespace {

using namespace proxy_protocol;

constexpr size_t kBytesPerLine = 16;

unsigned u16(std::span<const uint8_t> bytes) {
  return static_cast<unsigned>(bytes[0]) << 8 | bytes[1];
}

std::string address_text(std::span<const uint8_t> bytes) {
  IpAddress address = bytes.size() == 4 ? IpAddress::v4(0) : IpAddress{};
  std::copy(bytes.begin(), bytes.end(), address.bytes.end() - static_cast<ptrdiff_t>(bytes.size()));
  return address.text();
}

const char* tlv_name(uint8_t type) {
  switch (type) {
    case kTlvAlpn:
      return "ALPN";
    case kTlvAuthority:
      return "AUTHORITY";
    case kTlvCrc32c:
      return "CRC32C";
    case kTlvUniqueId:
      return "UNIQUE_ID";
  }
  return "unknown";
}

class Walk {
 public:
  explicit Walk(std::span<const uint8_t> header) : rest_(header) {}
  bool at_end() const { return rest_.empty(); }
  void take(size_t size, std::string meaning, bool known = true) {
    PENSTOCK_ASSERT(size <= rest_.size());
    fields.push_back({offset_, rest_.first(size), std::move(meaning), known});
    offset_ += size;
    rest_ = rest_.subspan(size);
  }
  std::span<const uint8_t> next(size_t size) const { return rest_.first(size); }
  std::vector<HeaderField> fields;

 private:
  std::span<const uint8_t> rest_;
  size_t offset_ = 0;
};

std::string value_text(uint8_t type, std::span<const uint8_t> value, bool unique_id_known) {
  if (type == kTlvUniqueId && !unique_id_known) return "placeholder: each flow has its own";
  if (type != kTlvCrc32c)
    return "\"" + log::escaped({reinterpret_cast<const char*>(value.data()), value.size()}) + "\"";
  return std::string("of the whole header with these four bytes zero") +
         (unique_id_known ? "" : ": not known, as UNIQUE_ID is not");
}

std::string part(const HeaderField& field, size_t at, size_t size, const char* between) {
  if (field.known) return hexadecimal(field.bytes.subspan(at, size), between);
  std::string out = "??";
  for (size_t i = 1; i < size; i++) out += std::string(between) + "??";
  return out;
}

}  // namespace

std::vector<HeaderField> header_fields(std::span<const uint8_t> header, bool unique_id_known) {
  Walk walk(header);
  walk.take(kV2Signature.size(), "signature");
  const uint8_t command = walk.next(1)[0] & 0xf;
  walk.take(1, fmt::format("version 2, command {}", command == kCommandProxy ? "PROXY" : "LOCAL"));
  const uint8_t family = walk.next(1)[0];
  walk.take(1, family == kTcp4 ? "TCP over IPv4" : family == kTcp6 ? "TCP over IPv6" : "unspecified");
  walk.take(2, fmt::format("{} bytes follow", u16(walk.next(2))));
  if (family != kUnspecified) {
    const size_t size = family == kTcp4 ? 4 : 16;
    walk.take(size, "source address " + address_text(walk.next(size)));
    walk.take(size, "destination address " + address_text(walk.next(size)));
    walk.take(2, fmt::format("source port {}", u16(walk.next(2))));
    walk.take(2, fmt::format("destination port {}", u16(walk.next(2))));
  }
  while (!walk.at_end()) {
    const uint8_t type = walk.next(1)[0];
    walk.take(1, fmt::format("TLV 0x{:02x}, {}", type, tlv_name(type)));
    const size_t size = u16(walk.next(2));
    walk.take(2, fmt::format("{} bytes", size));
    if (size == 0) continue;
    const bool known = unique_id_known || (type != kTlvUniqueId && type != kTlvCrc32c);
    walk.take(size, value_text(type, walk.next(size), unique_id_known), known);
  }
  return std::move(walk.fields);
}

std::string hexadecimal(const HeaderField& field) {
  return part(field, 0, field.bytes.size(), "");
}

std::string hexadecimal(std::span<const uint8_t> bytes, const char* between) {
  std::string out;
  for (const uint8_t byte : bytes) out += fmt::format("{}{:02x}", out.empty() ? "" : between, byte);
  return out;
}

std::string header_dump(const std::vector<HeaderField>& fields) {
  std::string out;
  for (const HeaderField& field : fields) {
    for (size_t at = 0; at < field.bytes.size(); at += kBytesPerLine) {
      const size_t size = std::min(kBytesPerLine, field.bytes.size() - at);
      std::string text = fmt::format("  {:04x}  {:<{}}  {}", field.offset + at, part(field, at, size, " "),
                                     3 * kBytesPerLine - 1, at == 0 ? field.meaning : "");
      text.erase(text.find_last_not_of(' ') + 1);
      out += text + "\n";
    }
  }
  return out;
}

}  // namespace penstock::command
