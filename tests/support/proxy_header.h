// SPDX-License-Identifier: Apache-2.0
// support/proxy_header.h: a second, independent reading of the PROXY protocol, for servers in tests. It must
// never call userspace/proxy_protocol: it is what that code is held against.
#pragma once
#include <map>
#include <string>

#include "support/tcp.h"

namespace penstock::test {

struct ProxyHeader {
  std::string bytes;                // as received
  int version = 0;                  // 1 or 2; 0: there was none
  std::string client, destination;  // "192.0.2.1:25", "[2001:db8::1]:25"; empty for LOCAL and UNKNOWN
  std::map<int, std::string> tlvs;  // v2, by type
};

// Reads exactly the header, no byte of what follows it. Throws when the first bytes are none.
ProxyHeader read_proxy_header(const TcpStream& stream);

}  // namespace penstock::test
