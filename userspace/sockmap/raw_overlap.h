// SPDX-License-Identifier: Apache-2.0
// sockmap/raw_overlap.h: a segment that TCP itself sends only after reordering and retransmission.
#pragma once
#include <cstdint>
#include <string_view>

namespace penstock::sockmap {

// Sends `payload` to the peer of the idle IPv4 connection `fd` as if by it, its first `overlap_bytes` sent
// before. False without CAP_NET_RAW. Throws CheckFailed. The connection can only be reset after it.
bool inject_overlap(int fd, uint32_t overlap_bytes, std::string_view payload);

}  // namespace penstock::sockmap
