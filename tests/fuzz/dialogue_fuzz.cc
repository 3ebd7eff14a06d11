// SPDX-License-Identifier: Apache-2.0
// Any bytes from a server: a check ends or goes on, says little, what it makes of them is printable, and the
// same in whatever pieces they come.
#include "check/dialogue.h"

#include <algorithm>
#include <cstdint>

#include "base/assert.h"

using namespace penstock::check;

namespace {

bool is_printable(const std::string& text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c >= ' ' && c <= '~'; });
}

struct Told {
  Dialogue::Verdict verdict;
  std::string reason, first_line, said;
  bool operator==(const Told&) const = default;
};

// In pieces of `size` bytes.
Told talk(Protocol protocol, std::string_view bytes, size_t size) {
  Dialogue d(protocol, "edge.example.net");
  std::string said;
  while (!bytes.empty()) {
    const std::string_view piece = bytes.substr(0, size);
    bytes.remove_prefix(piece.size());
    d.received(piece);
    said += d.take_outgoing();
  }
  said += d.farewell();
  PENSTOCK_ASSERT(said.size() <= 60);
  PENSTOCK_ASSERT(is_printable(d.reason()) && is_printable(d.first_line()));
  PENSTOCK_ASSERT((d.verdict() == Dialogue::Verdict::failed) == !d.reason().empty());
  return {d.verdict(), d.reason(), d.first_line(), said};
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  for (const Protocol protocol : {Protocol::by_greeting, Protocol::smtp, Protocol::imap}) {
    const Told at_once = talk(protocol, bytes, size);
    PENSTOCK_ASSERT(talk(protocol, bytes, 1) == at_once && talk(protocol, bytes, 7) == at_once);
  }
  return 0;
}
