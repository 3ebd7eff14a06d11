// SPDX-License-Identifier: Apache-2.0
#include "config/unreachable.h"

#include <algorithm>

#include "config/sni_pattern.h"

namespace penstock::config {
namespace {

// One criterion of both routes: no values is no constraint, else each later value must be covered by an
// earlier one.
template <typename T, typename Covers>
bool all_covered(const std::vector<T>& earlier, const std::vector<T>& later, Covers covers) {
  if (earlier.empty()) return true;
  return !later.empty() && std::all_of(later.begin(), later.end(), [&](const T& b) {
    return std::any_of(earlier.begin(), earlier.end(), [&](const T& a) { return covers(a, b); });
  });
}

bool covers_prefix(const Cidr& a, const Cidr& b) {
  return a.prefix_bits <= b.prefix_bits && a.contains(b.address);
}

}  // namespace

std::vector<Unreachable> unreachable_routes(const Listener& listener) {
  std::vector<uint16_t> bound;
  for (const Bind& bind : listener.bind) bound.push_back(bind.port);
  const auto ports_of = [&](const Route& route) {
    if (route.port.empty()) return bound;
    std::vector<uint16_t> ports;
    for (const uint16_t port : route.port) {
      if (std::find(bound.begin(), bound.end(), port) != bound.end()) ports.push_back(port);
    }
    return ports;
  };

  std::vector<std::vector<uint16_t>> ports;
  std::vector<Unreachable> out;
  for (size_t i = 0; i < listener.routes.size(); ++i) {
    const Route& later = listener.routes[i];
    ports.push_back(ports_of(later));
    if (ports[i].empty()) {
      out.push_back({i, std::nullopt});
      continue;
    }
    for (size_t j = 0; j < i; ++j) {
      const Route& earlier = listener.routes[j];
      if (!ports[j].empty() && all_covered(ports[j], ports[i], std::equal_to<>()) &&
          all_covered(earlier.source, later.source, covers_prefix) &&
          all_covered(earlier.alpn, later.alpn, std::equal_to<>()) &&
          all_covered(earlier.sni, later.sni, sni_covers)) {
        out.push_back({i, j});
        break;
      }
    }
  }
  return out;
}

}  // namespace penstock::config
