// SPDX-License-Identifier: Apache-2.0
// flow/prime.cc: the PROXY header goes out before anything else does. The bytes are ours, made from the
// record: a later worker makes the same ones again and goes on behind header_sent_bytes.
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>

#include "flow/worker.h"
#include "proxy_protocol/proxy_protocol.h"

namespace penstock::flow {

void Worker::begin_prime(Flow& f) {
  FlowRecord& r = *f.record;
  if (r.phase != Phase::priming) return;
  config::ProxyProtocol kind = f.plan->upstream(r.upstream).proxy_protocol;
  if (kind != config::ProxyProtocol::off) {
    proxy_protocol::Outgoing what;
    what.version =
        kind == config::ProxyProtocol::v1 ? proxy_protocol::Version::v1 : proxy_protocol::Version::v2;
    what.client = r.client;
    what.destination = r.destination;
    what.authority = r.sni();
    what.alpn = r.alpn();
    std::array<uint8_t, proxy_protocol::kHeaderBytesMax> header;
    r.header_size = static_cast<uint32_t>(proxy_protocol::encode(what, header));
    // What the client has said follows at once, in the same segment.
    const int flags = MSG_DONTWAIT | MSG_NOSIGNAL | (f.peeked_bytes ? MSG_MORE : 0);
    while (r.header_sent_bytes < r.header_size) {
      ssize_t n = send(r.fd[kUpstream], header.data() + r.header_sent_bytes,
                       r.header_size - r.header_sent_bytes, flags);
      if (n < 0 && errno == EAGAIN) return arm_poll(f, Op::header_room, r.fd[kUpstream], POLLOUT);
      if (n < 0) return begin_close(f, CloseReason::upstream_reset);
      r.header_sent_bytes += static_cast<uint32_t>(n);
    }
    r.direction[kUp].header_bytes = r.header_size;
  }
  advance(f, Event::header_sent);
  begin_handoff(f);
}

}  // namespace penstock::flow
