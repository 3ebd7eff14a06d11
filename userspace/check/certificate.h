// SPDX-License-Identifier: Apache-2.0
// check/certificate.h: what a check saw of a server's certificate. Shown, never verified: clients do that.
#pragma once
#include <chrono>
#include <string>

namespace penstock::check {

struct Certificate {
  std::string subject, issuer;  // RFC 4514, printable, cut
  std::chrono::system_clock::time_point not_after;
  bool self_signed = false;

  // Whole days, rounded down: negative once it has expired.
  int days_left(std::chrono::system_clock::time_point now) const {
    return static_cast<int>(std::chrono::floor<std::chrono::days>(not_after - now).count());
  }
};

}  // namespace penstock::check
