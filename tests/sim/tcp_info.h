// SPDX-License-Identifier: Apache-2.0
// sim/tcp_info.h: TCP_INFO as linux/tcp.h has it; that header and netinet/tcp.h do not go together.
#pragma once
#include <sys/socket.h>

#include <cstdint>

namespace penstock::sim {

int fill_tcp_info(int state, uint64_t received, uint64_t acked, bool in_flight, void* out, socklen_t* size);

}  // namespace penstock::sim
