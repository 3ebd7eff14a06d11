// SPDX-License-Identifier: Apache-2.0
// daemon/trial.h: `penstockd --trial N`: whether this program could go on in the place of the one that runs.
// Started by its keeper with the descriptors of what it keeps; nothing moves. 0, or 1 with a line on stderr
// that says why not.
#pragma once
#include "daemon/daemon.h"

namespace penstock::daemon {

int try_upgrade(const Arguments& arguments, int state_file);

}  // namespace penstock::daemon
