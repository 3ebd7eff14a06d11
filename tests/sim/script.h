// SPDX-License-Identifier: Apache-2.0
// sim/script.h: what differential_test holds against the kernel at hand: short scripts of acts on one flow,
// made and played in the simulated kernel, and what is to be seen after each when all is at rest.
#pragma once
#include <cstdint>
#include <string>

namespace penstock::sim {

// One act: "write 0 700", "open 1". End 0 is the client or its socket of ours, end 1 the server's.
//   write END BYTES, read END BYTES, fin END, reset END: the peer     shut END: our FIN on that socket
//   take, join END, open DIRECTION, close DIRECTION, kick DIRECTION: as in sockmap.h
struct Observed {
  int result = 0;  // of the act: 0, an errno, or a truth
  struct {
    int state = 0;  // of ours
    uint64_t received = 0, written = 0, unread = 0;
    bool hangup = false, half_closed = false, error = false;  // poll(2)
    uint64_t redirected = 0;
    bool charged = false, valve_closed = true;
    uint64_t peer_unread = 0;
    bool peer_eof = false, peer_reset = false;
  } end[2];
  std::string text() const;
};

void print_scripts(uint64_t seed, uint64_t count);

}  // namespace penstock::sim
