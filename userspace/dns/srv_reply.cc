// SPDX-License-Identifier: Apache-2.0
#include "dns/srv_reply.h"

#include <algorithm>
#include <string>
#include <utility>

#include "dns/name.h"

namespace penstock::dns {
namespace {

constexpr uint32_t kTypeSrv = 33, kClassIn = 1;
constexpr size_t kNameBytesMax = 255, kLabelBytesMax = 63;  // RFC 1035 2.3.4
constexpr size_t kPointer = 0xc0;
constexpr size_t kPointersMax = 127;      // in one name: as many as it can have labels
constexpr uint32_t kTtlMax = 0x7fffffff;  // beyond: to be read as 0 (RFC 2181 8)

// Goes through a message; once it has met the end it stays failed and gives zeros.
class Reader {
 public:
  explicit Reader(std::span<const uint8_t> message) : message_(message) {}

  bool failed() const { return failed_; }
  size_t at() const { return at_; }
  void skip(size_t bytes) {
    if (bytes > message_.size() - at_) failed_ = true;
    if (!failed_) at_ += bytes;
  }
  uint32_t number(size_t bytes) {
    size_t from = at_;
    skip(bytes);
    uint32_t value = 0;
    for (; from < at_; ++from) value = value << 8 | message_[from];
    return value;
  }
  // Labels joined by dots; "" is the root. Pointers (RFC 1035 4.1.4) lead backwards, and a name has a length:
  // else 64 KiB could be made to mean gigabytes.
  std::string name() {
    std::string text;
    size_t from = at_, pointed_to = message_.size(), pointers = 0;
    size_t bytes = 1;  // the root's
    while (bytes <= kNameBytesMax && pointers <= kPointersMax && from < message_.size()) {
      const size_t length = message_[from];
      if (length >= kPointer) {
        if (from + 1 >= message_.size()) break;
        const size_t to = (length - kPointer) << 8 | message_[from + 1];
        if (pointers++ == 0) skip(2);
        if (to >= std::min(from, pointed_to)) break;
        pointed_to = from = to;
        continue;
      }
      if (length == 0) {
        if (pointers == 0) skip(1);
        return text;
      }
      if (length > kLabelBytesMax || length >= message_.size() - from) break;
      if (!text.empty()) text += '.';
      // A dot within a label separates nothing: no host name has one, nor a backslash.
      for (const uint8_t c : message_.subspan(from + 1, length))
        text += c == '.' ? '\\' : static_cast<char>(c);
      from += 1 + length;
      bytes += 1 + length;
      if (pointers == 0) skip(1 + length);
    }
    failed_ = true;
    return {};
  }

 private:
  std::span<const uint8_t> message_;
  size_t at_ = 0;
  bool failed_ = false;
};

}  // namespace

std::optional<SrvReply> parse_srv_reply(std::span<const uint8_t> message) {
  Reader reader(message);
  SrvReply reply;
  uint32_t ttl_s = kTtlMax;
  reader.skip(4);  // id, flags
  uint32_t questions = reader.number(2), answers = reader.number(2);
  reader.skip(4);  // the counts of the sections behind the answers
  for (; questions > 0 && !reader.failed(); --questions) {
    reader.name();
    reader.skip(4);  // type, class
  }
  for (; answers > 0 && !reader.failed(); --answers) {
    reader.name();
    uint32_t type = reader.number(2), dns_class = reader.number(2), ttl = reader.number(4);
    uint32_t data_bytes = reader.number(2);
    size_t data = reader.at();
    ttl_s = std::min(ttl_s, ttl > kTtlMax ? 0 : ttl);
    if (type != kTypeSrv || dns_class != kClassIn) {
      reader.skip(data_bytes);
      continue;
    }
    SrvTarget target;
    target.priority = static_cast<uint16_t>(reader.number(2));
    target.weight = static_cast<uint16_t>(reader.number(2));
    target.port = static_cast<uint16_t>(reader.number(2));
    std::string host = reader.name();
    if (reader.failed() || reader.at() != data + data_bytes) return std::nullopt;
    reply.no_service |= host.empty();
    auto name = canonical(host);
    if (!name || target.port == 0) continue;
    target.host = std::move(*name);
    reply.targets.push_back(std::move(target));
  }
  if (reader.failed()) return std::nullopt;
  std::sort(reply.targets.begin(), reply.targets.end());
  reply.targets.erase(std::unique(reply.targets.begin(), reply.targets.end()), reply.targets.end());
  if (reply.targets.size() > kTargetsMax) reply.targets.resize(kTargetsMax);
  reply.ttl = std::chrono::seconds(ttl_s);
  return reply;
}

}  // namespace penstock::dns
