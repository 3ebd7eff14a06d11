// SPDX-License-Identifier: Apache-2.0
// flow/dial.cc: connect to the server's addresses, one after the other, within timeouts.connect.
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/log.h"
#include "flow/socket_options.h"
#include "flow/worker.h"

namespace penstock::flow {
namespace {

CloseReason reason_of(int error) {
  switch (error) {
    case ECONNREFUSED:
      return CloseReason::connect_refused;
    case EHOSTUNREACH:
    case ENETUNREACH:
    case EHOSTDOWN:
    case ENETDOWN:
    case EACCES:
    case EPERM:
      return CloseReason::connect_unreachable;
    case ETIMEDOUT:
      return CloseReason::connect_timeout;
    case EMFILE:
    case ENFILE:
    case EADDRNOTAVAIL:
      return CloseReason::fd_limit;
    default:
      return CloseReason::connect_failed;
  }
}

}  // namespace

// The PROXY header, or what the client has said already.
bool Worker::speaks_first(const Flow& f) const {
  return f.peeked_bytes > 0 ||
         shared_.config->upstreams[f.record->upstream].proxy_protocol != config::ProxyProtocol::off;
}

void Worker::begin_dial(Flow& f) {
  FlowRecord& r = *f.record;
  const config::Server& s = shared_.config->upstreams[r.upstream].servers[r.server];
  Endpoint to;
  to.address = (*f.addresses)[r.address_index];
  to.port = s.port.value_or(r.destination.port);
  int fd = socket(to.address.is_v4() ? AF_INET : AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return dial_failed(f, reason_of(errno), errno);
  r.server_endpoint = to;
  r.cookie[kUpstream] = 0;
  r.fd[kUpstream] = fd;
  socklen_t size = sizeof r.cookie[kUpstream];
  getsockopt(fd, SOL_SOCKET, SO_COOKIE, &r.cookie[kUpstream], &size);
  set_no_delay(fd);
  // We speak first: the handshake's last ACK goes with it instead of before it.
  if (speaks_first(f)) set_quick_ack(fd, false);
  if (shared_.splice) shared_.sockmap->attach_trim(fd);
  count(shared_.statistics.upstreams[r.upstream].dialed);
  show(f);
  // What is left of timeouts.connect, shared among the addresses not tried yet.
  if (!f.dial_until_ns) f.dial_until_ns = r.deadline_ns;
  uint64_t left = f.dial_until_ns > now_ns_ ? f.dial_until_ns - now_ns_ : 0,
           tries = f.addresses->size() - r.address_index;
  set_phase_deadline(f, now_ns_ + left / tries);
  f.timed_out = false;
  f.armed |= 1u << static_cast<uint32_t>(Op::connect);
  io_->connect(fd, to, token(f, Op::connect));
}

void Worker::on_connected(Flow& f, int result) {
  if (f.record->phase != Phase::dialing) return;
  if (result == 0) {
    advance(f, Event::connected);
    arm_poll(f, Op::watch_upstream, f.record->fd[kUpstream], 0);
    return begin_prime(f);
  }
  // Accepted, then reset before we looked: an attempt that is refused says ECONNREFUSED.
  if (result == -ECONNRESET || result == -EPIPE) return begin_close(f, CloseReason::upstream_reset);
  if (f.timed_out) return dial_failed(f, CloseReason::connect_timeout, ETIMEDOUT);
  dial_failed(f, reason_of(-result), -result);
}

void Worker::dial_failed(Flow& f, CloseReason reason, int error) {
  FlowRecord& r = *f.record;
  count(shared_.statistics.upstreams[r.upstream].dial_failed);
  log::warn("upstream {}: {}: {}", shared_.config->upstreams[r.upstream].name, r.server_endpoint.text(),
            strerror(error));
  if (r.fd[kUpstream] >= 0 && r.address_index + 1 < f.addresses->size() && reason != CloseReason::fd_limit) {
    int fd = std::exchange(r.fd[kUpstream], -1);
    close(fd);
    r.address_index++;
    advance(f, Event::next_address);
    return begin_dial(f);
  }
  begin_close(f, reason);
}

}  // namespace penstock::flow
