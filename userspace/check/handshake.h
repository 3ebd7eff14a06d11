// SPDX-License-Identifier: Apache-2.0
// check/handshake.h: a TLS handshake on a socket that somebody else owns. OpenSSL is known to handshake.cc
// and to nobody else. Whoever can be talked to counts: any version and cipher OpenSSL still has, no
// verification.
#pragma once
#include <memory>
#include <optional>
#include <string>

#include "check/certificate.h"

struct ssl_st;

namespace penstock::check {

class Handshake {
 public:
  // `fd`: connected, not blocking, outlives this. `sni`: empty for none.
  Handshake(int fd, const std::string& sni);
  ~Handshake();
  Handshake(const Handshake&) = delete;
  Handshake& operator=(const Handshake&) = delete;

  enum class Step { wants_read, wants_write, done, failed };
  Step advance();                                      // does not block
  const std::string& error() const { return error_; }  // once failed; printable, one line
  std::optional<Certificate> certificate() const;      // once done
  void close_notify();  // once done (RFC 8446 6.1); what the socket does not take is lost

 private:
  ssl_st* ssl_;
  std::string error_;
};

}  // namespace penstock::check
