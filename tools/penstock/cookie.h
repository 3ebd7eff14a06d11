// SPDX-License-Identifier: Apache-2.0
// tools/penstock/cookie.h: a flow's name as operators have it before them: decimal from `penstock flows`, the
// log and the maps, hexadecimal from `ss -e` ("sk:1f") or with 0x.
#pragma once
#include <cstdint>
#include <optional>
#include <string_view>

namespace penstock::command {

// Nothing when it is neither; "1f" alone is not: a hexadecimal number may look like a decimal one.
std::optional<uint64_t> parse_cookie(std::string_view text);

}  // namespace penstock::command
