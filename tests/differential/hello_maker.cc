// SPDX-License-Identifier: Apache-2.0
#include "differential/hello_maker.h"

#include <openssl/ssl.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "support/tls_hello.h"

namespace penstock::test {
namespace {

constexpr size_t kOpensslHellos = 2000;

struct Free {
  void operator()(SSL_CTX* p) const { SSL_CTX_free(p); }
  void operator()(SSL* p) const { SSL_free(p); }
};

void put(Bytes* bytes, size_t at, size_t value, size_t width) {
  for (size_t i = 0; i < width; ++i) (*bytes)[at + i] = static_cast<uint8_t>(value >> 8 * (width - 1 - i));
}

size_t get(const Bytes& bytes, size_t at, size_t width) {
  size_t value = 0;
  for (size_t i = 0; i < width; ++i) value = value << 8 | bytes[at + i];
  return value;
}

// Where the extensions' length stands in a sound handshake message.
std::optional<size_t> extensions_at(const Bytes& handshake) {
  size_t at = 4 + 2 + 32;
  for (const size_t width : {1, 2, 1}) {  // session id, cipher suites, compression methods
    if (at + width > handshake.size()) return std::nullopt;
    at += width + get(handshake, at, width);
  }
  if (at + 2 > handshake.size()) return std::nullopt;
  return at;
}

// Where server_name's body is, or the extensions, or nothing in particular.
size_t worth_harming(const Bytes& bytes) {
  constexpr uint8_t kHostName[] = {'e', 'x', 'a', 'm', 'p', 'l', 'e'};
  const auto at = std::search(bytes.begin(), bytes.end(), std::begin(kHostName), std::end(kHostName));
  const size_t offset = static_cast<size_t>(at - bytes.begin());
  return offset > 20 && at != bytes.end() ? offset - 20 : 0;
}

}  // namespace

Bytes payload_of(const Bytes& stream) {
  Bytes out;
  for (size_t at = 0; at + 5 <= stream.size(); at += 5 + get(stream, at + 3, 2)) {
    const size_t size = std::min(get(stream, at + 3, 2), stream.size() - at - 5);
    out.insert(out.end(), stream.begin() + static_cast<ptrdiff_t>(at + 5),
               stream.begin() + static_cast<ptrdiff_t>(at + 5 + size));
  }
  return out;
}

std::vector<size_t> extension_types(const Bytes& handshake) {
  std::vector<size_t> types;
  const auto at = extensions_at(handshake);
  if (!at) return types;
  for (size_t from = *at + 2; from + 4 <= handshake.size(); from += 4 + get(handshake, from + 2, 2))
    types.push_back(get(handshake, from, 2));
  return types;
}

HelloMaker::HelloMaker(uint64_t seed) : random_(seed) {
  for (size_t i = 0; i < kOpensslHellos; ++i) openssl_.push_back(openssl_handshake());
}

std::string HelloMaker::name() {
  static const char* const kNames[] = {"www.example.net",  "MAIL.Example.net", "example.net.",
                                       "_x-1.example.net", "192.0.2.1",        "example",
                                       "a..example",       "exa mple.net",     "example\xc3\xa9.net",
                                       "[::1]example",     "*.example.net",    "-example-.net"};
  if (one_in(20)) return std::string(1 + below(70), 'a') + ".example.net";
  if (one_in(50)) return std::string(200 + below(60), 'b') + ".example.net";
  return kNames[one_in(3) ? below(std::size(kNames)) : below(4)];
}

Bytes HelloMaker::openssl_handshake() {
  const std::unique_ptr<SSL_CTX, Free> context(SSL_CTX_new(TLS_client_method()));
  SSL_CTX_set_security_level(context.get(), 0);
  const int versions[] = {TLS1_VERSION, TLS1_2_VERSION, TLS1_3_VERSION};
  SSL_CTX_set_min_proto_version(context.get(), TLS1_VERSION);
  SSL_CTX_set_max_proto_version(context.get(), versions[below(3)]);
  const char* const groups[] = {"X25519", "P-256:X25519", "P-521:P-384:P-256", "X448", "ffdhe2048:ffdhe8192"};
  SSL_CTX_set1_groups_list(context.get(), groups[below(std::size(groups))]);
  if (one_in(3)) SSL_CTX_set_cipher_list(context.get(), "ALL:eNULL");
  if (one_in(3)) SSL_CTX_set_options(context.get(), SSL_OP_NO_TICKET);
  if (one_in(3))
    SSL_CTX_set_options(context.get(), SSL_OP_NO_ENCRYPT_THEN_MAC | SSL_OP_NO_EXTENDED_MASTER_SECRET);
  if (one_in(3)) SSL_CTX_clear_options(context.get(), SSL_OP_ENABLE_MIDDLEBOX_COMPAT);
  if (one_in(3)) SSL_CTX_set_tlsext_status_type(context.get(), TLSEXT_STATUSTYPE_ocsp);
  if (one_in(3)) SSL_CTX_set_tlsext_max_fragment_length(context.get(), TLSEXT_max_fragment_length_512);
  if (one_in(4)) SSL_CTX_set_post_handshake_auth(context.get(), 1);
  if (one_in(4)) SSL_CTX_set_tlsext_use_srtp(context.get(), "SRTP_AES128_CM_SHA1_80");
  const std::unique_ptr<SSL, Free> ssl(SSL_new(context.get()));
  BIO* sent = BIO_new(BIO_s_mem());
  SSL_set_bio(ssl.get(), BIO_new(BIO_s_mem()), sent);
  if (!one_in(4)) SSL_set_tlsext_host_name(ssl.get(), name().c_str());
  Bytes protocols;
  for (size_t count = one_in(2) ? below(4) : 0; count > 0; --count) {
    const std::string protocol = one_in(9) ? std::string(1 + below(255), 'p') : "h2";
    protocols.push_back(static_cast<uint8_t>(protocol.size()));
    protocols.insert(protocols.end(), protocol.begin(), protocol.end());
  }
  if (!protocols.empty())
    SSL_set_alpn_protos(ssl.get(), protocols.data(), static_cast<unsigned>(protocols.size()));
  SSL_connect(ssl.get());
  char* data = nullptr;
  const long size = BIO_get_mem_data(sent, &data);
  return payload_of({data, data + size});
}

Bytes HelloMaker::built_handshake() {
  TlsHello hello;
  if (!one_in(5)) hello.sni = name().substr(0, 250);
  for (size_t count = below(4); count > 0; --count)
    hello.alpn.push_back(one_in(4) ? std::string(1 + below(255), 'q') : "http/1.1");
  if (one_in(4)) hello.handshake_bytes = 1600 + below(one_in(50) ? 66000 : 3000);
  hello.sni_last = one_in(2);
  const std::string bytes = hello.bytes();
  return payload_of({bytes.begin(), bytes.end()});
}

// In another order; one of them twice, or away; one with a body of another size.
void HelloMaker::move_extensions(Bytes* handshake) {
  const auto at = extensions_at(*handshake);
  if (!at) return;
  std::vector<Bytes> all;
  for (size_t from = *at + 2; from + 4 <= handshake->size();) {
    const size_t size = 4 + get(*handshake, from + 2, 2);
    if (from + size > handshake->size()) return;
    all.emplace_back(handshake->begin() + static_cast<ptrdiff_t>(from),
                     handshake->begin() + static_cast<ptrdiff_t>(from + size));
    from += size;
  }
  std::shuffle(all.begin(), all.end(), random_);
  if (!all.empty() && one_in(4)) all.push_back(all[below(all.size())]);
  if (!all.empty() && one_in(4)) all.pop_back();
  if (!all.empty() && one_in(8)) {
    Bytes& one = all[below(all.size())];
    one.resize(4 + below(one.size()));
    put(&one, 2, one.size() - 4, 2);
  }
  handshake->resize(*at + 2);
  for (const Bytes& one : all) handshake->insert(handshake->end(), one.begin(), one.end());
  put(handshake, *at, (handshake->size() - *at - 2) & 0xffff, 2);
}

void HelloMaker::damage(Bytes* bytes, size_t near) {
  if (bytes->empty()) return;
  const size_t at = one_in(2) ? below(bytes->size()) : std::min(bytes->size() - 1, near + below(48));
  const auto here = bytes->begin() + static_cast<ptrdiff_t>(at);
  switch (below(7)) {
    case 0:
      *here = static_cast<uint8_t>(below(256));
      break;
    case 1:
      *here = static_cast<uint8_t>(*here ^ 1u << below(8));
      break;
    case 2:
      ++*here;
      break;
    case 3:
      --*here;
      break;
    case 4:
      bytes->insert(here, static_cast<uint8_t>(below(4)));
      break;
    case 5:
      bytes->erase(here, std::min(bytes->end(), here + 1 + static_cast<ptrdiff_t>(below(3))));
      break;
    case 6:
      if (bytes->size() > 2) put(bytes, std::min(at, bytes->size() - 2), below(0x600), 2);
      break;
  }
}

Bytes HelloMaker::in_records(const Bytes& handshake) {
  const size_t most = one_in(2) ? 16384 : 1 + below(one_in(2) ? 40 : 600);
  Bytes out;
  for (size_t at = 0; at < handshake.size();) {
    const size_t size = std::min(handshake.size() - at, one_in(2) ? most : 1 + below(most));
    if (one_in(400)) out.insert(out.end(), {22, 3, 1, 0, 0});  // an empty one
    if (one_in(400))
      out.insert(out.end(), {static_cast<uint8_t>(20 + below(4)), 3, 1, 0, 1, 1});  // another kind
    const uint8_t minor = one_in(200) ? static_cast<uint8_t>(below(8)) : one_in(2) ? 1 : 3;
    out.insert(out.end(), {22, 3, minor, static_cast<uint8_t>(size >> 8), static_cast<uint8_t>(size)});
    out.insert(out.end(), handshake.begin() + static_cast<ptrdiff_t>(at),
               handshake.begin() + static_cast<ptrdiff_t>(at + size));
    at += size;
  }
  return out;
}

Bytes HelloMaker::next() {
  Bytes handshake = one_in(2) ? openssl_[below(openssl_.size())] : built_handshake();
  if (one_in(2)) move_extensions(&handshake);
  if (one_in(3)) damage(&handshake, worth_harming(handshake));
  if (!one_in(30) && handshake.size() > 4) put(&handshake, 1, handshake.size() - 4, 3);
  Bytes stream = in_records(handshake);
  if (one_in(4)) damage(&stream, one_in(2) ? 0 : worth_harming(stream));
  if (one_in(10)) stream.resize(below(stream.size() + 1));
  if (one_in(10)) stream.insert(stream.end(), {20, 3, 3, 0, 1, 1});  // what a client says next
  return stream;
}

}  // namespace penstock::test
