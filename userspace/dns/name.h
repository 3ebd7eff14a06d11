// SPDX-License-Identifier: Apache-2.0
// dns/name.h: which texts may be asked for, and may be a target.
#pragma once
#include <optional>
#include <string>
#include <string_view>

namespace penstock::dns {

// In lower case; nothing when it cannot be a host name: labels of 1-63 letters, digits, '-' and '_', 253
// bytes in all (RFC 1035 2.3.4). A trailing dot stays: it keeps the search list away.
std::optional<std::string> canonical(std::string_view text);

}  // namespace penstock::dns
