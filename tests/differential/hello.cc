// SPDX-License-Identifier: Apache-2.0
// hello_differential [--hellos N] [--seed N]: our reading of ClientHellos held against that of OpenSSL's
// server side, from the first byte of the stream. Prints what both said, and how often; README.md explains
// each line. Exit 1: a line that is not explained there, with the hello that shows it in hexadecimal.
#include <openssl/err.h>
#include <openssl/ssl.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "differential/hello_maker.h"
#include "tls/client_hello.h"

namespace {

using namespace penstock;
using test::Bytes;

struct Free {
  void operator()(SSL_CTX* p) const { SSL_CTX_free(p); }
  void operator()(SSL* p) const { SSL_free(p); }
};

// ---- what OpenSSL says

struct Theirs {
  bool has_fields = false;  // it took the hello's fields and extensions apart: its client_hello callback
  bool has_names = false;   // it liked what is in the extensions, too: its servername callback
  bool wants_more = false;
  std::string reason;                      // of a refusal
  std::optional<Bytes> server_name, alpn;  // the extensions' bodies, with has_fields
  size_t cipher_bytes = 0, compression_bytes = 0;
  std::string name;  // with has_names
};

int on_client_hello(SSL* ssl, int*, void* arg) {
  auto* theirs = static_cast<Theirs*>(arg);
  theirs->has_fields = true;
  const unsigned char* data = nullptr;
  size_t size = 0;
  if (SSL_client_hello_get0_ext(ssl, TLSEXT_TYPE_server_name, &data, &size) == 1)
    theirs->server_name.emplace(data, data + size);
  theirs->cipher_bytes = SSL_client_hello_get0_ciphers(ssl, &data);
  theirs->compression_bytes = SSL_client_hello_get0_compression_methods(ssl, &data);
  if (SSL_client_hello_get0_ext(ssl, TLSEXT_TYPE_application_layer_protocol_negotiation, &data, &size) == 1)
    theirs->alpn.emplace(data, data + size);
  return SSL_CLIENT_HELLO_SUCCESS;
}

// The end: what is left to say is no business of a reader of names.
int on_server_name(SSL* ssl, int*, void* arg) {
  auto* theirs = static_cast<Theirs*>(arg);
  theirs->has_names = true;
  if (const char* name = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name)) theirs->name = name;
  return SSL_TLSEXT_ERR_ALERT_FATAL;
}

Theirs ask_openssl(SSL_CTX* context, const Bytes& stream) {
  Theirs theirs;
  SSL_CTX_set_client_hello_cb(context, on_client_hello, &theirs);
  SSL_CTX_set_tlsext_servername_callback(context, on_server_name);
  SSL_CTX_set_tlsext_servername_arg(context, &theirs);
  const std::unique_ptr<SSL, Free> ssl(SSL_new(context));
  BIO* received = BIO_new_mem_buf(stream.data(), static_cast<int>(stream.size()));
  BIO_set_mem_eof_return(received, -1);
  SSL_set_bio(ssl.get(), received, BIO_new(BIO_s_mem()));
  ERR_clear_error();
  const int result = SSL_accept(ssl.get());
  theirs.wants_more = SSL_get_error(ssl.get(), result) == SSL_ERROR_WANT_READ && !theirs.has_fields;
  if (const char* reason = ERR_reason_error_string(ERR_peek_error())) theirs.reason = reason;
  return theirs;
}

// ---- what the bytes hold, said without our parser (userspace/tls/README.md has what we refuse)

// An empty record, one that is too long, one of another type or version.
bool has_records_we_refuse(std::span<const uint8_t> stream) {
  while (!stream.empty()) {
    if (stream[0] != 22 || (stream.size() > 1 && stream[1] != 3) || (stream.size() > 2 && stream[2] > 4))
      return true;
    if (stream.size() < 5) return false;
    const size_t size = stream[3] << 8 | stream[4];
    if (size == 0 || size > 16384) return true;
    stream = stream.subspan(std::min(5 + size, stream.size()));
  }
  return false;
}

