// SPDX-License-Identifier: Apache-2.0
#include "base/endpoint.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>

namespace penstock {
namespace {

IpAddress ip(std::string_view text) {
  return IpAddress::parse(text).value();
}
Cidr cidr(std::string_view text) {
  return Cidr::parse(text).value();
}

TEST(IpAddress, ParsesAndPrints) {
  const struct {
    const char *in, *out;
  } cases[] = {{"192.0.2.1", "192.0.2.1"},
               {"0.0.0.0", "0.0.0.0"},
               {"2001:DB8::1", "2001:db8::1"},
               {"2001:db8:0:0:0:0:0:1", "2001:db8::1"},
               {"::ffff:192.0.2.1", "192.0.2.1"},
               {"::", "::"},
               {"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}};
  for (const auto& c : cases) EXPECT_EQ(ip(c.in).text(), c.out);
}

TEST(IpAddress, Refuses) {
  for (const char* text :
       {"", "192.0.2", "192.0.2.256", "192.0.2.1.1", "192.0.2.01", " 192.0.2.1", "[::1]", "fe80::1%lo",
        "1:2:3:4:5:6:7:8:9", "mailbox", "0000:0000:0000:0000:0000:0000:0000:0000:0000:0000"}) {
    EXPECT_FALSE(IpAddress::parse(text)) << text;
  }
  EXPECT_FALSE(IpAddress::parse(std::string_view("::1\0", 4)));
}

TEST(IpAddress, V4IsMapped) {
  EXPECT_TRUE(ip("192.0.2.1").is_v4());
  EXPECT_TRUE(ip("::ffff:192.0.2.1").is_v4());
  EXPECT_FALSE(ip("::192.0.2.1").is_v4());
  EXPECT_EQ(IpAddress::v4(0xc0000201), ip("192.0.2.1"));
}

TEST(Cidr, PrintsItsNormalForm) {
  EXPECT_EQ(cidr("10.1.2.3/8").text(), "10.0.0.0/8");
  EXPECT_EQ(cidr("192.0.2.1").text(), "192.0.2.1/32");
  EXPECT_EQ(cidr("0.0.0.0/0").text(), "0.0.0.0/0");
  EXPECT_EQ(cidr("2001:db8:ffff::/33").text(), "2001:db8:8000::/33");
  EXPECT_EQ(cidr("::1").text(), "::1/128");
  EXPECT_EQ(cidr("::/0").text(), "::/0");
  EXPECT_EQ(cidr("::ffff:10.0.0.0/104"), cidr("10.0.0.0/8"));
  EXPECT_EQ(cidr("10.0.0.0/8").prefix_bits, 104);
}

TEST(Cidr, Refuses) {
  for (const char* text : {"", "/8", "10.0.0.0/", "10.0.0.0/33", "::/129", "10.0.0.0/8 ", "10.0.0.0/-1",
                           "10.0.0.0/+8", "10.0.0.0/8/8", "10.0.0/8", "10.0.0.0/99999999999"}) {
    EXPECT_FALSE(Cidr::parse(text)) << text;
  }
}

TEST(Cidr, ContainsExactlyItsPrefix) {
  const struct {
    const char *prefix, *address;
    bool contains;
  } cases[] = {
      {"10.0.0.0/8", "10.255.255.255", true},  {"10.0.0.0/8", "11.0.0.0", false},
      {"10.0.0.0/9", "10.127.0.1", true},      {"10.0.0.0/9", "10.128.0.1", false},
      {"192.0.2.1", "192.0.2.1", true},        {"192.0.2.1", "192.0.2.2", false},
      {"192.0.2.0/31", "192.0.2.1", true},     {"192.0.2.0/31", "192.0.2.2", false},
      {"0.0.0.0/0", "203.0.113.9", true},      {"0.0.0.0/0", "2001:db8::1", false},
      {"::/0", "2001:db8::1", true},           {"::/0", "203.0.113.9", false},
      {"2001:db8::/32", "2001:db8:1::", true}, {"2001:db8::/32", "2001:db9::", false},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(cidr(c.prefix).contains(ip(c.address)), c.contains) << c.prefix << " " << c.address;
  }
  const Cidr not_normal{ip("10.1.2.3"), 104};
  EXPECT_TRUE(not_normal.contains(ip("10.9.9.9")));
}

TEST(Endpoint, SockaddrThereAndBack) {
  for (const char* text : {"192.0.2.1", "2001:db8::1"}) {
    const Endpoint before{ip(text), 25};
    sockaddr_storage storage;
    const socklen_t length = before.to_sockaddr(&storage);
    EXPECT_EQ(storage.ss_family, before.address.is_v4() ? AF_INET : AF_INET6);
    EXPECT_EQ(Endpoint::from_sockaddr(reinterpret_cast<sockaddr*>(&storage), length), before);
  }
}

TEST(Endpoint, MappedV6SockaddrIsV4) {
  sockaddr_in6 in6{};
  in6.sin6_family = AF_INET6;
  in6.sin6_port = htons(443);
  ASSERT_EQ(inet_pton(AF_INET6, "::ffff:192.0.2.1", &in6.sin6_addr), 1);
  const auto e = Endpoint::from_sockaddr(reinterpret_cast<sockaddr*>(&in6), sizeof in6);
  ASSERT_TRUE(e);
  EXPECT_EQ(e->text(), "192.0.2.1:443");
  sockaddr_storage storage;
  EXPECT_EQ(e->to_sockaddr(&storage), sizeof(sockaddr_in));
}

TEST(Endpoint, KeepsTheScopeOfALinkLocalAddress) {
  Endpoint before{ip("fe80::1"), 25};
  before.scope_id = 7;
  sockaddr_storage storage;
  const socklen_t length = before.to_sockaddr(&storage);
  EXPECT_EQ(Endpoint::from_sockaddr(reinterpret_cast<sockaddr*>(&storage), length), before);
}

TEST(Endpoint, OtherSockaddrsAreNone) {
  sockaddr_storage storage{};
  storage.ss_family = AF_UNIX;
  EXPECT_FALSE(Endpoint::from_sockaddr(reinterpret_cast<sockaddr*>(&storage), sizeof storage));
  storage.ss_family = AF_INET6;
  EXPECT_FALSE(Endpoint::from_sockaddr(reinterpret_cast<sockaddr*>(&storage), sizeof(sockaddr_in6) - 1));
}

TEST(Endpoint, Prints) {
  EXPECT_EQ((Endpoint{ip("192.0.2.1"), 25}.text()), "192.0.2.1:25");
  EXPECT_EQ((Endpoint{ip("2001:db8::1"), 65535}.text()), "[2001:db8::1]:65535");
}

}  // namespace
}  // namespace penstock
