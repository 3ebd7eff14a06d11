// SPDX-License-Identifier: Apache-2.0
#include "sim/peer.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace penstock::sim {
namespace {

constexpr uint64_t kIdleFirstNs = 200'000, kIdleLastNs = 400'000'000;

}  // namespace

Peer::Peer(Kernel& kernel, std::string name, const Talk& what) : talk(what), kernel_(kernel) {
  out.name = std::move(name);
  out.first = talk.first;
}

void Peer::begin(Socket* s) {
  socket = s;
  s->receive_buffer = talk.receive_buffer;
  kernel_.after(talk.begin_ns, [this] { speak(); });
  kernel_.after(kernel_.delay(), [this] { listen(); });
  if (talk.reset_at_ns)
    kernel_.after(talk.reset_at_ns, [this] {
      if (over()) return;
      did_reset = true;
      hang_up();
    });
}

void Peer::hang_up() {
  if (std::exchange(gone, true)) return;
  if (did_reset)
    kernel_.reset(socket);
  else
    kernel_.close_socket(socket, false);
}

void Peer::speak() {
  if (over() || ended_) return;
  if (heard < talk.answer_after && !heard_eof)
    return kernel_.after(kernel_.delay() + 1'000'000 + idle_ns_, [this] { speak(); });
  if (said < talk.say_bytes) {
    uint64_t n = std::min<uint64_t>(talk.say_bytes - said, talk.portion);
    bool urgent = false;
    if (said <= talk.urgent_at && talk.urgent_at < said + n) {
      n = talk.urgent_at - said + 1;
      urgent = true;
    }
    if (kernel_.tracing)
      kernel_.trace(fmt::format("{} says {} from {}, pause up to {} ns", out.name, n, said, talk.pause_ns));
    said += kernel_.write(socket, Bytes(&out, said, static_cast<uint32_t>(n)), urgent);
    return kernel_.after(kernel_.delay() + (talk.pause_ns ? kernel_.random.log_between(1, talk.pause_ns) : 0),
                         [this] { speak(); });
  }
  if (talk.end == Talk::silent) return;
  if (talk.end == Talk::fin_after_eof && !heard_eof)
    return kernel_.after(5'000'000 + idle_ns_, [this] { speak(); });
  kernel_.after(1 + talk.linger_ns, [this] { finish(); });
}

void Peer::finish() {
  if (over() || std::exchange(ended_, true)) return;
  switch (talk.end) {
    case Talk::fin:
    case Talk::fin_after_eof:
      said_fin = true;
      kernel_.shutdown_write(socket);
      if (heard_eof) hang_up();
      return;
    case Talk::reset:
      did_reset = true;
      return hang_up();
    case Talk::close:  // with bytes unread or to come the kernel makes a RST of it
      said_fin = true;
      return hang_up();
    case Talk::silent:
      return;
  }
}

void Peer::listen() {
  if (over()) return;
  Bytes bytes = kernel_.read(socket, talk.read_portion);
  for (const Extent& e : bytes.extents()) {
    on_bytes(e);
    heard += e.length;
  }
  if (socket->readable() == 0 && socket->done && !heard_eof) {
    heard_eof = true;
    on_eof();
    if (ended_) return hang_up();
  }
  if (socket->error) {
    heard_reset = true;
    return;
  }
  if (heard_eof && socket->state == TCP_CLOSE) return;
  uint64_t pause = kernel_.delay();
  if (talk.read_pause_ns) pause += kernel_.random.log_between(1, talk.read_pause_ns);
  idle_ns_ = bytes.size() > 0 ? 0 : std::clamp(2 * idle_ns_, kIdleFirstNs, kIdleLastNs);
  kernel_.after(pause + idle_ns_, [this] { listen(); });
}

}  // namespace penstock::sim