// The last record has not come whole.
bool ends_within_a_record(std::span<const uint8_t> stream) {
  while (stream.size() >= 5) {
    const size_t size = size_t{5} + (stream[3] << 8 | stream[4]);
    if (size > stream.size()) return true;
    stream = stream.subspan(size);
  }
  return !stream.empty();
}

size_t announced(const Bytes& handshake) {
  return handshake.size() < 4 ? SIZE_MAX
                              : size_t{4} + (handshake[1] << 16 | handshake[2] << 8 | handshake[3]);
}

bool is_whole(const Bytes& handshake) {
  return handshake.size() >= announced(handshake);
}

bool is_other_or_too_long(const Bytes& handshake) {
  const bool too_long =
      handshake.size() >= 4 && (handshake[1] << 16 | handshake[2] << 8 | handshake[3]) > 65536;
  return too_long || (!handshake.empty() && handshake[0] != 1);
}

// RFC 8446 4.2 forbids it.
bool has_an_extension_twice(const Bytes& handshake) {
  std::vector<size_t> types = test::extension_types(handshake);
  std::sort(types.begin(), types.end());
  return std::adjacent_find(types.begin(), types.end()) != types.end();
}

// use_srtp of DTLS (RFC 5764), 65000 of a server, a pre_shared_key that is not the last (RFC 8446 4.2.11).
bool has_an_extension_out_of_place(const Bytes& handshake) {
  const std::vector<size_t> types = test::extension_types(handshake);
  for (size_t i = 0; i < types.size(); ++i) {
    const bool last = i + 1 == types.size();
    if (types[i] == TLSEXT_TYPE_use_srtp || types[i] == 65000 || (types[i] == TLSEXT_TYPE_psk && !last))
      return true;
  }
  return false;
}

std::optional<std::string> host_name_of(const Bytes& server_name) {
  if (server_name.size() < 5 || server_name[2] != 0) return std::nullopt;
  const size_t list = server_name[0] << 8 | server_name[1], size = server_name[3] << 8 | server_name[4];
  if (list + 2 != server_name.size() || size + 5 != server_name.size() || size > 255) return std::nullopt;
  std::string name(server_name.begin() + 5, server_name.end());
  if (name.ends_with('.')) name.pop_back();
  for (char& c : name) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  size_t label_bytes = 0;
  for (const char c : name + '.') {
    const bool in_label = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
    if (c == '.' ? label_bytes == 0 || label_bytes > 63 : !in_label) return std::nullopt;
    label_bytes = c == '.' ? 0 : label_bytes + 1;
  }
  return name;
}

bool is_name_list(const Bytes& alpn) {
  if (alpn.size() < 2 + 2 || alpn.size() != 2u + (alpn[0] << 8 | alpn[1])) return false;
  for (size_t at = 2; at < alpn.size(); at += 1 + alpn[at])
    if (alpn[at] == 0 || at + 1 + alpn[at] > alpn.size()) return false;
  return true;
}

// As far as we keep it: whole names, 256 bytes.
Bytes kept(const Bytes& alpn) {
  size_t end = 2;
  while (end < alpn.size() && end + 1 + alpn[end] <= 2 + tls::kAlpnBytesMax) end += 1 + alpn[end];
  return {alpn.begin() + 2, alpn.begin() + static_cast<ptrdiff_t>(end)};
}

// ---- the comparison

// What client_hello.h promises of any bytes.
bool keeps_the_contract(const tls::ClientHello& ours, const Bytes& stream) {
  const bool asks = ours.verdict == tls::Verdict::need_more;
  if (asks && (ours.need_bytes <= stream.size() || ours.need_bytes > tls::kPeekBytesMax)) return false;
  return ours.verdict == tls::Verdict::hello || ours.sni_size + ours.alpn_size == 0;
}

