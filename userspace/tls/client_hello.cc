// SPDX-License-Identifier: Apache-2.0
#include "tls/client_hello.h"

#include <algorithm>

#include "base/assert.h"

namespace penstock::tls {
namespace {

constexpr size_t kRecordHeaderBytes = 5;
constexpr size_t kRecordBytesMax = 16384;  // RFC 8446 5.1
constexpr size_t kHandshakeHeaderBytes = 4;
constexpr uint8_t kContentHandshake = 22;
constexpr uint8_t kTypeClientHello = 1;
constexpr uint16_t kExtensionServerName = 0;
constexpr uint16_t kExtensionAlpn = 16;
constexpr uint16_t kExtensionEch = 0xfe0d;
constexpr size_t kLabelBytesMax = 63;  // RFC 1035 2.3.4

// Whether `first` can begin a connection's first record. Of the 5-byte header, only what is there is judged.
bool may_be_tls(std::span<const uint8_t> first) {
  if (first.size() > 0 && first[0] != kContentHandshake) return false;
  if (first.size() > 1 && first[1] != 3) return false;
  return first.size() <= 2 || first[2] <= 4;
}

// The records the hello is cut into, walked far enough to know whether all of it is there. After that a
// Cursor may follow the same headers without asking again.
struct Walk {
  Verdict verdict;
  size_t need_bytes = 0;
  size_t handshake_bytes = 0;  // with its header, when verdict is hello
};

// The handshake lasts at least `missing` bytes beyond `record_end`: wait for them in the fewest records
// possible.
Walk wait_past(size_t record_end, size_t records, size_t missing) {
  const size_t more = (missing + kRecordBytesMax - 1) / kRecordBytesMax;
  if (records + more > kRecordsMax) return {Verdict::malformed};
  return {Verdict::need_more, record_end + missing + more * kRecordHeaderBytes};
}

Walk walk_records(std::span<const uint8_t> bytes) {
  if (!may_be_tls(bytes)) return {Verdict::not_tls};
  if (bytes.size() < 3) return {Verdict::need_more, bytes.size() + 1};

  std::array<uint8_t, kHandshakeHeaderBytes> header{};
  size_t expected = kHandshakeHeaderBytes;  // of the handshake; more once its header has been read
  size_t seen = 0;                          // of the handshake, in the records walked so far
  size_t at = 0;
  for (size_t records = 1;; ++records) {
    const auto record = bytes.subspan(at);
    if (!may_be_tls(record)) return {Verdict::malformed};
    if (record.size() < kRecordHeaderBytes) return wait_past(at, records - 1, expected - seen);
    if (records > kRecordsMax) return {Verdict::malformed};
    const size_t length = size_t{record[3]} << 8 | record[4];
    if (length == 0 || length > kRecordBytesMax) return {Verdict::malformed};
    const size_t shown = std::min(length, record.size() - kRecordHeaderBytes);

    if (seen < kHandshakeHeaderBytes) {
      const size_t part = std::min(shown, kHandshakeHeaderBytes - seen);
      std::copy_n(record.begin() + kRecordHeaderBytes, part, header.begin() + seen);
      if (seen + part > 0 && header[0] != kTypeClientHello) return {Verdict::malformed};
      if (seen + part == kHandshakeHeaderBytes) {
        const size_t body = size_t{header[1]} << 16 | size_t{header[2]} << 8 | header[3];
        if (body > kHandshakeBytesMax) return {Verdict::malformed};
        expected = kHandshakeHeaderBytes + body;
      }
    }

    const size_t missing = expected - seen;
    if (shown >= missing) return {Verdict::hello, 0, expected};
    if (length >= missing) return {Verdict::need_more, at + kRecordHeaderBytes + missing};
    at += kRecordHeaderBytes + length;
    seen += length;
    if (at >= bytes.size()) return wait_past(at, records, expected - seen);
  }
}

// Reads the handshake message, stepping over the record headers in it. Reading beyond the vector entered last
// yields zeros and clears ok(), once and for all.
class Cursor {
 public:
  // REQUIRES: walk_records(bytes) said hello with this handshake_bytes.
  Cursor(std::span<const uint8_t> bytes, size_t handshake_bytes) : bytes_(bytes), end_(handshake_bytes) {}

  bool ok() const { return ok_; }
  void fail() { ok_ = false; }
  bool more() const { return ok_ && position_ < end_; }
  size_t left() const { return end_ - position_; }

  // A big-endian number of `width` bytes.
  size_t number(size_t width) {
    size_t value = 0;
    for (size_t i = 0; i < width; ++i) value = value << 8 | byte();
    return value;
  }

  void skip(size_t count) {
    if (!claim(count)) return;
    while (count > 0) {
      const size_t step = std::min(count, enter_record());
      at_ += step;
      record_left_ -= step;
      count -= step;
    }
  }

  // Enters a vector whose length is a number of `width` bytes; returns what leave() needs.
  size_t enter(size_t width) {
    const size_t length = number(width);
    const size_t outer = end_;
    if (length > left()) ok_ = false;
    end_ = position_ + (ok_ ? length : 0);
    return outer;
  }

  // Leaves it: all of it must have been read.
  void leave(size_t outer) {
    if (position_ != end_) ok_ = false;
    end_ = outer;
  }

