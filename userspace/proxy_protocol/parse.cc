// SPDX-License-Identifier: Apache-2.0
#include <arpa/inet.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>

#include "proxy_protocol/proxy_protocol.h"
#include "proxy_protocol/wire.h"

namespace penstock::proxy_protocol {
namespace {

constexpr std::string_view kV1Signature = "PROXY ";

// The three lines version 1 knows, and the shortest each can be, with CRLF.
struct Line {
  std::string_view word;
  size_t bytes_min;
  int family;  // AF_UNSPEC: whatever follows is ignored (2.1)
};
constexpr Line kLines[] = {
    {"TCP4", std::string_view("PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n").size(), AF_INET},
    {"TCP6", std::string_view("PROXY TCP6 :: :: 0 0\r\n").size(), AF_INET6},
    {"UNKNOWN", std::string_view("PROXY UNKNOWN\r\n").size(), AF_UNSPEC},
};
constexpr size_t kV1BytesMin = kLines[2].bytes_min;

// Both say the same of every byte there is.
template <typename A, typename B>
bool agree(const A& a, const B& b) {
  const size_t size = std::min(a.size(), b.size());
  return std::equal(a.begin(), a.begin() + static_cast<ptrdiff_t>(size), b.begin());
}

size_t u16(std::span<const uint8_t> bytes, size_t at) {
  return size_t{bytes[at]} << 8 | bytes[at + 1];
}

Verdict wait_for(size_t need_bytes, Incoming* out) {
  out->need_bytes = need_bytes;
  return Verdict::need_more;
}

std::optional<IpAddress> parse_address(std::string_view text, int family) {
  std::array<char, INET6_ADDRSTRLEN> terminated{};
  if (text.size() >= terminated.size() || text.find('\0') != text.npos) return {};
  std::copy(text.begin(), text.end(), terminated.begin());
  IpAddress address;
  if (family == AF_INET) address = IpAddress::v4(0);
  void* to = family == AF_INET ? &address.bytes[12] : &address.bytes[0];
  if (inet_pton(family, terminated.data(), to) != 1) return {};
  return address;
}

std::optional<uint16_t> parse_port(std::string_view text) {
  uint16_t port = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, port);
  if (error != std::errc() || stop != end || (text.size() > 1 && text.front() == '0')) return {};
  return port;
}

// Takes the next word and the one space after it; the last word takes the rest.
std::string_view next_word(std::string_view* line) {
  const auto word = line->substr(0, line->find(' '));
  line->remove_prefix(std::min(line->size(), word.size() + 1));
  return word;
}

// `rest`: between "TCP4 " or "TCP6 " and CRLF.
bool read_v1_addresses(std::string_view rest, int family, Incoming* out) {
  const auto client = parse_address(next_word(&rest), family);
  const auto destination = parse_address(next_word(&rest), family);
  const auto client_port = parse_port(next_word(&rest));
  const auto destination_port = parse_port(rest);
  if (!client || !destination || !client_port || !destination_port) return false;
  out->client = {*client, *client_port};
  out->destination = {*destination, *destination_port};
  return true;
}

// REQUIRES: `text` begins with kV1Signature.
Verdict parse_v1(std::string_view text, Incoming* out) {
  out->version = Version::v1;
  const auto after = text.substr(kV1Signature.size());
  const auto line = std::find_if(std::begin(kLines), std::end(kLines),
                                 [after](const Line& l) { return agree(l.word, after); });
  if (line == std::end(kLines)) return Verdict::malformed;
  const size_t word_end = kV1Signature.size() + line->word.size();
  const size_t end = text.substr(0, kV1BytesMax).find("\r\n");
  if (end == text.npos) {
    const size_t bytes_min = text.size() < word_end ? kV1BytesMin : line->bytes_min;
    const size_t need_bytes = std::max(bytes_min, text.size() + (text.back() == '\r' ? 1 : 2));
    return need_bytes <= kV1BytesMax ? wait_for(need_bytes, out) : Verdict::malformed;
  }
  out->header_bytes = end + 2;
  if (end < word_end) return Verdict::malformed;
  if (line->family == AF_UNSPEC) {
    out->local = true;
    return end == word_end || text[word_end] == ' ' ? Verdict::header : Verdict::malformed;
  }
  if (text[word_end] != ' ') return Verdict::malformed;
  const auto rest = text.substr(word_end + 1, end - word_end - 1);
  return read_v1_addresses(rest, line->family, out) ? Verdict::header : Verdict::malformed;
}

// The TLVs fill their space to the last byte, and the checksum, where there is one, is right.
bool tlvs_are_sound(std::span<const uint8_t> header, size_t tlvs_at) {
  bool has_crc = false;
  for (size_t at = tlvs_at; at < header.size();) {
    if (header.size() - at < kTlvHeaderBytes) return false;
    const size_t size = u16(header, at + 1);
    const size_t value_at = at + kTlvHeaderBytes;
    if (header.size() - value_at < size) return false;
    if (header[at] == kTlvCrc32c) {
      if (has_crc || size != kCrc32cBytes) return false;
      has_crc = true;
      const uint32_t before = crc32c(header.first(value_at));
      const uint32_t blank = crc32c(std::array<uint8_t, kCrc32cBytes>{}, before);
      const uint32_t crc = crc32c(header.subspan(value_at + size), blank);
      if (crc != (u16(header, value_at) << 16 | u16(header, value_at + 2))) return false;
    }
    at = value_at + size;
  }
  return true;
}

Endpoint read_v4(std::span<const uint8_t> bytes, size_t address_at, size_t port_at) {
  Endpoint out{.address = IpAddress::v4(0), .port = static_cast<uint16_t>(u16(bytes, port_at))};
  std::copy_n(bytes.begin() + static_cast<ptrdiff_t>(address_at), 4, &out.address.bytes[12]);
  return out;
}

Endpoint read_v6(std::span<const uint8_t> bytes, size_t address_at, size_t port_at) {
  Endpoint out{.port = static_cast<uint16_t>(u16(bytes, port_at))};
  std::copy_n(bytes.begin() + static_cast<ptrdiff_t>(address_at), 16, out.address.bytes.begin());
  return out;
}

// REQUIRES: `bytes` begins with kV2Signature.
Verdict parse_v2(std::span<const uint8_t> bytes, Incoming* out) {
  if (bytes.size() < kV2FixedBytes) return wait_for(kV2FixedBytes, out);
  const uint8_t command = bytes[12] & 0xf;
  if (bytes[12] >> 4 != kV2Version || command > kCommandProxy) return Verdict::malformed;
  const uint8_t family = command == kCommandLocal ? kUnspecified : bytes[13];
  size_t address_bytes = 0;
  switch (family) {
    case kUnspecified:
      break;
    case kTcp4:
      address_bytes = kTcp4Bytes;
      break;
    case kTcp6:
      address_bytes = kTcp6Bytes;
      break;
    case kUnixStream:
      address_bytes = kUnixBytes;
      break;
    default:
      return Verdict::malformed;
  }
  out->header_bytes = kV2FixedBytes + u16(bytes, kV2LengthOffset);
  if (out->header_bytes > kIncomingBytesMax || out->header_bytes < kV2FixedBytes + address_bytes)
    return Verdict::malformed;
  if (bytes.size() < out->header_bytes) return wait_for(out->header_bytes, out);

  out->local = family == kUnspecified || family == kUnixStream;
  if (family == kUnspecified) return Verdict::header;  // 2.2: whatever is in there is skipped
  const auto header = bytes.first(out->header_bytes);
  const size_t tlvs_at = kV2FixedBytes + address_bytes;
  if (!tlvs_are_sound(header, tlvs_at)) return Verdict::malformed;
  out->tlvs = header.subspan(tlvs_at);
  if (family == kTcp4) {
    out->client = read_v4(header, 16, 24);
    out->destination = read_v4(header, 20, 26);
  } else if (family == kTcp6) {
    out->client = read_v6(header, 16, 48);
    out->destination = read_v6(header, 32, 50);
  }
  return Verdict::header;
}

Verdict parse_any(std::span<const uint8_t> bytes, Incoming* out) {
  if (agree(bytes, kV2Signature)) {
    return bytes.size() < kV2Signature.size() ? wait_for(bytes.size() + 1, out) : parse_v2(bytes, out);
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (!agree(text, kV1Signature)) return Verdict::not_proxy;
  return text.size() < kV1Signature.size() ? wait_for(bytes.size() + 1, out) : parse_v1(text, out);
}

}  // namespace

Signature signature(std::span<const uint8_t> bytes) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (!agree(bytes, kV2Signature) && !agree(text, kV1Signature)) return Signature::absent;
  const bool whole = bytes.size() >= (bytes.empty() || bytes[0] == kV2Signature[0] ? kV2Signature.size()
                                                                                   : kV1Signature.size());
  return whole ? Signature::whole : Signature::prefix;
}

std::optional<Tlv> next_tlv(std::span<const uint8_t>* tlvs) {
  if (tlvs->empty()) return {};
  const size_t size = kTlvHeaderBytes + u16(*tlvs, 1);
  const Tlv tlv = {(*tlvs)[0], tlvs->subspan(kTlvHeaderBytes, size - kTlvHeaderBytes), tlvs->first(size)};
  *tlvs = tlvs->subspan(size);
  return tlv;
}

void parse(std::span<const uint8_t> bytes, Incoming* out) {
  Incoming result;
  result.verdict = parse_any(bytes, &result);
  *out = Incoming{.verdict = result.verdict};
  if (result.verdict == Verdict::header) *out = result;
  if (result.verdict == Verdict::need_more) out->need_bytes = result.need_bytes;
}

}  // namespace penstock::proxy_protocol
