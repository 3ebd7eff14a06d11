// SPDX-License-Identifier: Apache-2.0
// The resolver against dnsmasq. Tests of the system's own files run as root, in a network namespace and with
// an /etc of their own.
#include "dns/resolver.h"

#include <gtest/gtest.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <unistd.h>

#include <condition_variable>
#include <fstream>
#include <mutex>
#include <optional>
#include <thread>

#include "base/fd.h"
#include "dnsmasq.h"

namespace penstock::dns {
namespace {

using namespace std::chrono_literals;
using testing::Dnsmasq;
using testing::free_port;
using Clock = std::chrono::steady_clock;

std::string at(uint16_t port) {
  return "127.0.0.1:" + std::to_string(port);
}

void bind_to(const Fd& socket, uint16_t port) {
  sockaddr_storage address;
  socklen_t length = Endpoint{IpAddress::v4(INADDR_LOOPBACK), port}.to_sockaddr(&address);
  ASSERT_EQ(::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), length), 0);
}

std::unique_ptr<Resolver> started(const std::vector<std::string>& servers) {
  auto resolver = Resolver::start(servers);
  if (!resolver) {
    ADD_FAILURE() << resolver.error().message;
    std::abort();
  }
  return std::move(resolver).value();
}

// Collects answers on whatever thread they come; outlives the resolver in every test.
class Answers {
 public:
  Resolver::Done one() {
    return [this](const Answer& a) {
      std::lock_guard lock(mutex_);
      all_.push_back(a);
      arrived_.notify_all();
    };
  }
  // The `count` first ones; fewer when they do not come within 10 s.
  std::vector<Answer> wait_for(size_t count) {
    std::unique_lock lock(mutex_);
    arrived_.wait_for(lock, 10s, [&] { return all_.size() >= count; });
    return all_;
  }
  size_t count() {
    std::lock_guard lock(mutex_);
    return all_.size();
  }

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::vector<Answer> all_;
};

// "2001:db8::1 192.0.2.1", or "error: ...".
std::string text(const std::vector<Answer>& answers) {
  if (answers.size() != 1) return std::to_string(answers.size()) + " answers";
  if (answers[0].addresses.empty()) return "error: " + answers[0].error;
  std::string line;
  for (const auto& a : answers[0].addresses) line += (line.empty() ? "" : " ") + a.text();
  return line;
}

std::string ask(Resolver& resolver, std::string_view name, Family family = Family::any) {
  Answers answers;
  resolver.resolve(name, family, answers.one());
  return text(answers.wait_for(1));
}

// What the cache says; nothing when it would have to ask (and then it has asked, and the answer is in).
std::optional<std::string> cached(Resolver& resolver, std::string_view name, Family family = Family::any) {
  Answers answers;
  resolver.resolve(name, family, answers.one());
  bool was_cached = answers.count() == 1;
  auto line = text(answers.wait_for(1));
  return was_cached ? std::optional(line) : std::nullopt;
}

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
  EXPECT_EQ(ask(*resolver, "mail.test."), "error: no such name");
  EXPECT_EQ(cached(*resolver, "mail.test."), "error: no such name");
  server.reset();
  server.emplace(port, std::vector<std::string>{"--host-record=mail.test,192.0.2.1"});
  auto asked = Clock::now();
  while (ask(*resolver, "mail.test.") != "192.0.2.1") {
    server->wait_for_log(20);
    ASSERT_LE(Clock::now() - asked, 5s);
  }
}

TEST(Resolver, asks_again_when_the_ttl_is_over) {
  uint16_t port = free_port();
  std::optional<Dnsmasq> server;
  server.emplace(port, std::vector<std::string>{"--host-record=mail.test,192.0.2.1,1"});
  auto resolver = started({at(port)});
  auto asked = Clock::now();
  EXPECT_EQ(ask(*resolver, "mail.test"), "192.0.2.1");
  server.reset();
  server.emplace(port, std::vector<std::string>{"--host-record=mail.test,192.0.2.2,1"});
  while (ask(*resolver, "mail.test") != "192.0.2.2") {
    server->wait_for_log(20);
    ASSERT_LE(Clock::now() - asked, 5s);
  }
  EXPECT_GE(Clock::now() - asked, 1s);
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
  for (const auto& a : all) EXPECT_EQ(text({a}), "2001:db8::1");
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
  for (const auto& a : all) EXPECT_EQ(text({a}), "192.0.2.9");
}

