// SPDX-License-Identifier: Apache-2.0
// flow/first_bytes.cc: waiting for what a client says first, and the strangers among them.
//
// Where proxies are trusted and others may connect directly (accept_proxy, others = "direct"), a stranger
// that begins like a PROXY header must not get it through to a server that believes us. So the flow opens
// with its direction `up` in lane `held`: its source is in no sockmap and nobody relays it, while the dial
// and `down` go on. As soon as its first bytes are no header, or the client has said FIN, `up` goes on as any
// direction that was held. Who begins a signature and stops has timeouts.proxy_header to go on: let through,
// what it says next would make a header of it, at a server that expects one. Listeners that peek at a hello
// judge there (classify.cc), before the dial.
#include "flow/first_bytes.h"

#include <linux/sockios.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "base/assert.h"
#include "flow/account.h"
#include "flow/worker.h"

namespace penstock::flow {
namespace {

constexpr uint64_t kLookAgainNs = 1'000'000;  // at the soonest
constexpr size_t kSignatureBytesMax = 12;     // of both versions

}  // namespace

void set_low_water(int fd, size_t bytes) {
  int n = static_cast<int>(bytes);
  setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &n, sizeof n);
}

bool was_reset(int fd) {
  int error = 0;
  socklen_t size = sizeof error;
  if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error != 0) return true;
  SocketAccount account;
  return read_received(fd, &account) && account.state == TCP_CLOSE;
}

void Worker::on_first_bytes(Flow& f, uint32_t events) {
  switch (f.record->phase.load()) {
    case Phase::proxy_header:
      return on_proxy_header(f, events);
    case Phase::classifying:
      return on_hello(f, events);
    case Phase::open:
      if (f.record->unproven) check_first_bytes(f);
      return;
    case Phase::resolving:  // the other watch of this socket was first
    case Phase::dialing:
    case Phase::priming:
    case Phase::handing_off:
      return;
    case Phase::free:
    case Phase::closing:
      PENSTOCK_ASSERT(false);
  }
}

// `size` bytes are there, fewer than `need_bytes` bring no news. `deadline`: the flow's timer (0: of the
// phase, 1 + d: of a direction) that is to end this at `until_ns`.
void Worker::await_first_bytes(Flow& f, size_t size, size_t need_bytes, uint32_t deadline,
                               uint64_t until_ns) {
  f.peeked_bytes = size;
  if (size < f.awaited_bytes) return look_again(f, deadline, until_ns);
  f.awaited_bytes = need_bytes;
  set_low_water(f.record->fd[kClient], need_bytes);
  arm_poll(f, Op::first_bytes, f.record->fd[kClient], POLLIN | POLLRDHUP);
  deadlines_.set(f.slot * kDeadlinesPerFlow + deadline, until_ns);
}

// Below the low-water mark the kernel wakes us where memory is short, again and again, so that poll(2) would
// only spin. An eighth of the time it took to get here is soon enough.
void Worker::look_again(Flow& f, uint32_t deadline, uint64_t until_ns) {
  const uint64_t wait_ns = std::max(kLookAgainNs, (now_ns_ - f.record->accepted_ns) / 8);
  deadlines_.set(f.slot * kDeadlinesPerFlow + deadline, std::min(until_ns, now_ns_ + wait_ns));
}

// Of the phase's first bytes there are too few to look at; they will be, later. A look takes as long as there
// are segments, milliseconds where thousands have one byte each; to ask for their number does not.
bool Worker::too_few_first_bytes(Flow& f, uint32_t events) {
  const FlowRecord& r = *f.record;
  int bytes = 0;
  if (f.awaited_bytes == 0 || (events & (POLLRDHUP | POLLHUP | POLLERR)) || r.direction[kUp].fin_received ||
      now_ns_ >= r.deadline_ns || ioctl(r.fd[kClient], SIOCINQ, &bytes) ||
      static_cast<size_t>(bytes) >= f.awaited_bytes)
    return false;
  look_again(f, 0, r.deadline_ns);
  return true;
}

// REQUIRES: open, `up` is held, nothing of it has moved.
void Worker::check_first_bytes(Flow& f) {
  FlowRecord& r = *f.record;
  int fd = r.fd[kClient];
  ssize_t n = recv(fd, peek_buffer_.data(), kSignatureBytesMax, MSG_PEEK | MSG_DONTWAIT);
  if (n < 0 && errno != EAGAIN) return begin_close(f, CloseReason::client_reset);
  size_t size = n > 0 ? static_cast<size_t>(n) : 0;
  auto signature = proxy_protocol::signature({peek_buffer_.data(), size});
  if (signature == proxy_protocol::Signature::whole) return begin_close(f, CloseReason::proxy_not_trusted);
  if (size > 0 && !f.proven_by_ns) f.proven_by_ns = now_ns_ + timeout_ns(f, &config::Timeouts::proxy_header);
  if (signature == proxy_protocol::Signature::prefix && !r.direction[kUp].fin_received) {
    if (size > 0 && now_ns_ >= f.proven_by_ns) return begin_close(f, CloseReason::proxy_not_trusted);
    return await_first_bytes(f, size, size + 1, 1 + kUp, size ? f.proven_by_ns : io::Deadlines::kNever);
  }
  r.unproven = 0;
  set_low_water(fd, 1);
  if (r.known)
    check_held(f, kUp, LaneChange::first_bytes);
  else
    enter_relay(f, kUp, LaneChange::engine);
}

}  // namespace penstock::flow
