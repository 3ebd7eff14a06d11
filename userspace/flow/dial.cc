// SPDX-License-Identifier: Apache-2.0
// flow/dial.cc: connect to one of the server's addresses, as RFC 8305 has it: the next one 240 ms after the
// last or as soon as that has failed, what was begun goes on, the first to answer wins. When no address
// answers its name is asked again, whatever its TTL: a server may have moved. When all have failed, or its
// share of timeouts.connect is over, the next server has its turn, and the name behind `srv` is asked again.
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include "base/log.h"
#include "base/source_address.h"
#include "flow/dial.h"
#include "flow/socket_options.h"
#include "flow/worker.h"

namespace penstock::flow {
namespace {

CloseReason reason_of(int error, const Endpoint& to) {
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
    case ENOBUFS:
    case ENOMEM:
      return CloseReason::fd_limit;
    case EADDRNOTAVAIL:
      return has_source_address(to) ? CloseReason::fd_limit : CloseReason::connect_unreachable;
    default:
      return CloseReason::connect_failed;
  }
}

Op op_of(uint32_t attempt) {
  return static_cast<Op>(static_cast<uint32_t>(Op::connect) + attempt);
}

// steady_clock is CLOCK_MONOTONIC, as io::now_ns().
uint64_t nanoseconds_of(std::chrono::steady_clock::time_point t) {
  return static_cast<uint64_t>(std::chrono::nanoseconds(t.time_since_epoch()).count());
}

// 0, or an errno.
int bind_source(int fd, const IpAddress& source) {
  int one = 1;
  setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);  // the connect chooses it
  Endpoint from;
  from.address = source;
  sockaddr_storage a;
  const socklen_t size = from.to_sockaddr(&a);
  return bind(fd, reinterpret_cast<sockaddr*>(&a), size) ? errno : 0;
}

}  // namespace

// The PROXY header, or what the client has said already.
bool Worker::speaks_first(const Flow& f) const {
  return f.peeked_bytes > 0 ||
         f.plan->upstream(f.record->upstream).proxy_protocol != config::ProxyProtocol::off;
}

