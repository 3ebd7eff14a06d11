// SPDX-License-Identifier: Apache-2.0
// support/tcp.h: blocking TCP peers for tests. Whatever takes longer than kPatience throws: a hung test fails
// by itself.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/endpoint.h"
#include "base/fd.h"
#include "support/wait.h"

namespace penstock::test {

// REQUIRES: `address` is the text of an IPv4 or IPv6 address.
Endpoint at(std::string_view address, uint16_t port);

enum class End { fin, reset };

class TcpStream {
 public:
  explicit TcpStream(Fd fd);
  static TcpStream connect(const Endpoint& to, std::optional<Endpoint> from = {});
  // The errno of a connect; 0 when it succeeded (and was closed again).
  static int try_connect(const Endpoint& to);

  void send_all(std::string_view bytes) const;
  // The last bytes and the FIN in one segment (as far as they fit into one).
  void send_all_with_fin(std::string_view bytes) const;
  std::string recv_exactly(size_t bytes) const;
  std::string recv_line() const;  // without its "\n"
  // Reads until the peer ends; what came is appended to `out` when it is given.
  End recv_to_end(std::string* out = nullptr) const;
  // What recv() returns now: a size, 0 at FIN, -errno.
  ssize_t recv_some(char* out, size_t bytes_max) const;
  bool readable_within(milliseconds limit) const;

  void half_close() const;  // FIN after what was sent; nothing when the peer has reset the stream
  void reset();             // RST, at once; the stream is closed
  void close() { fd_.reset(); }
  void set_receive_buffer(int bytes) const;
  void set_send_buffer(int bytes) const;

  Endpoint local() const;
  Endpoint peer() const;
  int fd() const { return fd_.get(); }
  bool open() const { return fd_.valid(); }

 private:
  Fd fd_;
};

class TcpListener {
 public:
  explicit TcpListener(const Endpoint& address, int backlog = 256);
  TcpStream accept() const;
  std::optional<TcpStream> accept_within(milliseconds limit) const;
  Endpoint address() const { return address_; }
  void close() { fd_.reset(); }
  // Accepted sockets inherit it. REQUIRES: before the first connection.
  void set_receive_buffer(int bytes) const;

 private:
  Endpoint address_;
  Fd fd_;
};

}  // namespace penstock::test
