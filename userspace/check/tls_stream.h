// SPDX-License-Identifier: Apache-2.0
// check/tls_stream.h: a TLS handshake on a socket that somebody else owns. OpenSSL is known to handshake.cc
// and to nobody else. Whoever can be talked to counts: any version and cipher OpenSSL still has, no
// verification.
#pragma once
#include <sys/types.h>

#include <optional>
#include <string>

#include "check/certificate.h"

struct ssl_st;

namespace penstock::check {

class TlsStream {
 public:
  // `fd`: connected, not blocking, outlives this. `sni`: empty for none.
  TlsStream(int fd, const std::string& sni);
  ~TlsStream();
  TlsStream(const TlsStream&) = delete;
  TlsStream& operator=(const TlsStream&) = delete;

  enum class Step { wants_read, wants_write, done, failed };
  Step shake_hands();
  const std::string& error() const { return error_; }  // once failed; printable, one line

  // Once done. As recv() and send(): -1 with errno EAGAIN, or ECONNRESET for whatever else ends it.
  ssize_t receive(char* out, size_t bytes_max);
  ssize_t send(const char* bytes, size_t size);
  std::optional<Certificate> certificate() const;
  void close_notify();  // RFC 8446 6.1; what the socket does not take is lost

 private:
  ssize_t result_of(int result);

  ssl_st* ssl_;
  std::string error_;
};

}  // namespace penstock::check