// The next address. With every attempt in flight the oldest makes room.
void Worker::begin_attempt(Flow& f) {
  Dial& dial = *f.dial;
  FlowRecord& r = *f.record;
  uint32_t free = kAttemptsMax, oldest = 0;
  for (uint32_t i = kAttemptsMax; i-- > 0;) {
    if (dial.attempts[i].fd < 0) free = i;
    if (dial.attempts[i].begun_ns < dial.attempts[oldest].begun_ns) oldest = i;
  }
  dial.wants_room = free == kAttemptsMax;
  if (dial.wants_room) return give_up(f, oldest);
  Attempt& a = dial.attempts[free];
  a = Attempt{};
  a.to.address = dial.addresses[dial.next++];
  a.to.port = f.server->what().port.value_or(r.port);
  a.begun_ns = now_ns_;
  r.server_endpoint = a.to;
  // Before anything can fail: then those in flight go on, and still may not take longer.
  const bool more = dial.next < dial.addresses.size() || !f.server->what().address;
  set_phase_deadline(f,
                     more ? std::min(dial.server_until_ns, now_ns_ + kAttemptDelayNs) : dial.server_until_ns);
  count(shared_.statistics.upstreams[r.upstream].dialed);
  a.fd = socket(a.to.address.is_v4() ? AF_INET : AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (a.fd < 0) return attempt_failed(f, free, errno, reason_of(errno, a.to));
  if (const auto& source = f.plan->upstream(r.upstream).source)
    if (const int error = bind_source(a.fd, *source))  // it is not there, or not yet
      return attempt_failed(f, free, error, CloseReason::connect_unreachable);
  socklen_t size = sizeof a.cookie;
  getsockopt(a.fd, SOL_SOCKET, SO_COOKIE, &a.cookie, &size);
  set_no_delay(a.fd);
  // We speak first: the handshake's last ACK goes with it instead of before it.
  if (speaks_first(f)) set_quick_ack(a.fd, false);
  if (shared_.splice)
    if (const int error = shared_.sockmap->attach_trim(a.fd))  // spliced without it, it would have no bound
      return attempt_failed(f, free, error, reason_of(error, a.to));
  show(f);
  f.armed |= 1u << static_cast<uint32_t>(op_of(free));
  io_->connect(a.fd, a.to, token(f, op_of(free)));
}

void Worker::give_up(Flow& f, uint32_t attempt) {
  Attempt& a = f.dial->attempts[attempt];
  if (std::exchange(a.given_up, true)) return;
  disarm(f, op_of(attempt));
}

void Worker::on_connected(Flow& f, uint32_t attempt, int result) {
  Dial& dial = *f.dial;
  Attempt& a = dial.attempts[attempt];
  if (a.given_up || f.record->phase != Phase::dialing) {
    close(std::exchange(a.fd, -1));
    if (f.record->phase == Phase::dialing && dial.wants_room) return begin_attempt(f);
    const bool found = f.record->phase != Phase::dialing && f.record->phase != Phase::resolving;
    if (found && dial.over()) delete std::exchange(f.dial, nullptr);
    return;
  }
  if (result == 0) return attempt_won(f, attempt);
  // Accepted, then reset before we looked: an attempt that is refused says ECONNREFUSED.
  if (result == -ECONNRESET || result == -EPIPE) return begin_close(f, CloseReason::upstream_reset);
  attempt_failed(f, attempt, -result, reason_of(-result, a.to));
}

void Worker::attempt_won(Flow& f, uint32_t attempt) {
  Dial& dial = *f.dial;
  FlowRecord& r = *f.record;
  Attempt& a = dial.attempts[attempt];
  r.server_endpoint = a.to;
  r.cookie[kUpstream] = a.cookie;
  r.fd[kUpstream] = std::exchange(a.fd, -1);
  if (a.to.address != dial.addresses.front()) f.server->prefer(a.to.address, now_ns_);
  if (f.server->failures() > 0) {
    const uint32_t failures = f.server->failures();
    if (f.server->dial_succeeded() && f.server->worth_a_line(now_ns_))
      log::info("upstream {}: server {} is reached again, after {} failure{}", f.server->upstream(),
                f.server->what().text, failures, failures == 1 ? "" : "s");
  }
  for (uint32_t i = 0; i < kAttemptsMax; i++)
    if (dial.attempts[i].fd >= 0) give_up(f, i);
  dial.question++;  // what is asked is asked in vain
  set_phase_deadline(f, dial.until_ns);
  if (dial.over()) delete std::exchange(f.dial, nullptr);
  advance(f, Event::connected);
  show(f);
  arm_poll(f, Op::watch_upstream, r.fd[kUpstream], 0);
  begin_prime(f);
}

void Worker::attempt_failed(Flow& f, uint32_t attempt, int error, CloseReason reason) {
  Dial& dial = *f.dial;
  Attempt& a = dial.attempts[attempt];
  if (a.fd >= 0) close(std::exchange(a.fd, -1));
  count(shared_.statistics.upstreams[f.record->upstream].dial_failed);
  dial.failure = reason;
  dial.failed_ns = now_ns_;
  if (f.server->failures() == 0 && f.server->worth_a_line(now_ns_))
    log::warn("upstream {}: {}: {}", f.server->upstream(), a.to.text(), strerror(error));
  if (dial.failure == CloseReason::fd_limit) {  // what is in flight has its descriptor
    if (!dial.in_flight()) begin_close(f, dial.failure);
    return;
  }
  if (dial.next < dial.addresses.size()) return begin_attempt(f);
  if (dial.in_flight() || dial.renewing) return;
  if (!f.server->what().address && !dial.renewed) return begin_renew(f);
  server_failed(f, dial.failure, "");
}

// Nobody has answered for a while, or the time is over.
void Worker::on_dial_deadline(Flow& f) {
  Dial& dial = *f.dial;
  if (now_ns_ >= dial.server_until_ns) {
    for (const Attempt& a : dial.attempts)
      if (a.fd >= 0 && !a.given_up) count(shared_.statistics.upstreams[f.record->upstream].dial_failed);
    return server_failed(f, CloseReason::connect_timeout, strerror(ETIMEDOUT));
  }
  if (dial.next < dial.addresses.size()) return begin_attempt(f);
  if (f.server->what().address) return set_phase_deadline(f, dial.server_until_ns);
  begin_renew(f);
}

void Worker::begin_renew(Flow& f) {
  Dial& dial = *f.dial;
  set_phase_deadline(f, std::min(dial.server_until_ns, now_ns_ + kRenewNs));
  if (std::exchange(dial.renewing, true)) return;
  const auto family = static_cast<dns::Family>(f.plan->upstream(f.record->upstream).family);
  shared_.resolver->renew(f.server->what().host, family, answer_for(f, &Worker::on_renewed));
}

void Worker::on_renewed(Flow& f, const dns::Answer& answer) {
  Dial& dial = *f.dial;
  dial.renewing = false;
  dial.renewed = true;
  set_answer(*f.server, answer);
  for (const IpAddress& address : answer.addresses)
    if (std::find(dial.addresses.begin(), dial.addresses.end(), address) == dial.addresses.end())
      dial.addresses.push_back(address);
  if (dial.next < dial.addresses.size()) return begin_attempt(f);
  if (dial.in_flight()) return;
  // Said before the last attempt failed, since a name is asked once a second at most: it may be another now.
  const bool old = nanoseconds_of(answer.obtained) < dial.failed_ns && answer.error.empty();
  const size_t servers = f.plan->servers(f.record->upstream).size();
  const bool others = dial.retries_left > 0 && servers > dial.tried.size() + 1;
  if (!old || others) return server_failed(f, dial.failure, "");
  set_phase_deadline(f, std::min(dial.server_until_ns, now_ns_ + kRenewNs));
}

// In `resolving` or `dialing`: the next one, or the end. `why`: for the log, where no attempt has said it.
void Worker::server_failed(Flow& f, CloseReason reason, const std::string& why) {
  Dial& dial = *f.dial;
  const config::Upstream& u = f.plan->upstream(f.record->upstream);
  dial.failure = reason;
  dial.question++;
  if (f.server->dial_failed(now_ns_) && !why.empty() && f.server->worth_a_line(now_ns_))
    log::warn("upstream {}: server {}: {}", u.name, f.server->what().text, why);
  if (shared_.on_dial_failed) shared_.on_dial_failed(*f.server, reason);
  if (!u.srv.empty()) shared_.resolver->renew_srv(u.srv, [](const dns::Answer&) {});  // for the flows to come
  if (dial.retries_left == 0 || now_ns_ >= dial.until_ns) return begin_close(f, reason);
  for (uint32_t i = 0; i < kAttemptsMax; i++)
    if (dial.attempts[i].fd >= 0) give_up(f, i);
  dial.retries_left--;
  dial.tried.push_back(f.server);
  Upstream::give_back(std::exchange(f.server, nullptr));
  if (f.record->phase == Phase::dialing) advance(f, Event::next_server);
  begin_server(f);
}

}  // namespace penstock::flow
