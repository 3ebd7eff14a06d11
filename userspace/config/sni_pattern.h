// SPDX-License-Identifier: Apache-2.0
// config/sni_pattern.h: the patterns of `sni`. "*.example.net" is every name below example.net at any depth,
// not example.net itself; "mta-sts.*" is that first label under any domain; "*" is any name.
#pragma once
#include <string>
#include <string_view>

#include "base/result.h"

namespace penstock::config {

// Lower case and without a trailing dot, as sni_covers() wants it. An error is a whole sentence.
Result<std::string> parse_sni_pattern(std::string_view text);

// Does every name that `other` stands for match `pattern`? A plain name stands for itself, so this is
// matching too. REQUIRES: both lower case, without trailing dot. An empty `other` (no SNI) is covered by
// nothing.
bool sni_covers(std::string_view pattern, std::string_view other);

}  // namespace penstock::config
