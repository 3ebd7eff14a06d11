// SPDX-License-Identifier: Apache-2.0
#include "support/tcp.h"

#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <stdexcept>
#include <system_error>

namespace penstock::test {
namespace {

[[noreturn]] void fail(const char* what) {
  throw std::system_error(errno, std::generic_category(), what);
}

Fd tcp_socket(const Endpoint& for_address) {
  Fd fd(::socket(for_address.address.is_v4() ? AF_INET : AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) fail("socket");
  return fd;
}

int bind_to(int fd, const Endpoint& address) {
  sockaddr_storage raw;
  const socklen_t length = address.to_sockaddr(&raw);
  return ::bind(fd, reinterpret_cast<sockaddr*>(&raw), length);
}

int connect_to(int fd, const Endpoint& address) {
  sockaddr_storage raw;
  const socklen_t length = address.to_sockaddr(&raw);
  return ::connect(fd, reinterpret_cast<sockaddr*>(&raw), length);
}

void be_patient(int fd) {
  const timeval patience{kPatience.count() / 1000, 0};
  ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  ::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
}

Endpoint name_of(int fd, int (*get)(int, sockaddr*, socklen_t*)) {
  sockaddr_storage raw{};
  socklen_t length = sizeof raw;
  if (get(fd, reinterpret_cast<sockaddr*>(&raw), &length) != 0) fail("getsockname");
  return Endpoint::from_sockaddr(reinterpret_cast<sockaddr*>(&raw), length).value();
}

void set_option(int fd, int level, int option, int value) {
  if (::setsockopt(fd, level, option, &value, sizeof value) != 0) fail("setsockopt");
}

}  // namespace

Endpoint at(std::string_view address, uint16_t port) {
  Endpoint e;
  e.address = IpAddress::parse(address).value();
  e.port = port;
  return e;
}

TcpStream::TcpStream(Fd fd) : fd_(std::move(fd)) {
  be_patient(fd_.get());
  set_option(fd_.get(), IPPROTO_TCP, TCP_NODELAY, 1);
}

TcpStream TcpStream::connect(const Endpoint& to, std::optional<Endpoint> from) {
  TcpStream stream(tcp_socket(to));
  if (from) {
    set_option(stream.fd(), SOL_SOCKET, SO_REUSEADDR, 1);
    if (bind_to(stream.fd(), *from) != 0) fail("bind");
  }
  if (connect_to(stream.fd(), to) != 0) fail(("connect " + to.text()).c_str());
  return stream;
}

int TcpStream::try_connect(const Endpoint& to) {
  const Fd fd = tcp_socket(to);
  be_patient(fd.get());
  return connect_to(fd.get(), to) == 0 ? 0 : errno;
}

void TcpStream::send_all(std::string_view bytes) const {
  while (!bytes.empty()) {
    const ssize_t n = ::send(fd(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("send");
    bytes.remove_prefix(static_cast<size_t>(n));
  }
}

void TcpStream::send_all_with_fin(std::string_view bytes) const {
  set_option(fd(), IPPROTO_TCP, TCP_NODELAY, 0);
  set_option(fd(), IPPROTO_TCP, TCP_CORK, 1);  // the tail waits for shutdown, which sends it with the FIN
  send_all(bytes);
  half_close();
}

std::string TcpStream::recv_exactly(size_t bytes) const {
  std::string out(bytes, '\0');
  size_t got = 0;
  while (got < bytes) {
    const ssize_t n = ::recv(fd(), out.data() + got, bytes - got, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0)
      fail(("recv after " + std::to_string(got) + " of " + std::to_string(bytes) + " bytes").c_str());
    if (n == 0) {
      throw std::runtime_error("end of stream after " + std::to_string(got) + " of " + std::to_string(bytes) +
                               " bytes: '" + out.substr(0, std::min<size_t>(got, 200)) + "'");
    }
    got += static_cast<size_t>(n);
  }
  return out;
}

std::string TcpStream::recv_line() const {
  std::string line;
  for (;;) {
    line += recv_exactly(1);
    if (line.back() == '\n') break;
  }
  line.pop_back();
  return line;
}

End TcpStream::recv_to_end(std::string* out) const {
  char bytes[65536];
  for (;;) {
    const ssize_t n = ::recv(fd(), bytes, sizeof bytes, 0);
    if (n == 0) return End::fin;
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == ECONNRESET) return End::reset;
    if (n < 0) fail("recv");
    if (out != nullptr) out->append(bytes, static_cast<size_t>(n));
  }
}

ssize_t TcpStream::recv_some(char* out, size_t bytes_max) const {
  const ssize_t n = ::recv(fd(), out, bytes_max, 0);
  return n < 0 ? -errno : n;
}

bool TcpStream::readable_within(milliseconds limit) const {
  pollfd p{fd(), POLLIN | POLLRDHUP, 0};
  return ::poll(&p, 1, static_cast<int>(limit.count())) > 0;
}

void TcpStream::half_close() const {
  if (::shutdown(fd(), SHUT_WR) != 0 && errno != ENOTCONN) fail("shutdown");
}

void TcpStream::reset() {
  const linger at_once{1, 0};
  if (::setsockopt(fd(), SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once) != 0) fail("SO_LINGER");
  fd_.reset();
}

void TcpStream::set_receive_buffer(int bytes) const {
  set_option(fd(), SOL_SOCKET, SO_RCVBUF, bytes);
}
void TcpStream::set_send_buffer(int bytes) const {
  set_option(fd(), SOL_SOCKET, SO_SNDBUF, bytes);
}
Endpoint TcpStream::local() const {
  return name_of(fd(), &::getsockname);
}
Endpoint TcpStream::peer() const {
  return name_of(fd(), &::getpeername);
}

TcpListener::TcpListener(const Endpoint& address, int backlog) : address_(address), fd_(tcp_socket(address)) {
  set_option(fd_.get(), SOL_SOCKET, SO_REUSEADDR, 1);
  if (!address.address.is_v4()) set_option(fd_.get(), IPPROTO_IPV6, IPV6_V6ONLY, 1);
  if (bind_to(fd_.get(), address) != 0) fail(("bind " + address.text()).c_str());
  if (::listen(fd_.get(), backlog) != 0) fail("listen");
  address_ = name_of(fd_.get(), &::getsockname);
}

std::optional<TcpStream> TcpListener::accept_within(milliseconds limit) const {
  pollfd p{fd_.get(), POLLIN, 0};
  if (::poll(&p, 1, static_cast<int>(limit.count())) <= 0) return {};
  Fd fd(::accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!fd.valid()) fail("accept");
  return TcpStream(std::move(fd));
}

TcpStream TcpListener::accept() const {
  auto stream = accept_within(kPatience);
  if (!stream) throw std::runtime_error("nobody connected to " + address_.text());
  return std::move(*stream);
}

void TcpListener::set_receive_buffer(int bytes) const {
  set_option(fd_.get(), SOL_SOCKET, SO_RCVBUF, bytes);
}

}  // namespace penstock::test
