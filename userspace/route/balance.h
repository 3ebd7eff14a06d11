// SPDX-License-Identifier: Apache-2.0
// route/balance.h: which server of an upstream is next.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/endpoint.h"
#include "config/config.h"

namespace penstock::route {

struct Member {
  std::string key;
  uint32_t weight = 1;
  bool backup = false;
};

class Balance {
 public:
  Balance(config::Balance, const std::vector<Member>& members)
      : size_(static_cast<uint32_t>(members.size())) {}
  template <typename Fit, typename Flows>
  std::optional<uint32_t> choose(const IpAddress&, Fit fit, Flows) {
    const uint32_t first = next_.fetch_add(1, std::memory_order_relaxed);
    for (uint32_t i = 0; i < size_; i++)
      if (fit((first + i) % size_)) return (first + i) % size_;
    return std::nullopt;
  }

 private:
  const uint32_t size_;
  std::atomic<uint32_t> next_{0};
};

}  // namespace penstock::route
