// SPDX-License-Identifier: Apache-2.0
// flow/classify.cc: wait for the ClientHello without reading it, then choose the upstream. The bytes stay in
// the socket's receive queue; SO_RCVLOWAT makes the kernel wait for as many as can bring news, so a hello in
// 1-byte segments costs a handful of wake-ups, not one a byte.
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <vector>

#include "flow/worker.h"

namespace penstock::flow {
namespace {

constexpr uint64_t kNoNewsNs = 10'000'000;

void set_low_water(int fd, size_t bytes) {
  int n = static_cast<int>(bytes);
  setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &n, sizeof n);
}

bool reset(int fd) {
  int error = 0;
  socklen_t size = sizeof error;
  return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error != 0;
}

}  // namespace

void Worker::begin_classify(Flow& f) {
  set_phase_deadline(f, now_ns_ + timeout_ns(f, &config::Timeouts::client_hello));
  arm_poll(f, Op::hello, f.record->fd[kClient], POLLIN | POLLRDHUP);
}

void Worker::on_hello(Flow& f, int events) {
  FlowRecord& r = *f.record;
  int fd = r.fd[kClient];
  if (events < 0) return;
  ssize_t n = recv(fd, peek_buffer_.data(), peek_buffer_.size(), MSG_PEEK | MSG_DONTWAIT);
  if (n < 0 && errno != EAGAIN) return begin_close(f, CloseReason::client_reset);
  size_t size = n > 0 ? static_cast<size_t>(n) : 0;
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
  if (reset(fd)) return begin_close(f, CloseReason::client_reset);
  if (n == 0 || (events & (POLLRDHUP | POLLHUP)) || r.direction[kUp].fin_received)
    return begin_close(f, CloseReason::client_closed_early);
  // The kernel wakes us below the low-water mark when memory is short. Then poll would only spin: look again
  // later.
  bool news = size > f.peeked_bytes || f.peeked_bytes == 0;
  f.peeked_bytes = size;
  if (news) {
    set_low_water(fd, hello.need_bytes);
    arm_poll(f, Op::hello, fd, POLLIN | POLLRDHUP);
    deadlines_.set(f.slot * 3, r.deadline_ns);
  } else {
    deadlines_.set(f.slot * 3, std::min(r.deadline_ns, now_ns_ + kNoNewsNs));
  }
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
  route::Decision decision = f.plan->routes().decide(f.plan->listener_index(r.listener),
                                                     {r.sni(), alpn, r.client.address, r.destination.port});
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
