// SPDX-License-Identifier: Apache-2.0
#include "check/tls_stream.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <cerrno>
#include <cstring>
#include <ctime>

#include "base/assert.h"
#include "base/log.h"

namespace penstock::check {
namespace {

constexpr size_t kNameBytesMax = 200;

SSL_CTX* shared_context() {
  static SSL_CTX* const context = [] {
    SSL_CTX* made = SSL_CTX_new(TLS_client_method());
    PENSTOCK_ASSERT(made != nullptr);  // only without memory
    SSL_CTX_set_verify(made, SSL_VERIFY_NONE, nullptr);
    SSL_CTX_set_security_level(made, 0);  // a weak key is not down
    SSL_CTX_set_mode(made, SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_ENABLE_PARTIAL_WRITE);
    SSL_CTX_set_session_cache_mode(made, SSL_SESS_CACHE_OFF);
    return made;
  }();
  return context;
}

std::string name_text(const X509_NAME* name) {
  BIO* memory = BIO_new(BIO_s_mem());
  PENSTOCK_ASSERT(memory != nullptr);
  X509_NAME_print_ex(memory, name, 0, XN_FLAG_RFC2253);
  char* text = nullptr;
  const long bytes = BIO_get_mem_data(memory, &text);
  std::string printable = log::escaped({text, static_cast<size_t>(bytes)}, kNameBytesMax);
  BIO_free(memory);
  return printable;
}

}  // namespace

TlsStream::TlsStream(int fd, const std::string& sni) : ssl_(SSL_new(shared_context())) {
  PENSTOCK_ASSERT(ssl_ != nullptr && SSL_set_fd(ssl_, fd) == 1);
  if (!sni.empty()) SSL_set_tlsext_host_name(ssl_, sni.c_str());
}

TlsStream::~TlsStream() {
  SSL_free(ssl_);
}

TlsStream::Step TlsStream::shake_hands() {
  ERR_clear_error();
  errno = 0;
  const int result = SSL_connect(ssl_);
  if (result == 1) return Step::done;
  switch (SSL_get_error(ssl_, result)) {
    case SSL_ERROR_WANT_READ:
      return Step::wants_read;
    case SSL_ERROR_WANT_WRITE:
      return Step::wants_write;
    default:
      break;
  }
  const int system_error = errno;
  const unsigned long error = ERR_peek_last_error();
  const char* reason = error != 0 ? ERR_reason_error_string(error) : nullptr;
  error_ = reason              ? log::escaped(reason)
           : system_error != 0 ? std::strerror(system_error)
                               : "the handshake failed";
  ERR_clear_error();
  return Step::failed;
}

std::optional<Certificate> TlsStream::certificate() const {
  X509* x509 = SSL_get1_peer_certificate(ssl_);
  if (x509 == nullptr) return std::nullopt;  // a cipher without
  Certificate c;
  c.subject = name_text(X509_get_subject_name(x509));
  c.issuer = name_text(X509_get_issuer_name(x509));
  c.self_signed = X509_self_signed(x509, /*verify_signature=*/0) == 1;
  tm not_after{};
  if (ASN1_TIME_to_tm(X509_get0_notAfter(x509), &not_after) == 1)
    c.not_after = std::chrono::system_clock::from_time_t(::timegm(&not_after));
  X509_free(x509);
  return c;
}

ssize_t TlsStream::receive(char* out, size_t bytes_max) {
  ERR_clear_error();
  return result_of(SSL_read(ssl_, out, static_cast<int>(bytes_max)));
}

ssize_t TlsStream::send(const char* bytes, size_t size) {
  ERR_clear_error();
  return result_of(SSL_write(ssl_, bytes, static_cast<int>(size)));
}

ssize_t TlsStream::result_of(int result) {
  if (result > 0) return result;
  switch (SSL_get_error(ssl_, result)) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
      errno = EAGAIN;
      return -1;
    case SSL_ERROR_ZERO_RETURN:
      return 0;
    default:
      ERR_clear_error();
      errno = ECONNRESET;
      return -1;
  }
}

void TlsStream::close_notify() {
  ERR_clear_error();
  SSL_shutdown(ssl_);
  ERR_clear_error();
}

}  // namespace penstock::check
