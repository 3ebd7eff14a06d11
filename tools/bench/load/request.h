// SPDX-License-Identifier: Apache-2.0
// bench/load/request.h: what a client of the stream port asks of the server, in its first bytes.
#pragma once
#include <cstdint>

namespace penstock::bench {

// What one end of a flow does with it. Nobody looks at the bytes: they are sent from one small buffer, which
// stays in the cache, and received with MSG_TRUNC, which copies none.
enum class Role : uint32_t {
  sink,    // reads what comes
  source,  // sends as fast as it goes
  paced,   // once a millisecond, sends what `rate` allows up to then
  slow,    // once a millisecond, reads what `rate` allows up to then
  echo,    // having read `size` bytes, sends as many
  ping,    // sends `size` bytes, waits until as many came back, and again: the client's part
};

struct Request {
  uint32_t magic = 0x70656e62;
  Role role{};        // the server's part
  uint64_t size = 0;  // bytes; echo
  uint64_t rate = 0;  // bytes/s of this flow; paced, slow
};
static_assert(sizeof(Request) == 24);

// The short ports: a connection brings a question, gets an answer, and is closed by the client.
inline constexpr uint32_t kQuestionBytes = 100, kAnswerBytes = 100;

}  // namespace penstock::bench
