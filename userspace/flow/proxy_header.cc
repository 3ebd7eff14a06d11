// SPDX-License-Identifier: Apache-2.0
// flow/proxy_header.cc: who the client is, where a trusted proxy stands in front (accept_proxy.from).
//
// Its header is peeked at, recorded, and only then discarded, exactly its bytes. A later worker that finds
// discarded_bytes in the record asks the kernel whether that has happened: then received - unread says so
// too. What stands behind the header in the same segment stays where it is: whoever is next, verdict or
// splice(2), begins behind what was read (bpf/penstock.bpf.c, cut_overlap()).
//
// A proxy also looks whether we are there: it connects and closes, or says that the connection is its own (v2
// LOCAL, v1 UNKNOWN, or a header that names the proxy itself, as HAProxy's checks in v1) and closes. Neither
// costs the server behind a connection, nor the log a line.
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "base/log.h"
#include "flow/first_bytes.h"
#include "flow/worker.h"

namespace penstock::flow {
namespace {

constexpr uint64_t kLocalNs = 100'000'000;  // of its own: until the server is dialled for who says nothing
constexpr size_t kTlvBytesMax = proxy_protocol::kPassedOnBytesMax - kOwnIdTlvBytes;

bool is_its_own(const proxy_protocol::Incoming& header, const Endpoint& proxy) {
  return header.local || header.client == proxy;
}

}  // namespace

void Worker::begin_proxy_header(Flow& f) {
  set_phase_deadline(f, now_ns_ + timeout_ns(f, &config::Timeouts::proxy_header));
  arm_poll(f, Op::first_bytes, f.record->fd[kClient], POLLIN | POLLRDHUP);
}

// `events` of poll(2): 0 when it is only time to look.
void Worker::on_proxy_header(Flow& f, uint32_t events) {
  FlowRecord& r = *f.record;
  int fd = r.fd[kClient];
  const bool taken = r.direction[kUp].discarded_bytes > 0;  // its own: what comes behind the header?
  if (!taken && too_few_first_bytes(f, events)) return;
  ssize_t n = recv(fd, peek_buffer_.data(), proxy_protocol::kIncomingBytesMax, MSG_PEEK | MSG_DONTWAIT);
  bool reset = (n < 0 && errno != EAGAIN) || (events & POLLERR);
  f.peeked_bytes = taken && n > 0 ? static_cast<size_t>(n) : f.peeked_bytes;
  size_t size = n > 0 ? static_cast<size_t>(n) : 0;
  bool ended = n == 0 || r.direction[kUp].fin_received || (events & (POLLRDHUP | POLLHUP));
  if (taken) {
    if (reset || (ended && size == 0))
      return begin_close(f, size ? CloseReason::client_reset : CloseReason::proxy_probe);
    if (size > 0 || now_ns_ >= r.deadline_ns) return begin_client(f);
    return;
  }

  proxy_protocol::Incoming header;
  proxy_protocol::parse({peek_buffer_.data(), size}, &header);
  bool complete = header.verdict == proxy_protocol::Verdict::header;
  if (reset || (!complete && was_reset(fd))) {
    bool probe = size == (complete && is_its_own(header, r.client) ? header.header_bytes : 0);
    return begin_close(f, probe ? CloseReason::proxy_probe : CloseReason::client_reset);
  }
  switch (header.verdict) {
    case proxy_protocol::Verdict::header:
      f.peeked_bytes = size;
      return take_header(f, header);
    case proxy_protocol::Verdict::not_proxy:
    case proxy_protocol::Verdict::malformed:
      return begin_close(f, CloseReason::proxy_header_malformed);
    case proxy_protocol::Verdict::need_more:
      break;
  }
  if (ended) return begin_close(f, size ? CloseReason::client_closed_early : CloseReason::proxy_probe);
  if (now_ns_ >= r.deadline_ns) return begin_close(f, CloseReason::proxy_header_timeout);
  await_first_bytes(f, size, header.need_bytes, 0, r.deadline_ns);
}

// REQUIRES: the header is complete and begins the receive queue.
void Worker::take_header(Flow& f, const proxy_protocol::Incoming& header) {
  FlowRecord& r = *f.record;
  r.proxy = r.client;
  r.local = is_its_own(header, r.client);
  if (!header.local) {
    r.client = header.client;
    r.destination = header.destination;
  }
  keep_tlvs(r, header.tlvs);
  std::atomic_signal_fence(std::memory_order_seq_cst);  // the record says all of that before it says this
  r.direction[kUp].discarded_bytes = header.header_bytes;
  discard_header(f);
}

// Its bytes, which the record speaks of by now, leave the queue unread. REQUIRES: peeked_bytes counts them.
void Worker::discard_header(Flow& f) {
  const FlowRecord& r = *f.record;
  const uint64_t bytes = r.direction[kUp].discarded_bytes;
  const ssize_t n = recv(r.fd[kClient], nullptr, bytes, MSG_TRUNC | MSG_DONTWAIT);
  if (n != static_cast<ssize_t>(bytes)) return begin_close(f, CloseReason::client_reset);
  f.peeked_bytes -= bytes;
  header_taken(f);
}

// REQUIRES: peeked_bytes are there behind it.
void Worker::header_taken(Flow& f) {
  const FlowRecord& r = *f.record;
  const int fd = r.fd[kClient];
  set_low_water(fd, 1);
  if (!r.local || f.peeked_bytes > 0) return begin_client(f);
  set_phase_deadline(f, now_ns_ + kLocalNs);
  arm_poll(f, Op::first_bytes, fd, POLLIN | POLLRDHUP);
}

// Those that fit; one that does not leaves its room to the others.
void Worker::keep_tlvs(FlowRecord& r, std::span<const uint8_t> tlvs) {
  size_t dropped = 0;
  while (auto tlv = proxy_protocol::next_tlv(&tlvs)) {
    if (tlv->type == proxy_protocol::kTlvNoop) continue;
    if (r.tlvs_size + tlv->bytes.size() > kTlvBytesMax)
      dropped++;
    else
      r.add_tlv(tlv->bytes);
  }
  if (!dropped) return;
  if (read(shared_.statistics.totals->tlvs_dropped) == 0)
    log::warn("PROXY header of {}: {} TLVs are not passed on: more than {} bytes in all; said once",
              r.proxy.text(), dropped, kTlvBytesMax);
  count(shared_.statistics.totals->tlvs_dropped, dropped);
}

}  // namespace penstock::flow
