// SPDX-License-Identifier: Apache-2.0
// What proxy_protocol/proxy_protocol.h promises; wire bytes stand here as the specification draws them.
#include "proxy_protocol/proxy_protocol.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <utility>
#include <vector>

namespace penstock::proxy_protocol {
namespace {

using Bytes = std::vector<uint8_t>;

Bytes bytes_of(std::string_view text) {
  return {text.begin(), text.end()};
}

Bytes concat(std::initializer_list<Bytes> parts) {
  Bytes out;
  for (const Bytes& part : parts) out.insert(out.end(), part.begin(), part.end());
  return out;
}

Endpoint endpoint(const char* address, uint16_t port) {
  return {IpAddress::parse(address).value(), port};
}

Bytes encoded(const Outgoing& what) {
  Bytes out(kHeaderBytesMax);
  out.resize(encode(what, out));
  return out;
}
std::string encoded_text(Outgoing what) {
  what.version = Version::v1;
  const Bytes bytes = encoded(what);
  return {bytes.begin(), bytes.end()};
}

// Of a copy of exactly the size shown, so that the asan preset sees a read beyond it. No use for its tlvs.
Incoming parsed(std::span<const uint8_t> bytes) {
  const Bytes copy(bytes.begin(), bytes.end());
  Incoming out;
  parse(copy, &out);
  out.tlvs = {};
  return out;
}
Incoming parsed(std::string_view text) {
  return parsed(bytes_of(text));
}

Bytes tlvs_of(const Bytes& bytes) {
  Incoming out;
  parse(bytes, &out);
  return {out.tlvs.begin(), out.tlvs.end()};
}

const Bytes kSignature = {0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a};
const Bytes kAddresses4 = {192, 0, 2, 1, 198, 51, 100, 2, 0xdd, 0xd5, 0x00, 0x19};      // 56789 -> 25
const Bytes kAddresses6 = {0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,  //
                           0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2,  //
                           0xdd, 0xd5, 0x01, 0xbb};

struct V2 {
  uint8_t version_command = 0x21;
  uint8_t family = 0x11;
  Bytes addresses = kAddresses4;
  Bytes tlvs{};
  int length_error = 0;
  Bytes bytes() const {
    const size_t length = addresses.size() + tlvs.size() + static_cast<size_t>(length_error);
    return concat({kSignature,
                   {version_command, family, static_cast<uint8_t>(length >> 8), static_cast<uint8_t>(length)},
                   addresses,
                   tlvs});
  }
};

const Outgoing kMail4{.client = endpoint("192.0.2.1", 56789), .destination = endpoint("198.51.100.2", 25)};
const Outgoing kWeb6{.client = endpoint("2001:db8::1", 56789), .destination = endpoint("2001:db8::2", 443)};

TEST(Crc32c, KnownAnswers) {  // RFC 3720 B.4, and the usual check value
  EXPECT_EQ(crc32c(Bytes(32, 0x00)), 0x8a9136aau);
  EXPECT_EQ(crc32c(Bytes(32, 0xff)), 0x62a8ab43u);
  Bytes up, down;
  for (uint8_t i = 0; i < 32; ++i) up.push_back(i), down.push_back(static_cast<uint8_t>(31 - i));
  EXPECT_EQ(crc32c(up), 0x46dd794eu);
  EXPECT_EQ(crc32c(down), 0x113fdb5cu);
  EXPECT_EQ(crc32c(bytes_of("123456789")), 0xe3069283u);
  EXPECT_EQ(crc32c({}), 0u);
  EXPECT_EQ(crc32c(bytes_of("6789"), crc32c(bytes_of("12345"))), 0xe3069283u);
}

TEST(ProxyEncode, V2OfIPv4) {
  EXPECT_EQ(encoded(kMail4), V2{}.bytes());
}

TEST(ProxyEncode, V2OfIPv6) {
  EXPECT_EQ(encoded(kWeb6), (V2{.family = 0x21, .addresses = kAddresses6}.bytes()));
}

TEST(ProxyEncode, V2OfTwoFamiliesIsIPv6WithAMappedAddress) {
  const Bytes addresses = concat({
      {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1},
      {0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2},
      {0xdd, 0xd5, 0x01, 0xbb},
  });
  EXPECT_EQ(encoded({.client = kMail4.client, .destination = kWeb6.destination}),
            (V2{.family = 0x21, .addresses = addresses}.bytes()));
}

TEST(ProxyEncode, V2Local) {
  EXPECT_EQ(encoded({.local = true}), (V2{.version_command = 0x20, .family = 0x00, .addresses = {}}.bytes()));
}

TEST(ProxyEncode, V2Tlvs) {
  Outgoing what = kMail4;
  what.authority = "a.example";
  what.alpn = "h2";
  const Bytes id = {0xde, 0xad};
  what.unique_id = id;
  const Bytes alpn = {0x01, 0, 2, 'h', '2'};
  const Bytes authority = {0x02, 0, 9, 'a', '.', 'e', 'x', 'a', 'm', 'p', 'l', 'e'};
  const Bytes unique_id = {0x05, 0, 2, 0xde, 0xad};
  EXPECT_EQ(encoded(what), V2{.tlvs = concat({alpn, authority, unique_id})}.bytes());
  what.crc32c = true;
  const Bytes blank = V2{.tlvs = concat({{0x03, 0, 4, 0, 0, 0, 0}, alpn, authority, unique_id})}.bytes();
  const uint32_t crc = crc32c(blank);
  const Bytes sum = {0x03,
                     0,
                     4,
                     static_cast<uint8_t>(crc >> 24),
                     static_cast<uint8_t>(crc >> 16),
                     static_cast<uint8_t>(crc >> 8),
                     static_cast<uint8_t>(crc)};
  EXPECT_EQ(encoded(what), V2{.tlvs = concat({sum, alpn, authority, unique_id})}.bytes());
}

TEST(ProxyEncode, TheLongestHeaderFits) {
  const std::string text(255, 'x');
  const Bytes id(128, 1);
  Outgoing what = kWeb6;
  what.authority = what.alpn = text;
  what.unique_id = id;
  what.crc32c = true;
  Bytes passed_on = {0xe0, (kPassedOnBytesMax - 3) >> 8, (kPassedOnBytesMax - 3) & 0xff};
  passed_on.resize(kPassedOnBytesMax);
  what.passed_on = passed_on;
  EXPECT_EQ(encoded(what).size(), 16u + 36 + 7 + 258 + 258 + 131 + kPassedOnBytesMax);
}

const Bytes kTlvAlpnH1 = {0x01, 0, 2, 'h', '1'}, kTlvAuthorityB = {0x02, 0, 1, 'b'},
            kTlvNoops = {0x04, 0, 2, 0, 0}, kTlvId = {0x05, 0, 2, 0xde, 0xad}, kTlvEmpty = {0x30, 0, 0},
            kTlvOwn = {0xe0, 0, 3, 'x', 0, 0xff};

TEST(ProxyEncode, TlvsArePassedOnAsTheyCame) {
  Outgoing what = kMail4;
  const Bytes came = concat({kTlvOwn, kTlvAlpnH1, kTlvNoops, kTlvEmpty, kTlvAuthorityB, kTlvId});
  what.passed_on = came;
  EXPECT_EQ(encoded(what),
            V2{.tlvs = concat({kTlvOwn, kTlvAlpnH1, kTlvEmpty, kTlvAuthorityB, kTlvId})}.bytes());
  what.alpn = "h2";
  what.authority = "a";
  const Bytes own = {0x01, 0, 2, 'h', '2', 0x02, 0, 1, 'a'};
  EXPECT_EQ(encoded(what), V2{.tlvs = concat({own, kTlvOwn, kTlvEmpty, kTlvId})}.bytes());
  const Bytes id = {0xbe};
  what.unique_id = id;
  EXPECT_EQ(encoded(what), V2{.tlvs = concat({own, {0x05, 0, 1, 0xbe}, kTlvOwn, kTlvEmpty})}.bytes());
}

TEST(ProxyEncode, AChecksumIsMadeAnewNeverCopied) {
  Outgoing what = kMail4;
  what.crc32c = true;
  what.passed_on = kTlvOwn;
  const Bytes once = encoded(what);
  EXPECT_EQ(parsed(once).verdict, Verdict::header);
  what.crc32c = false;
  const Bytes came = concat({kTlvOwn, {0x03, 0, 4, 1, 2, 3, 4}});
  what.passed_on = came;
  EXPECT_EQ(encoded(what), once);
}

TEST(ProxyEncode, V1) {
  EXPECT_EQ(encoded_text(kMail4), "PROXY TCP4 192.0.2.1 198.51.100.2 56789 25\r\n");
  EXPECT_EQ(encoded_text(kWeb6), "PROXY TCP6 2001:db8::1 2001:db8::2 56789 443\r\n");
  EXPECT_EQ(encoded_text({.client = kMail4.client, .destination = kWeb6.destination}),
            "PROXY TCP6 ::ffff:c000:201 2001:db8::2 56789 443\r\n");
  EXPECT_EQ(encoded_text({.local = true}), "PROXY UNKNOWN\r\n");
  EXPECT_EQ(
      encoded_text({.client = endpoint("0.0.0.0", 0), .destination = endpoint("255.255.255.255", 65535)}),
      "PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n");
}

#define EXPECT_TOLD(incoming, said)                  \
  do {                                               \
    const Incoming told = (incoming);                \
    EXPECT_EQ(told.verdict, Verdict::header);        \
    EXPECT_EQ(told.local, (said).local);             \
    EXPECT_EQ(told.client, (said).client);           \
    EXPECT_EQ(told.destination, (said).destination); \
  } while (0)
#define EXPECT_VERDICT(expected, ...) EXPECT_EQ(parsed(__VA_ARGS__).verdict, Verdict::expected)

TEST(ProxyParse, V2) {
  EXPECT_TOLD(parsed(V2{}.bytes()), kMail4);
  EXPECT_TOLD(parsed(V2{.family = 0x21, .addresses = kAddresses6}.bytes()), kWeb6);
  EXPECT_EQ(parsed(V2{}.bytes()).version, Version::v2);
}

TEST(ProxyParse, HeaderBytesEndWhereTheClientsBytesBegin) {
  for (const auto& [header, size] : {std::pair{V2{.tlvs = {4, 0, 1, 0}}.bytes(), 32},
                                     std::pair{bytes_of("PROXY TCP4 192.0.2.1 198.51.100.2 1 2\r\n"), 39}}) {
    const Incoming alone = parsed(header);
    EXPECT_EQ(alone.header_bytes, static_cast<size_t>(size));
    const Incoming followed = parsed(concat({header, bytes_of("EHLO client\r\n"), Bytes(70000)}));
    EXPECT_EQ(followed.verdict, Verdict::header);
    EXPECT_EQ(followed.header_bytes, alone.header_bytes);
  }
}

TEST(ProxyParse, V2LocalAndUnspecSkipWhateverIsInThem) {
  for (const Bytes& block : {Bytes{}, Bytes{1, 2, 3}, kAddresses4}) {
    for (const auto& [command, family] :
         {std::pair{0x20, 0x00}, std::pair{0x20, 0x11}, std::pair{0x20, 0xff}, std::pair{0x21, 0x00}}) {
      const V2 header{static_cast<uint8_t>(command), static_cast<uint8_t>(family), block};
      EXPECT_TOLD(parsed(header.bytes()), Outgoing{.local = true});
      EXPECT_EQ(parsed(header.bytes()).header_bytes, 16 + block.size());
    }
  }
}

TEST(ProxyParse, V2UnixKeepsTheConnectionsAddressesAndTheTlvs) {
  const Bytes noop = {0x04, 0, 0};
  const V2 header{.family = 0x31, .addresses = Bytes(216, '/'), .tlvs = noop};
  EXPECT_TOLD(parsed(header.bytes()), Outgoing{.local = true});
  EXPECT_EQ(tlvs_of(header.bytes()), noop);
}

TEST(ProxyParse, V2WrongNumbersAreMalformed) {
  for (const uint8_t version_command : {0x00, 0x11, 0x01, 0x31, 0x22, 0x2f, 0xff}) {
    EXPECT_VERDICT(malformed, V2{.version_command = version_command}.bytes()) << int{version_command};
  }
  for (int family = 0; family < 256; ++family) {
    const V2 header{.family = static_cast<uint8_t>(family), .addresses = Bytes(216)};
    if (family == 0x00 || family == 0x11 || family == 0x21 || family == 0x31) continue;
    EXPECT_VERDICT(malformed, header.bytes()) << family;
  }
}

TEST(ProxyParse, V2LengthsMustHold) {
  for (const V2& header :
       {V2{}, V2{.family = 0x21, .addresses = kAddresses6}, V2{.family = 0x31, .addresses = Bytes(216)}}) {
    V2 shorter = header;
    shorter.length_error = -1;
    EXPECT_VERDICT(malformed, shorter.bytes());
    V2 longer = header;
    longer.length_error = 1;
    EXPECT_VERDICT(need_more, longer.bytes());
  }
  const auto noop = [](size_t size) {
    return concat(
        {{0x04, static_cast<uint8_t>((size - 3) >> 8), static_cast<uint8_t>(size - 3)}, Bytes(size - 3)});
  };
  EXPECT_VERDICT(header, V2{.tlvs = noop(kIncomingBytesMax - 28)}.bytes());
  EXPECT_VERDICT(malformed, V2{.tlvs = noop(kIncomingBytesMax - 27)}.bytes());
  EXPECT_VERDICT(malformed, V2{.length_error = 0xf000}.bytes());
  EXPECT_VERDICT(malformed, V2{.version_command = 0x20, .addresses = Bytes(kIncomingBytesMax - 15)}.bytes());
}

TEST(ProxyParse, V2TlvsMustFillTheirSpace) {
  const Bytes sound = {0x04, 0, 0, 0xe0, 0, 2, 1, 2};
  EXPECT_EQ(tlvs_of(V2{.tlvs = sound}.bytes()), sound);
  for (const Bytes& tlvs : {Bytes{4}, Bytes{4, 0}, Bytes{4, 0, 1}, Bytes{4, 0, 0, 4}, Bytes{4, 0, 2, 0},
                            Bytes{4, 0xff, 0xff, 0}}) {
    EXPECT_VERDICT(malformed, V2{.tlvs = tlvs}.bytes()) << testing::PrintToString(tlvs);
  }
}

TEST(ProxyParse, V2ChecksumIsChecked) {
  Outgoing what = kMail4;
  what.authority = "a.example";
  what.crc32c = true;
  const Bytes good = encoded(what);
  EXPECT_TOLD(parsed(good), kMail4);
  for (size_t at = 16; at < good.size(); ++at) {
    Bytes bad = good;
    bad[at] ^= 1;
    if (at == 28) continue;  // the type of the CRC32C TLV itself: without it there is nothing to check
    EXPECT_VERDICT(malformed, bad) << at;
  }
  EXPECT_VERDICT(malformed, V2{.tlvs = {3, 0, 3, 0, 0, 0}}.bytes());
  EXPECT_VERDICT(malformed, V2{.tlvs = {3, 0, 5, 0, 0, 0, 0, 0}}.bytes());
}

TEST(ProxyParse, V1) {
  EXPECT_TOLD(parsed("PROXY TCP4 192.0.2.1 198.51.100.2 56789 25\r\n"), kMail4);
  EXPECT_TOLD(parsed("PROXY TCP6 2001:DB8::1 2001:0db8:0:0:0:0:0:2 56789 443\r\n"), kWeb6);
  EXPECT_TOLD(parsed("PROXY TCP6 ::ffff:c000:201 2001:db8::2 56789 443\r\n"),
              (Outgoing{.client = kMail4.client, .destination = kWeb6.destination}));
  EXPECT_EQ(parsed("PROXY TCP4 0.0.0.0 0.0.0.0 0 65535\r\n").destination.port, 65535);
  EXPECT_EQ(parsed("PROXY UNKNOWN\r\n").version, Version::v1);
}

TEST(ProxyParse, V1UnknownIgnoresItsLine) {
  for (const char* line : {"PROXY UNKNOWN\r\n", "PROXY UNKNOWN \r\n", "PROXY UNKNOWN ::1 ::1 70000 x\r\n",
                           "PROXY UNKNOWN \r\t\n\r\n"}) {
    SCOPED_TRACE(line);
    EXPECT_TOLD(parsed(line), Outgoing{.local = true});
  }
}

TEST(ProxyParse, V1LongestLine) {
  const std::string worst =
      "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 "
      "65535\r\n";
  ASSERT_EQ(worst.size(), kV1BytesMax);
  EXPECT_EQ(parsed(worst).header_bytes, kV1BytesMax);
  const std::string longer = "PROXY UNKNOWN " + std::string(92, 'x') + "\r\n";
  EXPECT_VERDICT(malformed, longer);
  EXPECT_VERDICT(malformed, std::string_view(longer).substr(0, 106));  // CRLF can no longer fit
  EXPECT_VERDICT(need_more, std::string_view(longer).substr(0, 105));
}

TEST(ProxyParse, V1BrokenLinesAreMalformed) {
  using namespace std::string_view_literals;
  for (const auto rest : {
           "\r\n"sv,
           "TCP\r\n"sv,
           "TCP5 "sv,
           "tcp4 "sv,
           "UDP4 "sv,
           " TCP4 "sv,
           "UNKNOWNS\r\n"sv,
           "TCP4\r\n"sv,
           "TCP4\t192.0.2.1 198.51.100.2 56789 25\r\n"sv,
           "TCP4 192.0.2.1 198.51.100.2 56789\r\n"sv,
           "TCP4 192.0.2.1 198.51.100.2 56789 25 \r\n"sv,
           "TCP4 192.0.2.1 198.51.100.2 56789 25 1\r\n"sv,
           "TCP4  192.0.2.1 198.51.100.2 56789 25\r\n"sv,
           "TCP4 192.0.2.1 198.51.100.2  56789 25\r\n"sv,
           "TCP4 192.0.2.1 198.51.100.2 056789 25\r\n"sv,
           "TCP4 192.0.2.1 198.51.100.2 56789 00\r\n"sv,
           "TCP4 192.0.2.1 198.51.100.2 56789 +25\r\n"sv,
           "TCP4 192.0.2.1 198.51.100.2 56789 -1\r\n"sv,
           "TCP4 192.0.2.1 198.51.100.2 56789 65536\r\n"sv,
           "TCP4 192.0.2.1 198.51.100.2 56789 0x19\r\n"sv,
           "TCP4 192.0.2.1 198.51.100.2 56789 2\r5\r\n"sv,
           "TCP4 192.0.2.01 198.51.100.2 56789 25\r\n"sv,
           "TCP4 192.0.2.256 198.51.100.2 56789 25\r\n"sv,
           "TCP4 192.0.2 198.51.100.2 56789 25\r\n"sv,
           "TCP4 192.0.2.1\0 198.51.100.2 56789 25\r\n"sv,
           "TCP4 ::1 ::1 56789 25\r\n"sv,
           "TCP6 192.0.2.1 198.51.100.2 56789 25\r\n"sv,
           "TCP6 [2001:db8::1] 2001:db8::2 56789 443\r\n"sv,
           "TCP6 fe80::1%eth0 2001:db8::2 56789 443\r\n"sv,
           "TCP6 2001:db8:::1 2001:db8::2 56789 443\r\n"sv,
           "TCP6 2001:db8::12345 2001:db8::2 56789 443\r\n"sv,
       }) {
    const std::string line = "PROXY " + std::string(rest);
    EXPECT_VERDICT(malformed, line) << line;
  }
}

TEST(ProxyParse, OthersAreToldAtTheFirstByteThatProvesIt) {
  EXPECT_VERDICT(not_proxy, "EHLO client\r\n");
  EXPECT_VERDICT(not_proxy, "E");
  EXPECT_VERDICT(not_proxy, "\r\nQ");
  EXPECT_VERDICT(not_proxy, "PROXY\t");
  EXPECT_VERDICT(not_proxy, "PROPFIND / HTTP/1.1\r\n");
  EXPECT_VERDICT(not_proxy, Bytes{22, 3, 1});
  EXPECT_EQ(parsed("").need_bytes, 1u);
  EXPECT_EQ(parsed("PROXY").need_bytes, 6u);
  EXPECT_EQ(parsed("PROXY ").need_bytes, 15u);
  EXPECT_EQ(parsed("PROXY TCP4").need_bytes, 32u);
  EXPECT_EQ(parsed(std::span(kSignature).first(11)).need_bytes, 12u);
  EXPECT_EQ(parsed(kSignature).need_bytes, 16u);
}

TEST(ProxyParse, EveryPrefixAsksForMoreButNotForTooMuch) {
  Outgoing rich = kWeb6;
  rich.authority = "a.example";
  rich.crc32c = true;
  Outgoing v1 = kMail4;
  v1.version = Version::v1;
  for (const Bytes& header : {
           encoded(kMail4),
           encoded(rich),
           encoded({.local = true}),
           encoded(v1),
           bytes_of("PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n"),
           bytes_of("PROXY TCP6 :: :: 0 0\r\n"),
           bytes_of("PROXY UNKNOWN\r\n"),
           bytes_of("PROXY UNKNOWN \r\r\r\n"),
       }) {
    for (size_t shown = 0; shown < header.size(); ++shown) {
      const Incoming incoming = parsed(std::span(header).first(shown));
      ASSERT_EQ(incoming.verdict, Verdict::need_more) << shown << " of " << testing::PrintToString(header);
      ASSERT_GT(incoming.need_bytes, shown);
      ASSERT_LE(incoming.need_bytes, header.size());
    }
    EXPECT_EQ(parsed(header).header_bytes, header.size());
  }
}

TEST(ProxySignature, IsToldByWhatBothVersionsBeginWith) {
  const auto of = [](const Bytes& bytes) { return signature(bytes); };
  for (const Bytes& header : {encoded(kMail4), encoded({.local = true}), bytes_of("PROXY nonsense")}) {
    const size_t whole = header[0] == 'P' ? 6 : 12;
    for (size_t shown = 0; shown <= header.size(); ++shown) {
      EXPECT_EQ(of({header.begin(), header.begin() + static_cast<ptrdiff_t>(shown)}),
                shown < whole ? Signature::prefix : Signature::whole)
          << shown;
    }
  }
  for (const char* other : {"EHLO", "P ", "PROXY\t", "PROPFIND", "\r\nQ", "\n", "\r\n\r\n\r"})
    EXPECT_EQ(of(bytes_of(other)), Signature::absent) << other;
}

TEST(ProxyTlv, OneAfterTheOther) {
  const Bytes bytes = concat({kTlvEmpty, kTlvId});
  std::span<const uint8_t> rest = bytes;
  const auto first = next_tlv(&rest);
  ASSERT_TRUE(first);
  EXPECT_EQ(first->type, 0x30);
  EXPECT_EQ(first->value.size(), 0u);
  EXPECT_EQ(first->bytes.size(), 3u);
  const auto second = next_tlv(&rest);
  ASSERT_TRUE(second);
  EXPECT_EQ(second->type, kTlvUniqueId);
  EXPECT_EQ(Bytes(second->value.begin(), second->value.end()), (Bytes{0xde, 0xad}));
  EXPECT_EQ(Bytes(second->bytes.begin(), second->bytes.end()), kTlvId);
  EXPECT_FALSE(next_tlv(&rest));
}

IpAddress random_address(std::mt19937_64* random, bool v4) {
  if (v4) return IpAddress::v4(static_cast<uint32_t>((*random)()));
  IpAddress out;
  for (uint8_t& byte : out.bytes) byte = (*random)() % 2 ? static_cast<uint8_t>((*random)()) : 0;
  return out;
}

TEST(Proxy, ParseUndoesEncode) {
  std::mt19937_64 random(7);
  const std::string text(255, 'n');
  for (size_t round = 0; round < 20'000; ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    Outgoing what;
    what.version = random() % 2 ? Version::v1 : Version::v2;
    what.client = {random_address(&random, random() % 2), static_cast<uint16_t>(random())};
    what.destination = {random_address(&random, random() % 2), static_cast<uint16_t>(random())};
    what.authority = std::string_view(text).substr(random() % 256);
    what.alpn = std::string_view(text).substr(random() % 256);
    what.crc32c = random() % 2;
    const Bytes bytes = encoded(what);
    const Incoming incoming = parsed(bytes);
    EXPECT_TOLD(incoming, what);
    ASSERT_EQ(incoming.version, what.version);
    ASSERT_EQ(incoming.header_bytes, bytes.size());
    if (HasFailure()) return;
  }
}

TEST(ProxyParse, MutatedBytesKeepTheContract) {
  std::mt19937_64 random(3);
  Outgoing rich = kWeb6;
  rich.authority = "a.example";
  rich.alpn = "h2";
  Outgoing v1 = kMail4;
  v1.version = Version::v1;
  const Bytes originals[] = {encoded(rich), encoded(v1), V2{.tlvs = {0xe0, 0, 2, 1, 2}}.bytes(),
                             bytes_of("PROXY UNKNOWN x\r\n")};
  size_t verdicts[4] = {};
  for (size_t round = 0; round < 200'000; ++round) {
    SCOPED_TRACE(round);
    Bytes bytes = originals[round % 4];
    for (size_t harms = 1 + random() % 3; harms > 0 && !bytes.empty(); --harms) {
      const size_t at =
          random() % 3 ? random() % bytes.size() : random() % std::min<size_t>(bytes.size(), 20);
      switch (random() % 4) {
        case 0:
          bytes[at] = static_cast<uint8_t>(random());
          break;
        case 1:
          bytes[at] ^= static_cast<uint8_t>(1u << random() % 8);
          break;
        case 2:
          bytes.insert(bytes.begin() + static_cast<ptrdiff_t>(at), static_cast<uint8_t>(random()));
          break;
        case 3:
          bytes.resize(at);
          break;
      }
    }
    const Incoming incoming = parsed(bytes);
    ++verdicts[static_cast<size_t>(incoming.verdict)];
    switch (incoming.verdict) {
      case Verdict::need_more:
        ASSERT_GT(incoming.need_bytes, bytes.size());
        ASSERT_LE(incoming.need_bytes, kIncomingBytesMax);
        break;
      case Verdict::header:
        ASSERT_LE(incoming.header_bytes, bytes.size());
        ASSERT_GE(incoming.header_bytes, 15u);
        if (incoming.header_bytes < bytes.size()) break;
        ASSERT_EQ(parsed(std::span(bytes).first(bytes.size() - 1)).verdict, Verdict::need_more);
        break;
      case Verdict::not_proxy:
      case Verdict::malformed:
        ASSERT_EQ(incoming.header_bytes, 0u);
        break;
    }
  }
  for (const size_t count : verdicts) EXPECT_GT(count, 1000u);
}

}  // namespace
}  // namespace penstock::proxy_protocol
