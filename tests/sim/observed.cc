// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include "sim/script.h"

namespace penstock::sim {

std::string Observed::text() const {
  std::string out = fmt::format("result {}", result);
  for (const auto& e : end)
    out += fmt::format(" | state {} received {} written {} unread {}{}{}{} redirected {}{}{} peer {}{}{}",
                       e.state, e.received, e.written, e.unread, e.hangup ? " HUP" : "",
                       e.half_closed ? " RDHUP" : "", e.error ? " ERR" : "", e.redirected,
                       e.charged ? " charged" : "", e.valve_closed ? " closed" : " open", e.peer_unread,
                       e.peer_eof ? " EOF" : "", e.peer_reset ? " RST" : "");
  return out;
}

}  // namespace penstock::sim
