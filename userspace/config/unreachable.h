// SPDX-License-Identifier: Apache-2.0
// config/unreachable.h: routes that can never match. One earlier route must cover them on its own; what
// several cover only together is not found.
#pragma once
#include <cstddef>
#include <optional>
#include <vector>

#include "config/config.h"

namespace penstock::config {

struct Unreachable {
  size_t route;                      // index in Listener::routes
  std::optional<size_t> covered_by;  // likewise; none: the listener binds none of its ports
};

std::vector<Unreachable> unreachable_routes(const Listener& listener);

}  // namespace penstock::config
