// SPDX-License-Identifier: Apache-2.0
#include "sim/tcp_info.h"

#include <linux/tcp.h>

#include <algorithm>
#include <cstring>

namespace penstock::sim {

int fill_tcp_info(int state, uint64_t received, uint64_t acked, bool in_flight, void* out, socklen_t* size) {
  tcp_info info{};
  info.tcpi_state = static_cast<uint8_t>(state);
  info.tcpi_bytes_received = received;
  info.tcpi_bytes_acked = acked;
  info.tcpi_unacked = in_flight;
  *size = std::min<socklen_t>(*size, sizeof info);
  memcpy(out, &info, *size);
  return 0;
}

}  // namespace penstock::sim
