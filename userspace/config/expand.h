// SPDX-License-Identifier: Apache-2.0
// config/expand.h: ${NAME} and ${NAME:-default} in a string. What a name stands for is not expanded again, a
// default reaches to the first '}'. As in a shell, a name that is set but empty takes the default where there
// is one.
#pragma once
#include <string>
#include <string_view>

#include "base/result.h"
#include "config/config.h"

namespace penstock::config {

bool is_variable_name(std::string_view name);  // [A-Za-z_][A-Za-z0-9_]*
Result<std::string> expand(std::string_view text, const Lookup& environment);

}  // namespace penstock::config
