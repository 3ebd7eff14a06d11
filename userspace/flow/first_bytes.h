// SPDX-License-Identifier: Apache-2.0
// flow/first_bytes.h: a client's first bytes are looked at where they are, in the socket's receive queue.
// SO_RCVLOWAT makes the kernel wait for as many as can bring news: a header or hello in 1-byte segments costs
// a handful of wake-ups, not one a byte.
#pragma once
#include <cstddef>

namespace penstock::flow {

void set_low_water(int fd, size_t bytes);
// Was there a RST? The kernel tells it once (SO_ERROR), and who was told may have died since; then recv()
// gives 0, as after a FIN. REQUIRES: no FIN of ours yet.
bool was_reset(int fd);

}  // namespace penstock::flow
