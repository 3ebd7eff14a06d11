// SPDX-License-Identifier: Apache-2.0
// What tls/client_hello.h promises, on hellos spelled field by field, on OpenSSL's own, and on broken ones.
#include "tls/client_hello.h"

#include <gtest/gtest.h>
#include <openssl/ssl.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace penstock::tls {
namespace {

using Bytes = std::vector<uint8_t>;

Bytes bytes_of(std::string_view text) {
  return {text.begin(), text.end()};
}

void append(Bytes* to, const Bytes& more) {
  to->insert(to->end(), more.begin(), more.end());
}

Bytes number(size_t value, size_t width) {
  Bytes out;
  while (width-- > 0) out.push_back(static_cast<uint8_t>(value >> 8 * width));
  return out;
}

// A vector of the TLS presentation language: its length in `width` bytes, then itself.
Bytes vector(size_t width, const Bytes& body) {
  Bytes out = number(body.size(), width);
  append(&out, body);
  return out;
}

Bytes extension(size_t type, const Bytes& body) {
  Bytes out = number(type, 2);
  append(&out, vector(2, body));
  return out;
}

Bytes sni_entry(std::string_view name, uint8_t type = 0) {
  Bytes out{type};
  append(&out, vector(2, bytes_of(name)));
  return out;
}

Bytes sni(std::string_view name) {
  return extension(0, vector(2, sni_entry(name)));
}

Bytes alpn(const std::vector<std::string>& names) {
  Bytes list;
  for (const auto& name : names) append(&list, vector(1, bytes_of(name)));
  return extension(16, vector(2, list));
}

Bytes padding(size_t size) {
  return extension(21, Bytes(size));
}

Bytes key_share(size_t size) {
  Bytes entry = number(0x11ec, 2);  // X25519MLKEM768
  append(&entry, vector(2, Bytes(size, 0xa5)));
  return extension(51, vector(2, entry));
}

struct TlsHello {
  std::vector<Bytes> extensions{};
  size_t cipher_suites = 2;
  size_t session_id_bytes = 32;
  uint8_t message_type = 1;
  Bytes trailer{};  // in the body, after the extensions
  bool without_extensions = false;
  size_t record_bytes = 16384;

