// SPDX-License-Identifier: Apache-2.0
#include "support/wait.h"

#include <cstdlib>

namespace penstock::test {
namespace {

milliseconds patience() {
  const char* text = std::getenv("PENSTOCK_PATIENCE_S");
  return text ? std::chrono::seconds(std::atoi(text)) : 20s * PENSTOCK_SLOWNESS;
}

}  // namespace

const milliseconds kPatience = patience();

}  // namespace penstock::test
