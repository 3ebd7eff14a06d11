// SPDX-License-Identifier: Apache-2.0
// Any bytes: parse_client_hello keeps the contract of tls/client_hello.h, and says the same however much
// follows.
#include "tls/client_hello.h"

#include <algorithm>

#include "base/assert.h"

using namespace penstock::tls;

namespace {

bool is_name_byte(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
}

void check(const ClientHello& hello, std::span<const uint8_t> bytes) {
  const bool asks = hello.verdict == Verdict::need_more;
  PENSTOCK_ASSERT(asks ? hello.need_bytes > bytes.size() && hello.need_bytes <= kPeekBytesMax
                       : hello.need_bytes == 0);
  PENSTOCK_ASSERT(hello.verdict == Verdict::hello || (hello.sni_size == 0 && hello.alpn_size == 0));
  PENSTOCK_ASSERT(std::all_of(hello.sni().begin(), hello.sni().end(), is_name_byte));
  PENSTOCK_ASSERT(!hello.sni().starts_with('.') && !hello.sni().ends_with('.'));
  size_t alpn_bytes = 0;
  auto list = hello.alpn();
  for (auto name = next_alpn(&list); !name.empty(); name = next_alpn(&list)) alpn_bytes += 1 + name.size();
  PENSTOCK_ASSERT(alpn_bytes == hello.alpn_size);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const uint8_t> all(data, size);
  size_t shown = 0;
  ClientHello hello;
  for (;;) {  // as a caller does: exactly what was asked for, while there is that much
    parse_client_hello(all.first(shown), &hello);
    check(hello, all.first(shown));
    if (hello.verdict != Verdict::need_more || hello.need_bytes > size) break;
    shown = hello.need_bytes;
  }
  ClientHello at_once;
  parse_client_hello(all, &at_once);
  check(at_once, all);
  // Asked for in vain, the bytes between may still have shown that the rest is broken.
  const bool broken_since = hello.verdict == Verdict::need_more && at_once.verdict == Verdict::malformed;
  PENSTOCK_ASSERT(at_once.verdict == hello.verdict || broken_since);
  PENSTOCK_ASSERT(at_once.sni() == hello.sni() && std::ranges::equal(at_once.alpn(), hello.alpn()));
  PENSTOCK_ASSERT(at_once.has_ech == hello.has_ech);
  return 0;
}
