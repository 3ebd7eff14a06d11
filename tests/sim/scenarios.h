// SPDX-License-Identifier: Apache-2.0
// sim/scenarios.h: lives that are written down, in which each operation that may fail is made to fail once.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "sim/shape.h"

namespace penstock::sim {

struct Scenario {
  std::string name;
  std::function<void(Shape*)> change;  // of calm_shape()
};
const std::vector<Scenario>& scenarios();
Shape calm_shape();  // one client says 3000 bytes, one server 5000; nothing is late, short or refused

}  // namespace penstock::sim
