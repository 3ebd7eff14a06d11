// SPDX-License-Identifier: Apache-2.0
// flow/dial.h: the search for a server that answers; lives from the choice of the first one until no attempt
// is in flight. Derived: a later worker starts the search again.
#pragma once
#include <array>
#include <cstdint>
#include <vector>

#include "base/endpoint.h"
#include "flow/close_reason.h"
#include "flow/upstream.h"

namespace penstock::flow {

inline constexpr uint32_t kAttemptsMax = 3;  // in flight at once, an Op each
// RFC 8305 8, Connection Attempt Delay: 250 ms are recommended. What a dead address costs is this and our own
// time: within 250 ms together.
inline constexpr uint64_t kAttemptDelayNs = 240'000'000;
inline constexpr uint64_t kRenewNs = 1'000'000'000;  // a name is asked again as often while nobody answers

struct Attempt {
  int fd = -1;  // -1: free
  Endpoint to;
  uint64_t cookie = 0;
  uint64_t begun_ns = 0;
  bool given_up = false;  // being cancelled: another one won, or its server had its time
};

struct Dial {
  uint64_t until_ns = 0;         // the end of timeouts.connect, over everything
  uint64_t server_until_ns = 0;  // of this server's share
  uint64_t server_since_ns = 0;
  uint32_t question = 0;  // of the answer waited for; others come too late
  uint32_t retries_left = 0;
  std::vector<const Server*> tried;        // not the present one
  std::vector<IpAddress> addresses;        // of the present one, in the order they are tried (RFC 8305 4)
  size_t next = 0;                         // the first not tried
  bool wants_room = false;                 // the next attempt waits for one to be cancelled
  bool renewing = false, renewed = false;  // its name is, was asked again
  bool targets_renewed = false;            // likewise the upstream's, with `srv`
  uint64_t failed_ns = 0;                  // when the last attempt failed
  CloseReason failure = CloseReason::connect_failed;  // the last one
  std::array<Attempt, kAttemptsMax> attempts;

  bool in_flight() const {  // that may still win
    for (const Attempt& a : attempts)
      if (a.fd >= 0 && !a.given_up) return true;
    return false;
  }
  bool over() const {
    for (const Attempt& a : attempts)
      if (a.fd >= 0) return false;
    return true;
  }
};

// With a line in the log when DNS goes down or is back.
void set_answer(Server& server, const dns::Answer& answer);

}  // namespace penstock::flow