  uint8_t byte() {
    if (!claim(1)) return 0;
    enter_record();
    --record_left_;
    return bytes_[at_++];
  }

 private:
  bool claim(size_t count) {
    if (!ok_ || count > left()) return ok_ = false;
    position_ += count;
    return true;
  }

  size_t enter_record() {
    if (record_left_ == 0) {
      record_left_ = size_t{bytes_[at_ + 3]} << 8 | bytes_[at_ + 4];
      at_ += kRecordHeaderBytes;
    }
    return record_left_;
  }

  std::span<const uint8_t> bytes_;
  size_t at_ = 0;           // in bytes_
  size_t record_left_ = 0;  // of the record at_ is in
  size_t position_ = 0;     // in the handshake message
  size_t end_;              // of the vector entered last, in the handshake message
  bool ok_ = true;
};

// Lower-cases `name`, drops one trailing dot; returns its size, or 0 when it is not a host name.
size_t canonical_name(std::span<char> name) {
  if (!name.empty() && name.back() == '.') name = name.first(name.size() - 1);
  size_t label_bytes = 0;
  for (char& c : name) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    if (c == '.' && label_bytes > 0) {
      label_bytes = 0;
      continue;
    }
    const bool allowed = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
    if (!allowed || ++label_bytes > kLabelBytesMax) return 0;
  }
  return label_bytes > 0 ? name.size() : 0;
}

// RFC 6066 3. One entry of type host_name: what the RFC allows beyond that, nobody sends and OpenSSL refuses.
void read_server_name(Cursor* in, ClientHello* out) {
  const size_t list = in->enter(2);
  if (in->byte() != 0) in->fail();
  const size_t entry = in->enter(2);
  const size_t size = in->left();
  if (size > kNameBytesMax) return in->fail();
  for (size_t i = 0; i < size; ++i) out->sni_bytes[i] = static_cast<char>(in->byte());
  in->leave(entry);
  in->leave(list);
  out->sni_size = static_cast<uint8_t>(canonical_name({out->sni_bytes.data(), size}));
  if (out->sni_size == 0) return in->fail();
  out->sni_bytes[out->sni_size] = '\0';
}

void read_alpn(Cursor* in, ClientHello* out) {
  const size_t list = in->enter(2);
  if (!in->more()) in->fail();
  bool keep = true;
  while (in->more()) {
    const size_t name = in->enter(1);
    const size_t size = in->left();
    if (size == 0) return in->fail();
    keep = keep && out->alpn_size + 1 + size <= kAlpnBytesMax;
    if (keep) {
      out->alpn_bytes[out->alpn_size++] = static_cast<uint8_t>(size);
      for (size_t i = 0; i < size; ++i) out->alpn_bytes[out->alpn_size++] = in->byte();
    } else {
      in->skip(size);
    }
    in->leave(name);
  }
  in->leave(list);
}

void read_extensions(Cursor* in, ClientHello* out) {
  bool has_alpn = false;
  const size_t all = in->enter(2);
  while (in->more()) {
    const size_t type = in->number(2);
    const size_t one = in->enter(2);
    if (type == kExtensionServerName) {
      if (out->sni_size > 0) return in->fail();
      read_server_name(in, out);
    } else if (type == kExtensionAlpn) {
      if (has_alpn) return in->fail();
      has_alpn = true;
      read_alpn(in, out);
    } else {
      if (type == kExtensionEch) out->has_ech = true;
      in->skip(in->left());
    }
    in->leave(one);
  }
  in->leave(all);
}

// RFC 8446 4.1.2. A hello of TLS 1.2 may end after the compression methods.
bool read_hello(Cursor* in, ClientHello* out) {
  in->skip(kHandshakeHeaderBytes);
  in->skip(2 + 32);  // legacy_version and random: the server's to judge
  const size_t session_id = in->enter(1);
  if (in->left() > 32) return false;
  in->skip(in->left());
  in->leave(session_id);
  const size_t cipher_suites = in->enter(2);
  if (in->left() == 0 || in->left() % 2 != 0) return false;
  in->skip(in->left());
  in->leave(cipher_suites);
  const size_t compression_methods = in->enter(1);
  if (in->left() == 0) return false;
  in->skip(in->left());
  in->leave(compression_methods);
  if (in->more()) read_extensions(in, out);
  return in->ok() && !in->more();
}

}  // namespace

void parse_client_hello(std::span<const uint8_t> bytes, ClientHello* out) {
  *out = ClientHello{};
  const Walk walk = walk_records(bytes);
  out->verdict = walk.verdict;
  out->need_bytes = walk.need_bytes;
  if (walk.verdict == Verdict::need_more) PENSTOCK_ASSERT(walk.need_bytes > bytes.size());
  if (walk.verdict != Verdict::hello) return;
  Cursor in(bytes, walk.handshake_bytes);
  if (read_hello(&in, out)) return;
  *out = ClientHello{};
  out->verdict = Verdict::malformed;
}

std::string_view next_alpn(std::span<const uint8_t>* list) {
  if (list->empty()) return {};
  const size_t size = list->front();
  if (size >= list->size()) {
    *list = {};
    return {};
  }
  const auto name = list->subspan(1, size);
  *list = list->subspan(1 + size);
  return {reinterpret_cast<const char*>(name.data()), name.size()};
}

}  // namespace penstock::tls
