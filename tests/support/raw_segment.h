// SPDX-License-Identifier: Apache-2.0
// support/raw_segment.h: segments that TCP itself would not send now: bytes sent already once more together
// with bytes not sent yet, or bytes from further ahead. A remote peer can send them at will, and reordering
// with retransmission makes them; a sockmap that hands over whole skbs delivers the overlap twice.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <string_view>

#include "base/fd.h"
#include "support/tcp.h"

namespace penstock::test {

class RawSegments {
 public:
  // IPv4 only. Throws without CAP_NET_RAW and CAP_NET_ADMIN. Opens in the namespace of the calling thread.
  RawSegments();

  // Sends `payload` as if by `stream`, `shift` bytes after the next byte that stream would send (negative: an
  // overlap). The peer may now acknowledge what `stream` has not sent, and until it has, its TCP drops
  // whatever the peer sends: for tests of a few bytes. REQUIRES: nobody else sends on the stream; payload
  // fits the path's MTU.
  void inject(const TcpStream& stream, int32_t shift, std::string_view payload) const;

  // The last bytes sent once more, now with a FIN: what a retransmission looks like when FIN and data were
  // lost together. The stream has to half-close next: its TCP does not know of this FIN. REQUIRES: as above.
  void repeat_with_fin(const TcpStream& stream, std::string_view last_sent) const;

  // Bytes [from, to) of a chunk; from < 0 repeats what was sent before it.
  struct Segment {
    int32_t from, to;
  };
  // Sends `chunk`, the stream's next bytes, as exactly these segments in this order; `before` ends with the
  // bytes sent before it. The stream's TCP believes it sent them itself (TCP_REPAIR), so both sides agree
  // about every byte, and what the segments leave out or the peer has no room for is retransmitted. REQUIRES:
  // as above.
  void send_as(const TcpStream& stream, std::string_view before, std::string_view chunk,
               std::initializer_list<Segment> segments) const;

 private:
  struct Sequence {
    uint32_t next_sent, next_received;
  };
  static Sequence sequence(const TcpStream& stream);
  void send_raw(const TcpStream& stream, Sequence where, std::string_view payload, bool fin = false) const;
  Fd raw_;
};

}  // namespace penstock::test
