// SPDX-License-Identifier: Apache-2.0
// Any bytes: parse keeps the contract of proxy_protocol/proxy_protocol.h, says the same however much follows,
// and what it understood can be said again.
#include "proxy_protocol/proxy_protocol.h"

#include <array>

#include "base/assert.h"

using namespace penstock::proxy_protocol;

namespace {

void check(const Incoming& incoming, std::span<const uint8_t> bytes) {
  const bool asks = incoming.verdict == Verdict::need_more;
  PENSTOCK_ASSERT(asks ? incoming.need_bytes > bytes.size() && incoming.need_bytes <= kIncomingBytesMax
                       : incoming.need_bytes == 0);
  const bool done = incoming.verdict == Verdict::header;
  PENSTOCK_ASSERT(done ? incoming.header_bytes > 0 && incoming.header_bytes <= bytes.size()
                       : incoming.header_bytes == 0);
  if (incoming.tlvs.empty()) return;
  PENSTOCK_ASSERT(done &&
                  incoming.tlvs.data() + incoming.tlvs.size() == bytes.data() + incoming.header_bytes);
}

// As many as the bound lets through.
std::span<const uint8_t> passed_on(std::span<const uint8_t> tlvs) {
  size_t bytes = 0;
  for (auto rest = tlvs; auto tlv = next_tlv(&rest);) {
    if (bytes + tlv->bytes.size() > kPassedOnBytesMax) break;
    bytes += tlv->bytes.size();
  }
  return tlvs.first(bytes);
}

void check_said_again(const Incoming& incoming) {
  std::array<uint8_t, kHeaderBytesMax> bytes{};
  const Outgoing what{.version = incoming.version,
                      .client = incoming.client,
                      .destination = incoming.destination,
                      .crc32c = true,
                      .passed_on = passed_on(incoming.tlvs),
                      .local = incoming.local};
  const size_t size = encode(what, bytes);
  Incoming again;
  parse(std::span(bytes).first(size), &again);
  PENSTOCK_ASSERT(again.verdict == Verdict::header && again.header_bytes == size &&
                  again.local == incoming.local);
  PENSTOCK_ASSERT(again.client == incoming.client && again.destination == incoming.destination);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const uint8_t> all(data, size);
  size_t shown = 0;
  Incoming incoming;
  for (;;) {  // as a caller does: exactly what was asked for, while there is that much
    parse(all.first(shown), &incoming);
    check(incoming, all.first(shown));
    if (incoming.verdict != Verdict::need_more || incoming.need_bytes > size) break;
    shown = incoming.need_bytes;
  }
  Incoming at_once;
  parse(all, &at_once);
  check(at_once, all);
  PENSTOCK_ASSERT((signature(all) == Signature::absent) == (at_once.verdict == Verdict::not_proxy));
  const bool broken_since = incoming.verdict == Verdict::need_more && at_once.verdict == Verdict::malformed;
  PENSTOCK_ASSERT(at_once.verdict == incoming.verdict || broken_since);
  PENSTOCK_ASSERT(at_once.header_bytes == incoming.header_bytes);
  if (incoming.verdict == Verdict::header) check_said_again(incoming);
  return 0;
}
