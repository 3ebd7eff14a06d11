// SPDX-License-Identifier: Apache-2.0
// torture/opening.h: what a client says before its stream proper, drawn from dice: a TLS ClientHello (RFC
// 8446 4.1.2; the stream's first bytes, which the server gets too) and a PROXY header (haproxy
// doc/proxy-protocol.txt; for the proxy alone). Pure, and nothing of penstock's, as proxy_header.h.
#pragma once
#include <cstdint>
#include <string>

#include "base/endpoint.h"
#include "dice.h"

namespace penstock::torture {

inline constexpr std::string_view kServerDomain = "torture.test";  // every server name is one label below it

// 100 bytes to some 5 KB in one record or several.
std::string make_client_hello(Dice& dice);

struct Proxied {
  Endpoint client, destination;  // of one family
};
// Of no other life: `index` is in the client's address.
Proxied draw_proxied(Dice& dice, uint64_t index);
std::string make_proxy_header(Dice& dice, const Proxied& addresses);  // v1 or v2, some with TLVs

}  // namespace penstock::torture
