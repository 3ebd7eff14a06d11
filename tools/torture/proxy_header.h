// SPDX-License-Identifier: Apache-2.0
// torture/proxy_header.h: an own reader of PROXY v1 and v2 (haproxy/doc/proxy-protocol.txt). Not penstock's
// on purpose: a checker that shares code with what it checks shares its mistakes. Pure.
#pragma once
#include <string_view>

#include "base/endpoint.h"

namespace penstock::torture {

enum class Preamble { none, v1, v2, id };  // what tells the server whose connection it has

struct ProxyHeader {
  enum class State { need_more, complete, local, bad } state = State::need_more;
  size_t header_bytes = 0;  // when complete or local
  Endpoint client, destination;
};

// REQUIRES: kind is v1 or v2.
ProxyHeader read_proxy_header(Preamble kind, std::string_view bytes);

}  // namespace penstock::torture
