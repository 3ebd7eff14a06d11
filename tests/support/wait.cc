// SPDX-License-Identifier: Apache-2.0
#include "support/wait.h"

namespace penstock::test {

constinit const milliseconds kPatience = 20s * PENSTOCK_SLOWNESS;

}  // namespace penstock::test
