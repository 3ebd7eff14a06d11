// SPDX-License-Identifier: Apache-2.0
// The resolver against dnsmasq. Tests of the system's own files run as root, in a network namespace and with
// an /etc of their own.
#include "dns/resolver.h"

#include <gtest/gtest.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <optional>
#include <thread>

#include "ask.h"
#include "dnsmasq.h"

namespace penstock::dns {
namespace {

using namespace std::chrono_literals;
using namespace testing;
using Clock = std::chrono::steady_clock;

TEST(Resolver, gives_both_families_in_turn_v6_first) {
  uint16_t port = free_port();
  Dnsmasq server(port, {"--host-record=mail.test,192.0.2.1,2001:db8::1,300",
                        "--host-record=mail.test,192.0.2.2", "--host-record=mail.test,192.0.2.3"});
  auto resolver = started({at(port)});
  auto line = ask(*resolver, "Mail.TEST");
  EXPECT_TRUE(line.starts_with("2001:db8::1 192.0.2.")) << line;
  EXPECT_EQ(std::count(line.begin(), line.end(), ' '), 3) << line;
  EXPECT_EQ(ask(*resolver, "mail.test", Family::v6), "2001:db8::1");
}

TEST(Resolver, says_that_the_family_is_missing) {
  uint16_t port = free_port();
  Dnsmasq server(port, {"--host-record=four.test,192.0.2.4", "--local=/#/"});
  auto resolver = started({at(port)});
  EXPECT_EQ(ask(*resolver, "four.test", Family::v6), "error: the name has no IPv6 address");
  EXPECT_EQ(ask(*resolver, "four.test", Family::v4), "192.0.2.4");
  EXPECT_EQ(ask(*resolver, "four.test", Family::any), "192.0.2.4");
}

TEST(Resolver, says_that_there_is_no_such_name) {
  uint16_t port = free_port();
  Dnsmasq server(port, {"--local=/test/"});
  auto resolver = started({at(port)});
  EXPECT_EQ(ask(*resolver, "nobody.test."), "error: no such name");
}

TEST(Resolver, follows_a_cname) {
  uint16_t port = free_port();
  Dnsmasq server(port, {"--host-record=real.test,192.0.2.5", "--cname=alias.test,real.test"});
  auto resolver = started({at(port)});
  EXPECT_EQ(ask(*resolver, "alias.test"), "192.0.2.5");
}

TEST(Resolver, gives_up_on_a_silent_server_in_time) {
  Fd silent(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  uint16_t port = free_port();
  bind_to(silent, port);
  auto resolver = started({at(port)});
  auto before = Clock::now();
  EXPECT_EQ(ask(*resolver, "mail.test."), "error: timeout");
  auto took = Clock::now() - before;
  EXPECT_GE(took, 1s);  // it did try again
  EXPECT_LE(took, kAnswerMax + 500ms);
}

TEST(Resolver, says_that_no_server_listens) {
  auto resolver = started({at(free_port())});
  auto before = Clock::now();
  EXPECT_EQ(ask(*resolver, "mail.test."), "error: no DNS server could be reached, or none would answer");
  EXPECT_LE(Clock::now() - before, 2s);
}

TEST(Resolver, goes_on_to_the_next_server) {
  uint16_t port = free_port();
  Dnsmasq server(port, {"--host-record=mail.test,192.0.2.1"});
  auto resolver = started({at(free_port()), at(port)});
  EXPECT_EQ(ask(*resolver, "mail.test"), "192.0.2.1");
}

TEST(Resolver, answers_from_the_cache_without_asking) {
  uint16_t port = free_port();
  Dnsmasq server(port, {"--host-record=mail.test,192.0.2.1,300"});
  auto resolver = started({at(port)});
  EXPECT_EQ(cached(*resolver, "mail.test", Family::v4), std::nullopt);
  EXPECT_EQ(cached(*resolver, "mail.test", Family::v4), "192.0.2.1");
  EXPECT_EQ(cached(*resolver, "MAIL.test", Family::v4), "192.0.2.1");
  EXPECT_EQ(server.queries("mail.test"), 1u);
}

TEST(Resolver, remembers_a_failure_but_not_for_long) {
  uint16_t port = free_port();
  std::optional<Dnsmasq> server;
  server.emplace(port, std::vector<std::string>{"--local=/test/"});
  auto resolver = started({at(port)});
  EXPECT_EQ(ask(*resolver, "mail.test.", Family::v4), "error: no such name");
  EXPECT_EQ(cached(*resolver, "mail.test.", Family::v4), "error: no such name");
  server.reset();
  server.emplace(port, std::vector<std::string>{"--host-record=mail.test,192.0.2.1"});
  EXPECT_EQ(ask_until(*resolver, "mail.test.", "192.0.2.1"), "192.0.2.1");
}

TEST(Resolver, asks_again_when_the_ttl_is_over) {
  uint16_t port = free_port();
  std::optional<Dnsmasq> server;
  server.emplace(port, std::vector<std::string>{"--host-record=mail.test,192.0.2.1,1"});
  auto resolver = started({at(port)});
  auto asked = Clock::now();
  EXPECT_EQ(ask(*resolver, "mail.test", Family::v4), "192.0.2.1");
  server.reset();
  server.emplace(port, std::vector<std::string>{"--host-record=mail.test,192.0.2.2,1"});
  EXPECT_EQ(ask_until(*resolver, "mail.test", "192.0.2.2"), "192.0.2.2");
  EXPECT_GE(Clock::now() - asked, 1s);
}

TEST(Resolver, says_when_it_was_told_and_for_how_long) {
  uint16_t port = free_port();
  Dnsmasq server(port, {"--host-record=mail.test,192.0.2.1,300"});
  auto resolver = started({at(port)});
  auto before = Clock::now();
  Answer answer = answer_to(of(*resolver, "mail.test"));
  EXPECT_GE(answer.obtained, before);
  EXPECT_LE(answer.obtained, Clock::now());
  EXPECT_EQ(answer.expires - answer.obtained, 300s);
  EXPECT_FALSE(answer.stale);
  EXPECT_EQ(answer.error, "");
  EXPECT_EQ(answer_to(of(*resolver, "mail.test")), answer);
}

TEST(Resolver, keeps_ttls_within_its_options) {
  uint16_t port = free_port();
  Dnsmasq server(port, {"--host-record=long.test,192.0.2.1,300", "--host-record=short.test,192.0.2.2,2"});
  Options options;
  options.servers = {at(port)};
  options.ttl_min = 60s;
  options.ttl_max = 90s;
  auto resolver = started(options);
  Answer long_lived = answer_to(of(*resolver, "long.test")),
         short_lived = answer_to(of(*resolver, "short.test"));
  EXPECT_EQ(long_lived.expires - long_lived.obtained, 90s);
  EXPECT_EQ(short_lived.expires - short_lived.obtained, 60s);
}

TEST(Resolver, gives_at_most_so_many_addresses_of_both_families) {
  uint16_t port = free_port();
  std::vector<std::string> records;
  for (int i = 1; i <= 80; ++i) {
    auto n = std::to_string(i);
    records.push_back("--host-record=mail.test,192.0.2." + n + ",2001:db8::" + n);
  }
  Dnsmasq server(port, records);
  auto resolver = started({at(port)});
  auto addresses = answer_to(of(*resolver, "mail.test", Family::any)).addresses;
  ASSERT_EQ(addresses.size(), kAddressesMax);
  EXPECT_EQ(std::count_if(addresses.begin(), addresses.end(), [](const auto& a) { return a.is_v4(); }), 32);
}

TEST(Resolver, a_thousand_waiters_ask_once) {
  uint16_t port = free_port();
  Dnsmasq server(port, {"--host-record=mail.test,192.0.2.1,2001:db8::1"});
  auto resolver = started({at(port)});
  Answers answers;
  server.pause();
  for (int i = 0; i < 1000; ++i) resolver->resolve("mail.test", Family::v6, answers.one());
  EXPECT_EQ(answers.count(), 0u);
  server.resume();
  auto all = answers.wait_for(1000);
  ASSERT_EQ(all.size(), 1000u);
  for (const auto& a : all) EXPECT_EQ(text(a), "2001:db8::1");
  EXPECT_EQ(server.queries("mail.test"), 1u);
}

TEST(Resolver, serves_many_threads_and_names) {
  uint16_t port = free_port();
  Dnsmasq server(port, {"--address=/many.test/192.0.2.9"});
  auto resolver = started({at(port)});
  Answers answers;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 100; ++i) {
        resolver->resolve("n" + std::to_string(i) + ".many.test", Family::v4, answers.one());
      }
    });
  }
  for (auto& t : threads) t.join();
  auto all = answers.wait_for(400);
  ASSERT_EQ(all.size(), 400u);
  for (const auto& a : all) EXPECT_EQ(text(a), "192.0.2.9");
}

