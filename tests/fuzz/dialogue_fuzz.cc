// SPDX-License-Identifier: Apache-2.0
// Any bytes from a server: a check ends or goes on, says little, and what it makes of them is printable.
#include "check/dialogue.h"

#include <algorithm>
#include <cstdint>

#include "base/assert.h"

using namespace penstock::check;

namespace {

bool is_printable(const std::string& text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c >= ' ' && c <= '~'; });
}

// In pieces of `size` bytes.
void talk(Protocol protocol, std::string_view bytes, size_t size) {
  Dialogue d(protocol, "edge.example.net");
  size_t said_bytes = 0;
  while (!bytes.empty()) {
    const std::string_view piece = bytes.substr(0, size);
    bytes.remove_prefix(piece.size());
    d.received(piece);
    said_bytes += d.take_outgoing().size();
  }
  said_bytes += d.farewell().size();
  PENSTOCK_ASSERT(said_bytes <= 60);
  PENSTOCK_ASSERT(is_printable(d.reason()) && is_printable(d.first_line()));
  PENSTOCK_ASSERT((d.verdict() == Dialogue::Verdict::failed) == !d.reason().empty());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  for (const Protocol protocol : {Protocol::by_greeting, Protocol::smtp, Protocol::imap}) {
    talk(protocol, bytes, size);
    talk(protocol, bytes, 1);
  }
  return 0;
}
