// SPDX-License-Identifier: Apache-2.0
// base/unavailable.h: what is promised by name and not there in this version: the one list of it. Whoever is
// asked for one of these says unavailable(): the configuration as an error at its line, `penstock` with exit
// code 2, the admin socket as an error, http with status 501. tests/examples/contract_test.py.
#pragma once
#include <algorithm>
#include <array>
#include <string>
#include <string_view>

namespace penstock {

// As messages call them: the table, then the key.
inline constexpr std::array<std::string_view, 9> kUnavailableKeys = {
    "limits.rate",
    "listener.rate",
    "listener.limits.rate",
    "listener.memory",  // one pool for all flows
    "listener.limits.memory",
    "upstream.client_hello",  // both pass before there is an upstream
    "upstream.timeouts.client_hello",
    "upstream.proxy_header",
    "upstream.timeouts.proxy_header",
};
inline constexpr std::array<std::string_view, 2> kUnavailableCommands = {"top", "ban"};
inline constexpr std::array<std::string_view, 1> kUnavailablePages = {"/"};  // of admin.http

template <size_t N>
constexpr bool is_unavailable(const std::array<std::string_view, N>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

inline std::string unavailable(std::string_view name) {
  return std::string(name) + " is not available in this version";
}

}  // namespace penstock