// One line of the table. "!" in front: not explained.
std::string compare(const tls::ClientHello& ours, const Theirs& theirs, const Bytes& stream) {
  using tls::Verdict;
  if (!keeps_the_contract(ours, stream)) return "!not what client_hello.h promises";
  const bool refused = ours.verdict == Verdict::malformed || ours.verdict == Verdict::not_tls;
  const Bytes handshake = test::payload_of(stream);
  if (theirs.wants_more) {
    if (ours.verdict == Verdict::need_more) return "agree: more is needed";
    if (refused && has_records_we_refuse(stream)) return "earlier: a record we refuse, they read on";
    if (refused && is_other_or_too_long(handshake))
      return "earlier: no ClientHello or over 65536 bytes, they read on";
    if (is_whole(handshake) && ends_within_a_record(stream))
      return "earlier: the hello is whole, its record is not";
    return refused ? "!we refuse, they: more" : "!we: hello, they: more";
  }
  if (!theirs.has_fields) {
    if (refused) return "agree: refused";
    if (ours.verdict == Verdict::need_more) return "!we: more, they refuse: " + theirs.reason;
    if (has_an_extension_twice(handshake)) return "looser: another extension twice";
    if (has_an_extension_out_of_place(handshake)) return "looser: another extension out of place";
    return "!they refuse: " + theirs.reason;
  }
  const auto name = theirs.server_name ? host_name_of(*theirs.server_name) : std::string();
  const bool good_alpn = !theirs.alpn || is_name_list(*theirs.alpn);
  if (refused) {
    if (!name && theirs.has_names) return "stricter: a name that is no host name";
    if (!name || !good_alpn)
      return theirs.has_names ? "!they like the extensions" : "agree: refused, server_name or ALPN malformed";
    if (has_records_we_refuse(stream)) return "stricter: a record we refuse";
    const bool no_lists =
        theirs.cipher_bytes == 0 || theirs.cipher_bytes % 2 != 0 || theirs.compression_bytes == 0;
    if (no_lists && !theirs.has_names) return "agree: refused, no ciphers or no compression methods";
    return "!we refuse";
  }
  if (ours.verdict == Verdict::need_more) return "!we: more, they: hello";
  if (!name || *name != ours.sni()) return "!another name";
  if (theirs.has_names && !theirs.name.empty() && host_name_of(*theirs.server_name) != ours.sni())
    return "!another name";
  if (!good_alpn || !std::ranges::equal(ours.alpn(), theirs.alpn ? kept(*theirs.alpn) : Bytes{}))
    return "!another ALPN";
  if (theirs.has_names) return "agree: hello, name and ALPN";
  return "agree: hello, name and ALPN; then they refuse: " + theirs.reason;
}

}  // namespace

int main(int argc, char** argv) {
  uint64_t hellos = 1'000'000, seed = 1;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (strcmp(argv[i], "--hellos") == 0)
      hellos = strtoull(argv[i + 1], nullptr, 10);
    else if (strcmp(argv[i], "--seed") == 0)
      seed = strtoull(argv[i + 1], nullptr, 10);
    else
      return fprintf(stderr, "hello_differential [--hellos N] [--seed N]\n"), 2;
  }
  const std::unique_ptr<SSL_CTX, Free> context(SSL_CTX_new(TLS_server_method()));
  SSL_CTX_set_security_level(context.get(), 0);
  SSL_CTX_set_min_proto_version(context.get(), 0);
  test::HelloMaker maker(seed);
  std::map<std::string, uint64_t> counts;
  std::map<std::string, Bytes> examples;
  for (uint64_t i = 0; i < hellos; ++i) {
    const Bytes stream = maker.next();
    tls::ClientHello ours;
    tls::parse_client_hello(stream, &ours);
    const std::string line = compare(ours, ask_openssl(context.get(), stream), stream);
    if (counts[line]++ == 0) examples[line] = stream;
  }
  printf("%llu hellos, seed %llu\n", static_cast<unsigned long long>(hellos),
         static_cast<unsigned long long>(seed));
  bool explained = true;
  for (const auto& [line, count] : counts) {
    printf("%10llu  %s\n", static_cast<unsigned long long>(count), line.c_str());
    if (line[0] != '!') continue;
    explained = false;
    printf("            ");
    for (const uint8_t byte : examples[line]) printf("%02x", byte);
    printf("\n");
  }
  return explained ? 0 : 1;
}
