// SPDX-License-Identifier: Apache-2.0
// config/address.h: the texts that say where: a server, a bind, a host name.
#pragma once
#include <string_view>

#include "base/result.h"
#include "config/config.h"

namespace penstock::config {

// Labels of letters, digits, '-' and '_' (RFC 1123 2.1; '_' as in SRV names), at most 253 bytes, optionally a
// trailing dot. A last label of digits alone is refused: it is an address with a mistake in it.
bool is_host_name(std::string_view text);

// Errors are whole sentences with what is accepted.
Result<Server> parse_server(std::string_view text);
Result<Bind> parse_bind(std::string_view text);

}  // namespace penstock::config
