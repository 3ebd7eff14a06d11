// SPDX-License-Identifier: Apache-2.0
// support/raw_segment.h: segments that TCP itself would not send now: bytes sent already once more together
// with bytes not sent yet, or bytes from further ahead. A remote peer can send them at will, and reordering
// with retransmission makes them; a sockmap that hands over whole skbs delivers the overlap twice.
#pragma once
#include <cstdint>
#include <string_view>

#include "base/fd.h"
#include "support/tcp.h"

namespace penstock::test {

class RawSegments {
 public:
  // IPv4 only. Throws without CAP_NET_RAW and CAP_NET_ADMIN. Opens in the namespace of the calling thread.
  RawSegments();
  // Sends `payload` as if by `stream`, `shift` bytes after the next byte that stream would send (negative: an
  // overlap). REQUIRES: nobody else sends on the stream during the call; payload fits the path's MTU.
  void inject(const TcpStream& stream, int32_t shift, std::string_view payload) const;

 private:
  Fd raw_;
};

}  // namespace penstock::test