TEST(Resolver, may_be_asked_again_from_an_answer) {
  uint16_t port = free_port();
  Dnsmasq server(port, {"--host-record=a.test,192.0.2.1", "--host-record=b.test,192.0.2.2"});
  auto resolver = started({at(port)});
  Answers answers;
  resolver->resolve("a.test", Family::v4,
                    [&](const Answer&) { resolver->resolve("b.test", Family::v4, answers.one()); });
  auto all = answers.wait_for(1);
  ASSERT_EQ(all.size(), 1u);
  EXPECT_EQ(text(all[0]), "192.0.2.2");
}

TEST(Resolver, answers_what_is_outstanding_when_it_ends) {
  uint16_t port = free_port();
  Dnsmasq server(port, {});
  server.pause();
  Answers answers;
  {
    auto resolver = started({at(port)});
    for (auto name : {"a.test", "b.test", "c.test"}) {
      resolver->resolve(name, Family::any, answers.one());
      resolver->resolve(name, Family::any, answers.one());
    }
  }
  ASSERT_EQ(answers.count(), 6u);
  for (const auto& a : answers.wait_for(6)) EXPECT_EQ(text(a), "error: the resolver stopped");
}

TEST(Resolver, refuses_what_is_no_host_name_at_once) {
  auto resolver = started({at(free_port())});
  std::string label(63, 'a'), longest = label + "." + label + "." + label + "." + std::string(61, 'b');
  for (const std::string& bad :
       {std::string(), std::string("."), std::string("a..b"), std::string(".a"), std::string("a b.test"),
        std::string("a\0b", 3), std::string("m\xc3\xa4il.test"), std::string("a\nb"), std::string("a,b"),
        label + "c.test", longest + "b", std::string(1 << 20, 'a'), std::string("2001:db8::1")}) {
    EXPECT_EQ(cached(*resolver, bad), "error: not a host name") << bad.substr(0, 300);
  }
  for (const std::string& good :
       {longest, longest + ".", std::string("_smtp.a-b.test"), std::string("mail.test.")}) {
    EXPECT_NE(ask(*resolver, good), "error: not a host name") << good;
  }
}

