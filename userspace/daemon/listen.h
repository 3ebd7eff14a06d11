// SPDX-License-Identifier: Apache-2.0
// daemon/listen.h: the listening sockets: one per thread, address and port (SO_REUSEPORT), so that the kernel
// spreads connections over the threads.
#pragma once
#include <vector>

#include "base/result.h"
#include "config/config.h"
#include "flow/worker.h"

namespace penstock::daemon {

// Element t: the sockets of thread t. An address that the host does not have yet is bound all the same
// (IP_FREEBIND); a host without IPv6 serves IPv4 and says so once. A port that someone else holds is an error
// that names it.
Result<std::vector<std::vector<flow::ListenerSocket>>> listen_all(
    const std::shared_ptr<const flow::Plan>& plan, unsigned threads, sockmap::Sockmap* trim);

}  // namespace penstock::daemon
