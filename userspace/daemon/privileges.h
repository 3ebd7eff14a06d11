// SPDX-License-Identifier: Apache-2.0
// daemon/privileges.h: descriptors and capabilities.
#pragma once
#include <cstdint>
#include <string>

#include "base/result.h"

namespace penstock::daemon {

// Raises RLIMIT_NOFILE to `wanted`, or as far as we may; returns the limit then.
uint64_t raise_descriptor_limit(uint64_t wanted);

// [daemon] user, group: becomes them, keeping what BPF and low ports need. Before any thread but the caller's
// exists.
Status become(const std::string& user, const std::string& group);

}  // namespace penstock::daemon