TEST(Resolver, may_be_asked_again_from_an_answer) {
  uint16_t port = free_port();
  Dnsmasq server(port, {"--host-record=a.test,192.0.2.1", "--host-record=b.test,192.0.2.2"});
  auto resolver = started({at(port)});
  Answers answers;
  resolver->resolve("a.test", Family::v4,
                    [&](const Answer&) { resolver->resolve("b.test", Family::v4, answers.one()); });
  EXPECT_EQ(text(answers.wait_for(1)), "192.0.2.2");
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
  for (const auto& a : answers.wait_for(6)) EXPECT_EQ(text({a}), "error: the resolver stopped");
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

TEST(Resolver, refuses_a_server_that_is_no_address) {
  for (const char* bad : {"", "dns.example.net", "127.0.0.1:99999", "127.0.0.1:0",
                          "127.0.0.1:", "127.0.0.1:x", "[::1", "[::1]x", "127.0.0.1,127.0.0.2"}) {
    auto resolver = Resolver::start({bad});
    EXPECT_FALSE(resolver.ok()) << bad;
  }
  for (const char* good : {"192.0.2.53", "192.0.2.53:5353", "2001:db8::53", "[2001:db8::53]:5353"}) {
    EXPECT_TRUE(Resolver::start({good}).ok()) << good;
  }
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
    auto resolver = started({});
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
    auto resolver = started({});
    EXPECT_EQ(ask(*resolver, "mailbox"), "192.0.2.1");
    EXPECT_EQ(ask(*resolver, "mailbox."), "error: no such name");
  });
}

TEST_F(PrivateEtc, a_new_resolv_conf_is_followed) {
  in_private_etc([] {
    auto resolver = started({});
    EXPECT_EQ(ask(*resolver, "mail.test."), "error: no DNS server could be reached, or none would answer");
    Dnsmasq server(53, {"--host-record=mail.test,192.0.2.1", "--host-record=later.test,192.0.2.2"},
                   "127.0.0.53");
    write("resolv.conf", "nameserver 127.0.0.53\n");
    EXPECT_EQ(ask(*resolver, "later.test"), "192.0.2.2");
  });
}

// A server with faults. `reply` turns a question into what is sent back, or returns false: nothing is.
class FaultyServer {
 public:
  using Reply = std::function<bool(std::vector<uint8_t>* packet)>;

  FaultyServer(uint16_t port, Reply reply)
      : socket_(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)),
        stop_(::eventfd(0, EFD_CLOEXEC)),
        reply_(std::move(reply)) {
    bind_to(socket_, port);
    thread_ = std::thread([this] { run(); });
  }
  ~FaultyServer() {
    ::eventfd_write(stop_.get(), 1);
    thread_.join();
  }

 private:
  void run() {
    for (;;) {
      pollfd polled[] = {{socket_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
      ::poll(polled, 2, -1);
      if (polled[1].revents != 0) return;
      std::vector<uint8_t> packet(512);
      sockaddr_storage from;
      socklen_t length = sizeof from;
      auto* address = reinterpret_cast<sockaddr*>(&from);
      ssize_t n = ::recvfrom(socket_.get(), packet.data(), packet.size(), 0, address, &length);
      if (n < 12) continue;
      packet.resize(static_cast<size_t>(n));
      if (reply_(&packet)) ::sendto(socket_.get(), packet.data(), packet.size(), 0, address, length);
    }
  }

  Fd socket_, stop_;
  Reply reply_;
  std::thread thread_;
};

TEST(Resolver, one_silent_family_does_not_hide_the_other) {
  uint16_t port = free_port();
  FaultyServer server(port, [](std::vector<uint8_t>* packet) {
    if (packet->at(packet->size() - 3) != 1) return false;  // QTYPE is not A
    (*packet)[2] = 0x81, (*packet)[3] = 0x80;               // a response; recursion was desired, is available
    (*packet)[7] = 1;                                       // ANCOUNT
    const uint8_t answer[] = {0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1};
    packet->insert(packet->end(), std::begin(answer), std::end(answer));
    return true;
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
      (*packet)[2] = 0x81, (*packet)[3] = 0x83;  // NXDOMAIN
      return true;
    });
    auto resolver = started({});
    auto before = Clock::now();
    EXPECT_EQ(ask(*resolver, "mailbox", Family::v4), "error: timeout");
    EXPECT_LE(Clock::now() - before, kAnswerMax + 500ms);
  });
}

}  // namespace
}  // namespace penstock::dns
