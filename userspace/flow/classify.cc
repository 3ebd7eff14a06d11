// SPDX-License-Identifier: Apache-2.0
// flow/classify.cc: wait for the ClientHello without reading it, then choose the upstream.
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <vector>

#include "flow/first_bytes.h"
#include "flow/worker.h"

namespace penstock::flow {

void Worker::begin_classify(Flow& f) {
  set_phase_deadline(f, now_ns_ + timeout_ns(f, &config::Timeouts::client_hello));
  f.peeked_bytes = f.awaited_bytes = 0;
  arm_poll(f, Op::first_bytes, f.record->fd[kClient], POLLIN | POLLRDHUP);
}

// `events` of poll(2): 0 when it is only time to look.
void Worker::on_hello(Flow& f, uint32_t events) {
  FlowRecord& r = *f.record;
  int fd = r.fd[kClient];
  if (!r.unproven && too_few_first_bytes(f, events)) return;
  ssize_t n = recv(fd, peek_buffer_.data(), peek_buffer_.size(), MSG_PEEK | MSG_DONTWAIT);
  if (n < 0 && errno != EAGAIN) return begin_close(f, CloseReason::client_reset);
  size_t size = n > 0 ? static_cast<size_t>(n) : 0;
  bool ended = n == 0 || (events & (POLLRDHUP | POLLHUP)) || r.direction[kUp].fin_received;
  if (r.unproven && size > 0) {
    auto signature = proxy_protocol::signature({peek_buffer_.data(), size});
    if (signature == proxy_protocol::Signature::whole) return begin_close(f, CloseReason::proxy_not_trusted);
    if (!f.proven_by_ns) f.proven_by_ns = now_ns_ + timeout_ns(f, &config::Timeouts::proxy_header);
    uint64_t until_ns = std::min(f.proven_by_ns, r.deadline_ns);
    if (signature == proxy_protocol::Signature::prefix && !ended) {
      if (now_ns_ >= until_ns) return begin_close(f, CloseReason::proxy_not_trusted);
      return await_first_bytes(f, size, size + 1, 0, until_ns);
    }
    r.unproven = 0;
  }
  tls::ClientHello hello;
  tls::parse_client_hello({peek_buffer_.data(), size}, &hello);
  switch (hello.verdict) {
    case tls::Verdict::hello:
    case tls::Verdict::not_tls:
      set_low_water(fd, 1);
      return route(f, &hello);
    case tls::Verdict::malformed:
      return begin_close(f, CloseReason::client_hello_malformed);
    case tls::Verdict::need_more:
      break;
  }
  // After a reset recv() first gives what came before it.
  if (was_reset(fd)) return begin_close(f, CloseReason::client_reset);
  if (ended) return begin_close(f, CloseReason::client_closed_early);
  if (now_ns_ >= r.deadline_ns) return begin_close(f, CloseReason::client_hello_timeout);
  await_first_bytes(f, size, hello.need_bytes, 0, r.deadline_ns);
}

// `hello`: null on a listener that does not wait for one.
void Worker::route(Flow& f, const tls::ClientHello* hello) {
  FlowRecord& r = *f.record;
  std::vector<std::string_view> alpn;
  if (hello && hello->verdict == tls::Verdict::hello) {
    r.sni_size = static_cast<uint8_t>(hello->sni().copy(r.sni_bytes.data(), r.sni_bytes.size()));
    auto list = hello->alpn();
    for (auto name = tls::next_alpn(&list); !name.empty(); name = tls::next_alpn(&list)) alpn.push_back(name);
    if (!alpn.empty())
      r.alpn_size = static_cast<uint8_t>(alpn[0].copy(r.alpn_bytes.data(), r.alpn_bytes.size()));
  }
  route::Decision decision =
      f.plan->routes().decide(f.plan->listener_index(r.listener), {r.sni(), alpn, r.client.address, r.port});
  r.route = decision.route;
  if (!decision.reject) r.upstream = f.plan->upstream_slot(decision.upstream);
  if (hello) {
    if (decision.reject) return begin_close(f, CloseReason::route_rejected);
    advance(f, Event::classified);
  } else if (decision.reject) {
    return begin_close(f, CloseReason::route_rejected);
  }
  begin_resolve(f);
}

}  // namespace penstock::flow
