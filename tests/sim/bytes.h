// SPDX-License-Identifier: Apache-2.0
// sim/bytes.h: bytes by their origin. Each is known by the stream it belongs to and its place there, so one
// that is lost, doubled, moved or another flow's shows, and none has to be stored.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

namespace penstock::sim {

struct Stream {
  std::string name;   // for messages
  std::string first;  // what its first bytes are, for those who look; behind them it is all 'x'
};

struct Extent {
  const Stream* stream;
  uint64_t offset;
  uint32_t length;
};

class Bytes {
 public:
  Bytes() = default;
  Bytes(const Stream* stream, uint64_t offset, uint32_t length) { append(Extent{stream, offset, length}); }
  uint32_t size() const { return size_; }
  const std::vector<Extent>& extents() const { return extents_; }

  void append(const Extent& e) {
    if (e.length == 0) return;
    size_ += e.length;
    if (!extents_.empty()) {
      Extent& last = extents_.back();
      if (last.stream == e.stream && last.offset + last.length == e.offset) {
        last.length += e.length;
        return;
      }
    }
    extents_.push_back(e);
  }
  void append(const Bytes& more) {
    for (const Extent& e : more.extents_) append(e);
  }
  Bytes slice(uint32_t from, uint32_t length) const {
    Bytes out;
    for (const Extent& e : extents_) {
      if (length == 0) break;
      if (from >= e.length) {
        from -= e.length;
        continue;
      }
      const uint32_t n = std::min(length, e.length - from);
      out.append(Extent{e.stream, e.offset + from, n});
      from = 0;
      length -= n;
    }
    return out;
  }
  Bytes take(uint32_t length) {  // off the front
    Bytes out = slice(0, length);
    *this = slice(length, size_);
    return out;
  }
  std::string text(uint32_t length) const {
    std::string out;
    for (const Extent& e : slice(0, length).extents_) {
      const std::string& first = e.stream->first;
      std::string part = e.offset < first.size() ? first.substr(e.offset, e.length) : "";
      part.resize(e.length, 'x');
      out += part;
    }
    return out;
  }

 private:
  std::vector<Extent> extents_;
  uint32_t size_ = 0;
};

}  // namespace penstock::sim
