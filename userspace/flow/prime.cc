// SPDX-License-Identifier: Apache-2.0
// flow/prime.cc: the PROXY header goes out before anything else does. The bytes are ours, made from the
// record: a later worker makes the same ones again and goes on behind header_sent_bytes.
#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <ctime>

#include "flow/worker.h"
#include "proxy_protocol/proxy_protocol.h"

namespace penstock::flow {
namespace {

// Text, so that our log and the server's can be searched for it: the cookie of the client's socket and the
// time in ns, which together no other flow of this host had or will have.
void add_unique_id(FlowRecord* r) {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  uint64_t now_ns = static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
  std::array<uint8_t, kOwnIdTlvBytes> tlv = {proxy_protocol::kTlvUniqueId, 0, kOwnIdTlvBytes - 3};
  fmt::format_to_n(&tlv[3], kOwnIdTlvBytes - 3, "{:016x}{:016x}", r->cookie[kClient], now_ns);
  r->add_tlv(tlv);
}

}  // namespace

void Worker::begin_prime(Flow& f) {
  FlowRecord& r = *f.record;
  if (r.phase != Phase::priming) return;
  const config::Upstream& upstream = f.plan->upstream(r.upstream);
  config::ProxyProtocol kind = upstream.proxy_protocol;
  if (kind != config::ProxyProtocol::off) {
    proxy_protocol::Outgoing what;
    what.version =
        kind == config::ProxyProtocol::v1 ? proxy_protocol::Version::v1 : proxy_protocol::Version::v2;
    what.client = r.client;
    what.destination = r.destination;
    what.authority = r.sni();
    what.alpn = r.alpn();
    what.crc32c = upstream.tlv_crc32c;
    if (upstream.tlv_unique_id && r.unique_id().empty()) add_unique_id(&r);
    what.passed_on = r.tlvs();
    std::array<uint8_t, proxy_protocol::kHeaderBytesMax> header;
    const auto size = static_cast<uint32_t>(proxy_protocol::encode(what, header));
    // Of a header that another program has begun this one may know another end.
    const bool begun = r.header_sent_bytes > 0 && r.header_size != size;
    if (begun && r.header_sent_bytes != r.header_size) return begin_close(f, CloseReason::adoption_failed);
    if (!begun) r.header_size = size;
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