  Bytes body() const {
    Bytes out{3, 3};
    append(&out, Bytes(32, 0x5a));
    append(&out, vector(1, Bytes(session_id_bytes, 0xc3)));
    append(&out, vector(2, Bytes(2 * cipher_suites, 0x13)));
    append(&out, vector(1, {0}));
    Bytes all;
    for (const auto& one : extensions) append(&all, one);
    if (!without_extensions) append(&out, vector(2, all));
    append(&out, trailer);
    return out;
  }
  Bytes handshake() const {
    Bytes out{message_type};
    append(&out, vector(3, body()));
    return out;
  }
  Bytes bytes() const;
};

Bytes records(const Bytes& handshake, size_t record_bytes) {
  Bytes out;
  for (size_t at = 0; at < handshake.size(); at += record_bytes) {
    const size_t size = std::min(record_bytes, handshake.size() - at);
    append(&out, {22, 3, 1});
    append(&out, vector(2, {handshake.begin() + static_cast<long>(at),
                            handshake.begin() + static_cast<long>(at + size)}));
  }
  return out;
}

Bytes TlsHello::bytes() const {
  return records(handshake(), record_bytes);
}

// Parses a copy of exactly the size shown, so that the asan preset sees a read beyond it.
ClientHello parse(const Bytes& bytes, size_t shown) {
  const Bytes copy(bytes.begin(), bytes.begin() + static_cast<long>(shown));
  ClientHello out;
  parse_client_hello(copy, &out);
  return out;
}
ClientHello parse(const Bytes& bytes) {
  return parse(bytes, bytes.size());
}
ClientHello parse(const TlsHello& hello) {
  return parse(hello.bytes());
}

std::vector<std::string> alpn_names(const ClientHello& hello) {
  std::vector<std::string> out;
  auto list = hello.alpn();
  for (auto name = next_alpn(&list); !name.empty(); name = next_alpn(&list)) out.emplace_back(name);
  return out;
}

// Shows exactly what was asked for, again and again; returns how often it took.
size_t rounds_to_verdict(const Bytes& stream, ClientHello* out) {
  size_t shown = 0;
  for (size_t rounds = 1;; ++rounds) {
    parse_client_hello(std::span(stream).first(shown), out);
    if (out->verdict != Verdict::need_more) return rounds;
    if (out->need_bytes <= shown || out->need_bytes > stream.size()) {
      ADD_FAILURE() << "asked for " << out->need_bytes << " of " << stream.size() << " after " << shown;
      return rounds;
    }
    shown = out->need_bytes;
  }
}

#define EXPECT_SNI(name, ...)                        \
  do {                                               \
    const ClientHello parsed = parse(__VA_ARGS__);   \
    EXPECT_EQ(parsed.verdict, Verdict::hello);       \
    EXPECT_EQ(parsed.sni(), std::string_view(name)); \
  } while (0)
#define EXPECT_VERDICT(verdict_expected, ...) EXPECT_EQ(parse(__VA_ARGS__).verdict, Verdict::verdict_expected)

TEST(ClientHello, ReadsSniAndAlpn) {
  const auto hello = parse(TlsHello{{sni("mta-sts.example.net"), alpn({"h2", "http/1.1"})}});
  EXPECT_EQ(hello.verdict, Verdict::hello);
  EXPECT_EQ(hello.sni(), "mta-sts.example.net");
  EXPECT_EQ(alpn_names(hello), (std::vector<std::string>{"h2", "http/1.1"}));
  EXPECT_FALSE(hello.has_ech);
}

TEST(ClientHello, WithoutSniIsAHelloToo) {
  EXPECT_SNI("", TlsHello{});
  EXPECT_SNI("", TlsHello{.without_extensions = true});
  EXPECT_SNI("", TlsHello{{alpn({"h2"})}});
}

TEST(ClientHello, IgnoresGreasePaddingAndUnknownExtensions) {
  EXPECT_SNI("a.example", TlsHello{{extension(0x0a0a, {}), extension(0x1a1a, {0}), padding(517),
                                    sni("a.example"), extension(0xff01, {0}), extension(0xfafa, {})}});
}

TEST(ClientHello, SeesEchAndKeepsTheOuterName) {
  const auto hello = parse(TlsHello{{extension(0xfe0d, Bytes(186, 1)), sni("cover.example")}});
  EXPECT_TRUE(hello.has_ech);
  EXPECT_EQ(hello.sni(), "cover.example");
}

TEST(ClientHello, ReadsPastAPostQuantumKeyShare) {
  EXPECT_SNI("pq.example", TlsHello{{key_share(1216), key_share(2000), sni("pq.example")}});
}

TEST(ClientHello, IgnoresWhatFollowsTheHello) {
  Bytes stream = TlsHello{{sni("a.example")}}.bytes();
  append(&stream, {20, 3, 3, 0, 1, 1});
  append(&stream, bytes_of("early data"));
  EXPECT_SNI("a.example", stream);
  Bytes handshake = TlsHello{{sni("a.example")}}.handshake();
  append(&handshake, bytes_of("more in the same record"));
  EXPECT_SNI("a.example", records(handshake, 16384));
}

TEST(ClientHello, LowerCasesTheNameAndDropsOneTrailingDot) {
  EXPECT_SNI("mail.example.net", TlsHello{{sni("MAIL.Example.NET")}});
  EXPECT_SNI("mail.example.net", TlsHello{{sni("mail.example.net.")}});
  EXPECT_SNI("_dmarc.x-1.example", TlsHello{{sni("_dmarc.x-1.example")}});
  EXPECT_SNI("localhost", TlsHello{{sni("localhost")}});
  EXPECT_SNI("192.0.2.1", TlsHello{{sni("192.0.2.1")}});
}

TEST(ClientHello, NamesThatAreNoHostNamesAreMalformed) {
  using namespace std::string_view_literals;
  for (const auto name : {""sv, "."sv, ".."sv, "a..b"sv, ".a"sv, "a.."sv, "a b"sv, "a\0b"sv, "a\0"sv, "*.a"sv,
                          "[2001:db8::1]"sv, "2001:db8::1"sv, "b\xc3\xbc.example"sv, "a/b"sv, "a:443"sv}) {
    EXPECT_VERDICT(malformed, TlsHello{{sni(name)}}) << testing::PrintToString(std::string(name));
  }
}

TEST(ClientHello, BoundsNamesAndLabels) {
  const std::string label(63, 'a');
  const std::string longest = label + '.' + label + '.' + label + '.' + label;
  ASSERT_EQ(longest.size(), kNameBytesMax);
  EXPECT_SNI(longest, TlsHello{{sni(longest)}});
  EXPECT_VERDICT(malformed, TlsHello{{sni(longest + '.')}});
  EXPECT_VERDICT(malformed, TlsHello{{sni(label + "a.example")}});
}

TEST(ClientHello, BrokenServerNameListsAreMalformed) {
  const Bytes entry = sni_entry("a.example");
  Bytes twice = entry;
  append(&twice, entry);
  Bytes tail = entry;
  tail.push_back(0);
  Bytes outside = vector(2, entry);
  outside.push_back(0);
  Bytes list_too_long = vector(2, entry);
  ++list_too_long[1];
  Bytes name_too_long = vector(2, entry);
  ++name_too_long[4];
  const std::pair<const char*, Bytes> cases[] = {
      {"empty extension", {}},
      {"empty list", {0, 0}},
      {"two names", vector(2, twice)},
      {"other name type", vector(2, sni_entry("a.example", 1))},
      {"bytes after the name", vector(2, tail)},
      {"bytes after the list", outside},
      {"list longer than the extension", list_too_long},
      {"name longer than the list", name_too_long},
  };
  for (const auto& [what, body] : cases) {
    EXPECT_VERDICT(malformed, TlsHello{{extension(0, body), padding(40)}}) << what;
  }
  EXPECT_VERDICT(malformed, TlsHello{{sni("a.example"), sni("a.example")}});
}

TEST(ClientHello, BrokenAlpnListsAreMalformed) {
  for (const Bytes& body : {Bytes{}, Bytes{0, 0}, Bytes{0, 1, 0}, Bytes{0, 3, 2, 'h'},
                            Bytes{0, 3, 3, 'h', '2'}, Bytes{0, 3, 1, 'h', '2'}, Bytes{0, 2, 2, 'h', '2'}}) {
    EXPECT_VERDICT(malformed, TlsHello{{extension(16, body), padding(40)}}) << testing::PrintToString(body);
  }
  EXPECT_VERDICT(malformed, TlsHello{{alpn({"h2"}), alpn({"h2"})}});
}

TEST(ClientHello, KeepsWholeAlpnNamesOnly) {
  const std::string a(100, 'a'), b(100, 'b'), c(53, 'c');
  EXPECT_EQ(alpn_names(parse(TlsHello{{alpn({a, b, c})}})), (std::vector{a, b, c}));  // 101 + 101 + 54 = 256
  EXPECT_EQ(alpn_names(parse(TlsHello{{alpn({a, b, c + 'c'})}})), (std::vector{a, b}));
  EXPECT_EQ(alpn_names(parse(TlsHello{{alpn({a, b, a, "h2"})}})), (std::vector{a, b}));
  EXPECT_EQ(alpn_names(parse(TlsHello{{alpn({std::string(255, 'd')})}})), std::vector{std::string(255, 'd')});
}

TEST(ClientHello, NextAlpnEndsOnBrokenLists) {
  for (const Bytes& broken : {Bytes{}, Bytes{0}, Bytes{3, 'h', '2'}, Bytes{1}}) {
    std::span<const uint8_t> list = broken;
    EXPECT_EQ(next_alpn(&list), "") << testing::PrintToString(broken);
  }
}

TEST(ClientHello, BrokenBodiesAreMalformed) {
  const TlsHello good{{sni("a.example")}};
  EXPECT_VERDICT(hello, good);
  TlsHello hello = good;
  hello.message_type = 2;
  EXPECT_VERDICT(malformed, hello);
  hello = good, hello.session_id_bytes = 33;
  EXPECT_VERDICT(malformed, hello);
  hello = good, hello.cipher_suites = 0;
  EXPECT_VERDICT(malformed, hello);
  hello = good, hello.trailer = {0};
  EXPECT_VERDICT(malformed, hello);
  hello = good, hello.without_extensions = true, hello.trailer = {0};
  EXPECT_VERDICT(malformed, hello);
  hello = good, hello.extensions.push_back({0, 21, 0});
  EXPECT_VERDICT(malformed, hello);
  hello = good, hello.extensions.push_back({0, 21, 0, 1});
  EXPECT_VERDICT(malformed, hello);
}

TEST(ClientHello, EveryShorterBodyIsMalformed) {
  const Bytes body = TlsHello{{sni("a.example"), alpn({"h2"})}}.body();
  const size_t without_extensions = TlsHello{.without_extensions = true}.body().size();
  for (size_t size = 0; size < body.size(); ++size) {
    Bytes handshake{1};
    append(&handshake, vector(3, {body.begin(), body.begin() + static_cast<long>(size)}));
    const Verdict expected = size == without_extensions ? Verdict::hello : Verdict::malformed;
    EXPECT_EQ(parse(records(handshake, 16384)).verdict, expected) << size;
  }
}

TEST(ClientHello, TellsOtherProtocolsAtTheFirstByteThatProvesIt) {
  for (const char* text : {"GET / HTTP/1.1\r\n", "EHLO a\r\n", "SSH-2.0-x", "\r\n\r\n", "PROXY TCP4 "}) {
    EXPECT_VERDICT(not_tls, bytes_of(text), 1) << text;
  }
  EXPECT_VERDICT(not_tls, Bytes{0x80, 0x2e, 1, 3, 1});  // SSLv2-style hello
  EXPECT_VERDICT(not_tls, Bytes{23, 3, 3, 0, 1});
  EXPECT_VERDICT(not_tls, Bytes{22, 2});
  EXPECT_VERDICT(not_tls, Bytes{22, 0xfe, 0xff});  // DTLS
  EXPECT_VERDICT(not_tls, Bytes{22, 3, 5});
  EXPECT_VERDICT(need_more, Bytes{22, 3, 4});
}

TEST(ClientHello, AsksForOneByteWhileItMayYetBeNoTls) {
  const Bytes stream = TlsHello{}.bytes();
  for (size_t shown : {0u, 1u, 2u}) EXPECT_EQ(parse(stream, shown).need_bytes, shown + 1);
  EXPECT_EQ(parse(stream, 3).need_bytes, 9u);
}

TEST(ClientHello, BrokenRecordsAreMalformed) {
  EXPECT_VERDICT(malformed, Bytes{22, 3, 1, 0, 0});
  EXPECT_VERDICT(malformed, Bytes{22, 3, 1, 0x40, 1});
  EXPECT_VERDICT(need_more, Bytes{22, 3, 1, 0x40, 0});
  const Bytes first = {22, 3, 1, 0, 4, 1, 0, 0, 50};
  for (const Bytes& second : {Bytes{20}, Bytes{21, 3, 1, 0, 2}, Bytes{22, 2}, Bytes{22, 3, 5},
                              Bytes{22, 3, 1, 0, 0}, Bytes{22, 3, 1, 0x40, 1}}) {
    Bytes stream = first;
    append(&stream, second);
    EXPECT_VERDICT(malformed, stream) << testing::PrintToString(second);
  }
}

TEST(ClientHello, EveryPrefixAsksForExactlyWhatItLacks) {
  const TlsHello good{{sni("a.example"), alpn({"h2"})}};
  for (const size_t record_bytes : {16384, 100, 64, 7, 5, 4, 3, 2, 1}) {
    TlsHello hello = good;
    hello.record_bytes = record_bytes;
    const Bytes stream = hello.bytes();
    std::vector<ClientHello> at;
    for (size_t shown = 0; shown <= stream.size(); ++shown) at.push_back(parse(stream, shown));
    EXPECT_EQ(at.back().sni(), "a.example");
    for (size_t shown = 0; shown < stream.size(); ++shown) {
      ASSERT_EQ(at[shown].verdict, Verdict::need_more) << shown << " of records of " << record_bytes;
      ASSERT_GT(at[shown].need_bytes, shown);
      ASSERT_LE(at[shown].need_bytes, stream.size());
      ASSERT_EQ(at[shown].sni_size + at[shown].alpn_size, 0);
      if (record_bytes == 16384 && shown >= 9) {
        ASSERT_EQ(at[shown].need_bytes, stream.size());
      }
    }
  }
}

TEST(ClientHello, FewRoundsSufficeHoweverItIsCut) {
  const std::pair<size_t, size_t> cases[] = {{16384, 6}, {64, 10}, {7, 20}, {1, 40}};
  for (const auto& [record_bytes, rounds_max] : cases) {
    TlsHello hello{{key_share(600), sni("a.example")}};
    hello.record_bytes = record_bytes;
    ClientHello parsed;
    EXPECT_LE(rounds_to_verdict(hello.bytes(), &parsed), rounds_max) << record_bytes;
    EXPECT_EQ(parsed.sni(), "a.example");
  }
}

TlsHello hello_of_body_bytes(size_t size) {
  TlsHello hello{{padding(60000), sni("last.example")}};
  hello.cipher_suites = 1;
  if (hello.body().size() % 2 != size % 2) hello.extensions[0] = padding(60001);
  hello.cipher_suites += (size - hello.body().size()) / 2;
  EXPECT_EQ(hello.body().size(), size);
  return hello;
}

TEST(ClientHello, FollowsTheLongestBodyWithTheNameLast) {
  TlsHello hello = hello_of_body_bytes(kHandshakeBytesMax);
  for (const size_t record_bytes : {16384, 656, 65}) {  // 5, 100 and 1009 records
    hello.record_bytes = record_bytes;
    const Bytes stream = hello.bytes();
    ASSERT_LE(stream.size(), kPeekBytesMax);
    ClientHello parsed;
    EXPECT_LE(rounds_to_verdict(stream, &parsed), 10u);
    EXPECT_EQ(parsed.sni(), "last.example");
  }
  EXPECT_VERDICT(malformed, hello_of_body_bytes(kHandshakeBytesMax + 1).bytes(), 9);
}

TEST(ClientHello, FollowsTheMostRecordsAndNoMore) {
  TlsHello hello{{sni("a.example")}};
  const size_t size = hello.handshake().size();
  for (const size_t surplus : {0, 1}) {
    hello.extensions = {padding(kRecordsMax - size - 4 + surplus), sni("a.example")};
    hello.record_bytes = 1;
    EXPECT_EQ(hello.bytes().size(), 6 * (kRecordsMax + surplus));
    EXPECT_EQ(parse(hello).verdict, surplus ? Verdict::malformed : Verdict::hello);
  }
}

TEST(ClientHello, TooManyRecordsAreSeenAsSoonAsTheyAreSure) {
  Bytes stream = {22, 3, 1, 0, 4, 1, 0, 0xff, 0xff};
  while (stream.size() < 9 + 6 * (kRecordsMax - 4)) append(&stream, {22, 3, 1, 0, 1, 0});
  EXPECT_VERDICT(malformed, stream);  // 1021 records, and 64515 bytes do not fit into 3 more
  stream.erase(stream.end() - 6, stream.end());
  const auto parsed = parse(stream);
  EXPECT_EQ(parsed.verdict, Verdict::need_more);
  EXPECT_LE(parsed.need_bytes, kPeekBytesMax);
}

// OpenSSL as a client that says hello; as the server that has to understand one: tests/differential.

struct SslFree {
  void operator()(SSL_CTX* p) const { SSL_CTX_free(p); }
  void operator()(SSL* p) const { SSL_free(p); }
};

Bytes openssl_hello(const char* name, const std::vector<std::string>& protocols, int version_max) {
  const std::unique_ptr<SSL_CTX, SslFree> context(SSL_CTX_new(TLS_client_method()));
  SSL_CTX_set_max_proto_version(context.get(), version_max);
  const std::unique_ptr<SSL, SslFree> ssl(SSL_new(context.get()));
  BIO* sent = BIO_new(BIO_s_mem());
  SSL_set_bio(ssl.get(), BIO_new(BIO_s_mem()), sent);
  if (name != nullptr) SSL_set_tlsext_host_name(ssl.get(), name);
  Bytes list;
  for (const auto& protocol : protocols) append(&list, vector(1, bytes_of(protocol)));
  if (!list.empty()) SSL_set_alpn_protos(ssl.get(), list.data(), static_cast<unsigned>(list.size()));
  SSL_connect(ssl.get());
  char* data = nullptr;
  const long size = BIO_get_mem_data(sent, &data);
  return {data, data + size};
}

TEST(ClientHelloAgainstOpenSsl, ReadsItsHellos) {
  for (const int version_max : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    const auto hello = parse(openssl_hello("Mail.Example.net", {"h2", "http/1.1"}, version_max));
    EXPECT_EQ(hello.verdict, Verdict::hello);
    EXPECT_EQ(hello.sni(), "mail.example.net");
    EXPECT_EQ(alpn_names(hello), (std::vector<std::string>{"h2", "http/1.1"}));
    EXPECT_SNI("", openssl_hello(nullptr, {}, version_max));
  }
}

}  // namespace
}  // namespace penstock::tls
