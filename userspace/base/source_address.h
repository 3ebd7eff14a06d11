// SPDX-License-Identifier: Apache-2.0
// base/source_address.h: what an EADDRNOTAVAIL of connect(2) means.
#pragma once
#include "base/endpoint.h"

namespace penstock {

// connect(2) says EADDRNOTAVAIL where no port is left, and where this host has no address to dial from, as
// for every IPv6 address while net.ipv6.conf.all.disable_ipv6 is set. It says the latter of UDP too, which
// takes no port of TCP's and sends nothing. True: only a port is missing.
bool has_source_address(const Endpoint& to);

}  // namespace penstock
