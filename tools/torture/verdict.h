// SPDX-License-Identifier: Apache-2.0
// torture/verdict.h: from what the two ends saw to one word. Pure. It must never blame a correct proxy for
// what TCP allows (a RST destroys what is in flight, so any prefix will do) and never excuse a stream that
// merely looks whole.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "life.h"

namespace penstock::torture {

struct EndReport {
  bool arrived = false;  // connected; or accepted and known to belong to this life
  uint64_t sent = 0, received = 0;
  bool fin_sent = false, fin_seen = false;
  bool reset_sent = false, reset_seen = false;
  int error = 0;                     // errno that came with reset_seen, or with a connect that failed
  std::optional<uint64_t> wrong_at;  // offset of the first wrong byte
  std::string remark;                // what is known about the wrong byte, or the header
  bool wrong_header = false;         // the PROXY header of the right client says a wrong destination
};

enum class Failure : uint8_t {
  none,
  corrupt,         // a byte that does not stand at this offset
  surplus,         // more bytes than were sent
  truncated,       // a clean FIN before the last byte, or that nobody sent
  rst_became_fin,  // the peer sent RST, we saw a clean end
  rst_not_passed,  // the peer sent RST, we saw nothing
  unasked_rst,     // a RST that nobody sent
  hang,            // nothing moved for --hang-s
  connect_failed,
  never_arrived,  // the client was served or turned away, the server never heard of it
  wrong_header,   // PROXY header with a wrong destination
  dialled_twice,  // a second upstream connection for the same client
  stranger,       // an upstream connection that names no client of ours
  headerless,  // an upstream connection that ended before saying whose it is, and no client's RST explains it
  wrong_reason,   // the proxy's log gives another close reason than the two ends' doings
  wrong_account,  // the proxy counted other bytes or flows than the two ends
  unlogged,       // the proxy's log has no line of it
};
inline constexpr size_t kFailures = 17;
std::string_view name_of(Failure f);  // the enumerator

struct Verdict {
  Failure failure = Failure::none;
  std::string reason;  // one line
};

Verdict judge(const LifePlan& plan, const EndReport& client, const EndReport& server, bool hung);
std::string describe(const EndReport& report);  // "sent 12+FIN, received 7+RST(ECONNRESET)"

}  // namespace penstock::torture