// ---- configure()

TEST(Configure, the_same_again_keeps_the_cache) {
  uint16_t port = free_port();
  Dnsmasq server(port, {"--host-record=mail.test,192.0.2.1,300"});
  auto resolver = started({at(port)});
  EXPECT_EQ(ask(*resolver, "mail.test", Family::v4), "192.0.2.1");
  Options same;
  same.servers = {at(port)};
  resolver->configure(same);
  EXPECT_EQ(cached(*resolver, "mail.test", Family::v4), "192.0.2.1");
  EXPECT_EQ(server.queries("mail.test"), 1u);
}

TEST(Configure, new_servers_answer_the_next_question) {
  uint16_t former_port = free_port(), port = free_port();
  Dnsmasq former(former_port, {"--host-record=mail.test,192.0.2.1,300"});
  Dnsmasq server(port, {"--host-record=mail.test,192.0.2.2,300"});
  auto resolver = started({at(former_port)});
  EXPECT_EQ(ask(*resolver, "mail.test"), "192.0.2.1");
  Options options;
  options.servers = {at(port)};
  resolver->configure(options);
  EXPECT_EQ(ask(*resolver, "mail.test"), "192.0.2.2");
}

TEST(Configure, new_servers_that_are_down_do_not_take_the_old_answer_away) {
  uint16_t port = free_port();
  Dnsmasq server(port, {"--host-record=mail.test,192.0.2.1,300"});
  auto resolver = started({at(port)});
  EXPECT_EQ(ask(*resolver, "mail.test"), "192.0.2.1");
  Options options;
  options.servers = {at(free_port())};
  resolver->configure(options);
  EXPECT_EQ(ask(*resolver, "mail.test"), "stale 192.0.2.1");
}

TEST(Configure, what_is_in_flight_is_asked_of_the_new_servers) {
  uint16_t former_port = free_port(), port = free_port();
  std::atomic<int> heard = 0;
  FaultyServer former(former_port, [&](FaultyServer::Packet* packet) {
    return heard++ > 0 && FaultyServer::answer(packet, 60, 1);  // the second try, 1.5 s later
  });
  Dnsmasq server(port, {"--host-record=mail.test,192.0.2.2,60"});
  auto resolver = started({at(former_port)});
  Answers answers;
  resolver->resolve("mail.test", Family::v4, answers.one());
  while (heard == 0) a_moment();
  Options options;
  options.servers = {at(port)};
  resolver->configure(options);
  auto all = answers.wait_for(1);
  ASSERT_EQ(all.size(), 1u);
  EXPECT_EQ(text(all[0]), "192.0.2.2");
  while (heard == 1) a_moment();
  ask(*resolver, "after.that.test.");  // and the resolver has read what the former server said
  EXPECT_EQ(cached(*resolver, "mail.test", Family::v4), "192.0.2.2");
}

