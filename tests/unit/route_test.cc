// SPDX-License-Identifier: Apache-2.0
#include "route/route.h"

#include <gtest/gtest.h>

namespace penstock::route {
namespace {

TEST(SniMatches, Table) {
  const struct {
    const char *pattern, *name;
    bool matches;
  } cases[] = {
      {"www.example.net", "www.example.net", true},
      {"www.example.net", "example.net", false},
      {"www.example.net", "xwww.example.net", false},
      {"www.example.net", "www.example.net.evil", false},
      {"*.example.net", "a.example.net", true},
      {"*.example.net", "a.b.c.example.net", true},
      {"*.example.net", "example.net", false},
      {"*.example.net", "evilexample.net", false},
      {"*.example.net", ".example.net", false},
      {"*.example.net", "", false},
      {"mta-sts.*", "mta-sts.example.net", true},
      {"mta-sts.*", "mta-sts.a.b.example.net", true},
      {"mta-sts.*", "mta-sts", false},
      {"mta-sts.*", "mta-sts.", false},
      {"mta-sts.*", "mta-stsx.example.net", false},
      {"mta-sts.*", "a.mta-sts.example.net", false},
      {"*", "anything", true},
      {"*", "a.b.c", true},
      {"*", "", false},
      {"", "", false},
  };
  for (const auto& c : cases)
    EXPECT_EQ(sni_matches(c.pattern, c.name), c.matches) << c.pattern << " " << c.name;
}

// One listener on :443 and :8443 whose own upstream is "own"; upstreams are own, a, b.
class Routes {
 public:
  explicit Routes(std::string_view routes) {
    const std::string text =
        "upstream.own.servers = '::1'\nupstream.a.servers = '::1'\nupstream.b.servers = '::1'\n"
        "[[listener]]\nbind = [':443', ':8443']\nupstream = 'own'\n" +
        std::string(routes);
    config::Parsed parsed = config::parse(text, "test", [](std::string_view) { return std::nullopt; });
    for (const config::Diagnostic& d : parsed.diagnostics) EXPECT_FALSE(d.is_error) << d.text;
    config_ = std::move(parsed.config).value();
    table_ = std::make_unique<Table>(config_);
  }

  struct Client {
    std::string_view sni;
    std::vector<std::string_view> alpn;
    std::string_view from = "198.51.100.7";
    uint16_t port = 443;
  };
  // "own", "a 0" (the upstream and the index of the route), "reject 1".
  std::string decide(const Client& client) const {
    const Decision d =
        table_->decide(0, {client.sni, client.alpn, IpAddress::parse(client.from).value(), client.port});
    const std::string where = d.reject ? "reject" : config_.upstreams.at(d.upstream).name;
    return d.route < 0 ? where : where + " " + std::to_string(d.route);
  }
  bool needs_client_hello() const { return table_->needs_client_hello(0); }

 private:
  config::Config config_;
  std::unique_ptr<Table> table_;
};

TEST(Route, WithoutRoutesTheListenersOwnUpstream) {
  const Routes routes("");
  EXPECT_EQ(routes.decide({"www.example.net"}), "own");
  EXPECT_EQ(routes.decide({""}), "own");
}

TEST(Route, TheFirstMatchWins) {
  const Routes routes(R"(
[[listener.route]]
sni = "www.example.net"
upstream = "a"
[[listener.route]]
sni = "*.example.net"
upstream = "b"
[[listener.route]]
sni = ["x.example.org", "*"]
action = "reject"
)");
  EXPECT_EQ(routes.decide({"www.example.net"}), "a 0");
  EXPECT_EQ(routes.decide({"mail.example.net"}), "b 1");
  EXPECT_EQ(routes.decide({"x.example.org"}), "reject 2");
  EXPECT_EQ(routes.decide({"y.example.com"}), "reject 2");
  EXPECT_EQ(routes.decide({""}), "own") << "no name: * does not match";
}

TEST(Route, PatternsAreLowerCased) {
  const Routes routes("[[listener.route]]\nsni = 'WWW.Example.NET.'\nupstream = 'a'\n");
  EXPECT_EQ(routes.decide({"www.example.net"}), "a 0");
}

TEST(Route, AllCriteriaOfARouteAndAnyValueOfEach) {
  const Routes routes(R"(
[[listener.route]]
sni = ["www.example.net", "mail.example.net"]
alpn = ["h2", "acme-tls/1"]
source = ["192.0.2.0/24", "2001:db8::/32"]
port = [8443]
upstream = "a"
)");
  EXPECT_EQ(routes.decide({"mail.example.net", {"http/1.1", "acme-tls/1"}, "192.0.2.9", 8443}), "a 0");
  EXPECT_EQ(routes.decide({"www.example.net", {"h2"}, "2001:db8::9", 8443}), "a 0");
  EXPECT_EQ(routes.decide({"www.example.org", {"h2"}, "192.0.2.9", 8443}), "own") << "sni";
  EXPECT_EQ(routes.decide({"www.example.net", {"H2"}, "192.0.2.9", 8443}), "own") << "alpn";
  EXPECT_EQ(routes.decide({"www.example.net", {}, "192.0.2.9", 8443}), "own") << "no alpn";
  EXPECT_EQ(routes.decide({"www.example.net", {"h2"}, "192.0.3.9", 8443}), "own") << "source";
  EXPECT_EQ(routes.decide({"www.example.net", {"h2"}, "192.0.2.9", 443}), "own") << "port";
}

TEST(Route, NeedsTheHelloOnlyForSniAndAlpn) {
  EXPECT_FALSE(Routes("").needs_client_hello());
  EXPECT_FALSE(
      Routes("[[listener.route]]\nport = 443\nsource = '::1'\nupstream = 'a'\n").needs_client_hello());
  EXPECT_TRUE(Routes("[[listener.route]]\nsni = '*'\nupstream = 'a'\n").needs_client_hello());
  EXPECT_TRUE(
      Routes(
          "[[listener.route]]\nport = 443\nupstream = 'b'\n[[listener.route]]\nalpn = 'h2'\nupstream = 'a'\n")
          .needs_client_hello());
}

TEST(Allows, DenyComesFirstAndAnEmptyAllowAllowsAll) {
  const auto allowed = [](std::vector<const char*> allow, std::vector<const char*> deny, const char* client) {
    config::Listener listener;
    for (const char* prefix : allow) listener.allow.push_back(*Cidr::parse(prefix));
    for (const char* prefix : deny) listener.deny.push_back(*Cidr::parse(prefix));
    return allows(listener, *IpAddress::parse(client));
  };
  EXPECT_TRUE(allowed({}, {}, "192.0.2.1"));
  EXPECT_TRUE(allowed({"192.0.2.0/24", "::/0"}, {}, "192.0.2.1"));
  EXPECT_TRUE(allowed({"192.0.2.0/24", "::/0"}, {}, "2001:db8::1"));
  EXPECT_FALSE(allowed({"192.0.2.0/24"}, {}, "198.51.100.1"));
  EXPECT_FALSE(allowed({"192.0.2.0/24"}, {}, "2001:db8::1"));
  EXPECT_FALSE(allowed({"192.0.2.0/24"}, {"192.0.2.1"}, "192.0.2.1"));
  EXPECT_TRUE(allowed({"192.0.2.0/24"}, {"192.0.2.1"}, "192.0.2.2"));
  EXPECT_FALSE(allowed({}, {"192.0.2.1"}, "192.0.2.1"));
  EXPECT_TRUE(allowed({}, {"192.0.2.1"}, "192.0.2.2"));
}

}  // namespace
}  // namespace penstock::route
