// SPDX-License-Identifier: Apache-2.0
#include "sockmap/loopback_flow.h"

#include <fmt/format.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "base/endpoint.h"

namespace penstock::sockmap {
namespace {

void require_call(int result, std::string_view call) {
  require(result >= 0, fmt::format("{}: {}", call, strerror(errno)));
}
void require_zero(int error, std::string_view what) {
  require(error == 0, fmt::format("{}: {}", what, strerror(error)));
}

Fd tcp_socket(bool v6) {
  Fd fd(::socket(v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  require_call(fd.get(), "socket");
  return fd;
}

void set_buffer(const Fd& fd, int option, int bytes) {
  if (bytes)
    require_call(::setsockopt(fd.get(), SOL_SOCKET, option, &bytes, sizeof bytes), "set a socket buffer");
}

void no_delay(const Fd& fd) {
  int on = 1;
  require_call(::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on), "TCP_NODELAY");
}

struct Listener {
  Fd fd;
  sockaddr_storage address{};
  socklen_t length = sizeof address;
};

Listener listen_on_loopback(bool v6, int receive_buffer_bytes) {
  Listener l;
  l.fd = tcp_socket(v6);
  set_buffer(l.fd, SO_RCVBUF, receive_buffer_bytes);
  Endpoint any_port;
  any_port.address = *IpAddress::parse(v6 ? "::1" : "127.0.0.1");
  sockaddr_storage to{};
  socklen_t length = any_port.to_sockaddr(&to);
  require_call(::bind(l.fd.get(), reinterpret_cast<sockaddr*>(&to), length), "bind to loopback");
  require_call(::listen(l.fd.get(), 1), "listen");
  require_call(::getsockname(l.fd.get(), reinterpret_cast<sockaddr*>(&l.address), &l.length), "getsockname");
  return l;
}

void connect_to(const Listener& l, const Fd& from, Fd& accepted) {
  if (::connect(from.get(), reinterpret_cast<const sockaddr*>(&l.address), l.length))
    require(errno == EINPROGRESS, fmt::format("connect over loopback: {}", strerror(errno)));
  wait_for(l.fd.get(), POLLIN, "a connection over loopback");
  accepted = Fd(::accept4(l.fd.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  require_call(accepted.get(), "accept");
  wait_for(from.get(), POLLOUT, "a connection over loopback");
  no_delay(from);
  no_delay(accepted);
}

tcp_info info(int fd) {
  tcp_info i{};
  socklen_t length = sizeof i;
  require_call(::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &i, &length), "TCP_INFO");
  return i;
}

}  // namespace

void require(bool condition, std::string_view reason) {
  if (!condition) throw CheckFailed(std::string(reason));
}

LoopbackFlow::LoopbackFlow(Sockmap& sockmap, uint32_t slot, const FlowShape& shape)
    : sockmap_(sockmap), slot_(slot), shape_(shape) {
  Listener edge = listen_on_loopback(shape.v6, 0),
           upstream = listen_on_loopback(shape.v6, shape.server_receive_buffer_bytes);
  client_ = tcp_socket(shape.v6);
  ours_[1] = tcp_socket(shape.v6);
  set_buffer(ours_[1], SO_SNDBUF, shape.target_send_buffer_bytes);
  connect_to(edge, client_, ours_[0]);
  connect_to(upstream, ours_[1], server_);
  for (int side = 0; side < 2; side++) {
    socklen_t length = sizeof cookies_[side];
    require_call(::getsockopt(ours(side), SOL_SOCKET, SO_COOKIE, &cookies_[side], &length), "SO_COOKIE");
  }
}

LoopbackFlow::~LoopbackFlow() {
  if (taken_) sockmap_.leave(slot_, cookies_);
  for (Fd* fd : {&ours_[0], &ours_[1], &client_, &server_}) reset_and_close(*fd);
}

void LoopbackFlow::hand_off() {
  taken_ = true;
  require_zero(
      sockmap_.take(slot_, slot_, cookies_, {shape_.high_bytes, shape_.bulk_bytes, shape_.limit_bytes}),
      "take a slot");
  for (int side = 0; side < 2; side++) {
    require_zero(sockmap_.attach_trim(ours(side)), "attach the trim filter");
    require_zero(sockmap_.join(2 * slot_ + static_cast<uint32_t>(side), ours(side)), "insert into targets");
  }
  for (uint32_t index : {up(), down()}) reopen(index, true);
}

void LoopbackFlow::reopen(uint32_t index, bool fresh) {
  int fd = ours(static_cast<int>(index & 1));
  require_zero(sockmap_.open_valve(index, fd, fresh), "insert into sources");
  require_zero(Sockmap::kick(fd), "kick");
}

void LoopbackFlow::close_valve(uint32_t index) {
  require(sockmap_.close_valve(index, ours(static_cast<int>(index & 1))),
          "the valve did not close under the socket lock");
}

uint64_t LoopbackFlow::redirected(uint32_t index) const {
  return sockmap_.direction(index).redirected;
}

uint64_t LoopbackFlow::written(uint32_t index) const {
  int side = static_cast<int>(index & 1) ^ 1;
  return written_bytes(ours(side), side == 1);
}

void LoopbackFlow::wait_written(uint32_t index) const {
  if (within_patience([&] { return written(index) == redirected(index); })) return;
  throw CheckFailed(
      fmt::format("{} bytes redirected, but the target has taken {}", redirected(index), written(index)));
}

void LoopbackFlow::check_account(uint32_t index, bool fin_came) const {
  int fd = ours(static_cast<int>(index & 1));
  uint64_t received, unread;
  do {  // between two equal counts nothing arrived
    unread = unread_bytes(fd);
    received = received_bytes(fd);
  } while (unread_bytes(fd) != unread);
  uint64_t accounted = redirected(index) + unread + (fin_came ? 1 : 0);
  require(received == accounted,
          fmt::format("received {} bytes, but only {} are accounted for", received, accounted));
}

uint64_t written_bytes(int fd, bool we_connected) {
  uint64_t acked = info(fd).tcpi_bytes_acked, before;
  int queued = 0;
  do {  // SIOCOUTQ is write_seq - snd_una: with snd_una where it was, the sum is write_seq
    before = acked;
    require_call(::ioctl(fd, SIOCOUTQ, &queued), "SIOCOUTQ");
    acked = info(fd).tcpi_bytes_acked;
  } while (acked != before);
  return acked + static_cast<uint64_t>(queued) - (we_connected ? 1 : 0);  // our SYN was acked too
}

uint64_t received_bytes(int fd) {
  return info(fd).tcpi_bytes_received;
}

uint64_t unread_bytes(int fd) {
  ssize_t n = ::recv(fd, nullptr, 1 << 30, MSG_PEEK | MSG_TRUNC | MSG_DONTWAIT);
  require(n >= 0 || errno == EAGAIN, fmt::format("peek: {}", strerror(errno)));
  return n > 0 ? static_cast<uint64_t>(n) : 0;
}

void send_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    wait_for(fd, POLLOUT, "room to send");
    ssize_t n = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n < 0 && errno == EAGAIN) continue;
    require(n >= 0, fmt::format("send: {}", strerror(errno)));
    bytes.remove_prefix(static_cast<size_t>(n));
  }
}

