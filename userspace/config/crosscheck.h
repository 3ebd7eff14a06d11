// SPDX-License-Identifier: Apache-2.0
// config/crosscheck.h: what can only be judged with the whole file read: names that must exist or must not
// repeat, addresses taken twice, and, as warnings, what can never be used.
#pragma once
#include <vector>

#include "config/config.h"
#include "config/diagnostics.h"

namespace penstock::config {

// Where the parts of a Config stand in the file; same order and sizes as there.
struct RoutePlaces {
  Position route, upstream;
};
struct ListenerPlaces {
  Position listener, name, upstream;
  std::vector<Position> bind;
  std::vector<RoutePlaces> routes;
};
struct Places {
  std::vector<Position> upstreams;
  std::vector<ListenerPlaces> listeners;
};

// An empty upstream or name is one that was reported already.
void crosscheck(const Config& config, const Places& places, Diagnostics* diagnostics);

}  // namespace penstock::config