// A thread with a loopback and an /etc of its own. What it starts is in there too.
class PrivateEtc : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root: mounts an /etc of its own";
  }
  static void in_private_etc(const std::function<void()>& body) {
    std::thread([&] {
      ASSERT_EQ(::unshare(CLONE_NEWNS | CLONE_NEWNET), 0);
      ASSERT_EQ(::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
      ASSERT_EQ(::mount("tmpfs", "/etc", "tmpfs", 0, nullptr), 0);
      write("passwd", "root:x:0:0::/:/bin/sh\n");
      write("group", "root:x:0:\n");
      Fd any(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
      ifreq lo{};
      std::snprintf(lo.ifr_name, sizeof lo.ifr_name, "lo");
      lo.ifr_flags = IFF_UP;
      ASSERT_EQ(::ioctl(any.get(), SIOCSIFFLAGS, &lo), 0);
      body();
    }).join();
  }
  static void write(const std::string& name, const std::string& content) {
    std::ofstream(("/etc/" + name + ".new").c_str()) << content;
    ASSERT_EQ(::rename(("/etc/" + name + ".new").c_str(), ("/etc/" + name).c_str()), 0);
  }
};

TEST_F(PrivateEtc, the_hosts_file_comes_first) {
  in_private_etc([] {
    write("hosts", "192.0.2.7 mail.test alias\n2001:db8::7 mail.test\n");
    write("resolv.conf", "nameserver 127.0.0.1\n");
    Dnsmasq server(53, {"--host-record=mail.test,192.0.2.1", "--host-record=other.test,192.0.2.2"});
    auto resolver = started(Options{});
    EXPECT_EQ(ask(*resolver, "mail.test"), "2001:db8::7 192.0.2.7");
    EXPECT_EQ(ask(*resolver, "alias", Family::v4), "192.0.2.7");
    EXPECT_EQ(ask(*resolver, "other.test"), "192.0.2.2");
    EXPECT_EQ(server.queries("mail.test"), 0u);
  });
}

TEST_F(PrivateEtc, the_search_list_is_for_names_without_a_trailing_dot) {
  in_private_etc([] {
    write("resolv.conf", "nameserver 127.0.0.1\nsearch lan.test\n");
    Dnsmasq server(53, {"--host-record=mailbox.lan.test,192.0.2.1", "--local=/#/"});
    auto resolver = started(Options{});
    EXPECT_EQ(ask(*resolver, "mailbox"), "192.0.2.1");
    EXPECT_EQ(ask(*resolver, "mailbox."), "error: no such name");
  });
}

TEST_F(PrivateEtc, a_new_resolv_conf_is_followed) {
  in_private_etc([] {
    auto resolver = started(Options{});
    EXPECT_EQ(ask(*resolver, "mail.test."), "error: no DNS server could be reached, or none would answer");
    Dnsmasq server(53, {"--host-record=mail.test,192.0.2.1", "--host-record=later.test,192.0.2.2"},
                   "127.0.0.53");
    write("resolv.conf", "nameserver 127.0.0.53\n");
    EXPECT_EQ(ask(*resolver, "later.test"), "192.0.2.2");
  });
}

TEST_F(PrivateEtc, resolv_conf_counts_once_no_servers_are_configured) {
  in_private_etc([] {
    write("resolv.conf", "nameserver 127.0.0.1\n");
    Dnsmasq system(53, {"--host-record=mail.test,192.0.2.1"});
    uint16_t port = free_port();
    Dnsmasq own(port, {"--host-record=mail.test,192.0.2.2"});
    auto resolver = started({at(port)});
    EXPECT_EQ(ask(*resolver, "mail.test"), "192.0.2.2");
    resolver->configure(Options{});
    EXPECT_EQ(ask(*resolver, "mail.test"), "192.0.2.1");
  });
}

TEST(Resolver, one_silent_family_does_not_hide_the_other) {
  uint16_t port = free_port();
  FaultyServer server(port, [](std::vector<uint8_t>* packet) {
    if (packet->at(packet->size() - 3) != 1) return false;  // QTYPE is not A
    return FaultyServer::answer(packet, 60);
  });
  auto resolver = started({at(port)});
  EXPECT_EQ(ask(*resolver, "mail.test."), "192.0.2.1");
}

TEST_F(PrivateEtc, a_long_search_list_does_not_prolong_the_wait) {
  in_private_etc([] {
    write("resolv.conf", "nameserver 127.0.0.1\nsearch a.test b.test c.test d.test e.test\n");
    std::vector<uint8_t> last;
    FaultyServer server(53, [&](std::vector<uint8_t>* packet) {
      // Only a question heard a second time is answered: each name costs the first wait of c-ares, 1.5 s.
      if (std::exchange(last, *packet) != *packet) return false;
      return FaultyServer::fail(packet, kNxdomain);
    });
    auto resolver = started(Options{});
    auto before = Clock::now();
    EXPECT_EQ(ask(*resolver, "mailbox", Family::v4), "error: timeout");
    EXPECT_LE(Clock::now() - before, kAnswerMax + 500ms);
  });
}

}  // namespace
}  // namespace penstock::dns