std::string receive(int fd, size_t bytes) {
  std::string out(bytes, '\0');
  for (size_t got = 0; got < bytes;) {
    wait_for(fd, POLLIN, fmt::format("byte {} of {}", got, bytes));
    ssize_t n = ::recv(fd, out.data() + got, bytes - got, 0);
    if (n < 0 && errno == EAGAIN) continue;
    require(n > 0, n ? strerror(errno) : "the stream ended early");
    got += static_cast<size_t>(n);
  }
  return out;
}

short wait_for(int fd, short events, std::string_view what) {
  pollfd p{fd, events, 0};
  int n;
  do n = ::poll(&p, 1, static_cast<int>(kProbePatience.count()));
  while (n < 0 && errno == EINTR);
  require(n > 0, fmt::format("waited {} ms in vain for {}", kProbePatience.count(), what));
  return p.revents;
}

void wait_unread(int fd, uint64_t bytes) {
  require(within_patience([&] { return unread_bytes(fd) >= bytes; }),
          "bytes sent over loopback did not arrive");
}

void half_close(int fd) {
  require_call(::shutdown(fd, SHUT_WR), "shutdown");
}

void reset_and_close(Fd& fd) {
  linger at_once{1, 0};
  ::setsockopt(fd.get(), SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
  fd.reset();
}

}  // namespace penstock::sockmap
