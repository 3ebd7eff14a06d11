// SPDX-License-Identifier: Apache-2.0
// tests/dns/ask.h: a resolver, questions to it, and answers as text; a name server that can misbehave.
#pragma once
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "dns/resolver.h"

namespace penstock::dns::testing {

Endpoint at(uint16_t port);  // on 127.0.0.1
void bind_to(const Fd& socket, uint16_t port);

std::unique_ptr<Resolver> started(const Options& options);
std::unique_ptr<Resolver> started(const std::vector<Endpoint>& servers);

// Collects answers on whatever thread they come; outlives the resolver in every test.
class Answers {
 public:
  Resolver::Done one();
  // The `count` first ones; fewer when they do not come within 10 s.
  std::vector<Answer> wait_for(size_t count);
  size_t count();

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::vector<Answer> all_;
};

// "2001:db8::1 192.0.2.1", "stale 192.0.2.1", "10 imap.test:143" (priority, target, port), or "error: ...".
std::string text(const Answer& answer);

// A question and its answer. "no answer" after 10 s.
using Question = std::function<void(Resolver::Done)>;
Answer answer_to(const Question& question);
Question of(Resolver& resolver, std::string_view name, Family family = Family::v4);
std::string ask(Resolver& resolver, std::string_view name, Family family = Family::any);
std::string ask_srv(Resolver& resolver, std::string_view name);
std::string renew(Resolver& resolver, std::string_view name);  // of Family::v4

// What the cache says; nothing when it would have to ask (and then it has asked, and the answer is in).
std::optional<std::string> cached(Resolver& resolver, std::string_view name, Family family = Family::any);

void a_moment();  // between two looks at what has no event: 20 ms
// Asks every 20 ms until the answer is `wanted`, at most 10 s; returns the last one.
std::string ask_until(Resolver& resolver, std::string_view name, std::string_view wanted);

// A server with faults. `reply` turns a question into what is sent back, or returns false: nothing is.
class FaultyServer {
 public:
  using Packet = std::vector<uint8_t>;
  using Reply = std::function<bool(Packet* packet)>;

  FaultyServer(uint16_t port, Reply reply);
  ~FaultyServer();

  static bool fail(Packet* packet, uint8_t rcode);                           // RFC 1035 4.1.1
  static bool answer(Packet* packet, uint8_t ttl_s, uint8_t last_byte = 1);  // 192.0.2.last_byte

 private:
  void run();

  Fd socket_, stop_;
  Reply reply_;
  std::thread thread_;
};

constexpr uint8_t kServfail = 2, kNxdomain = 3, kRefused = 5;

}  // namespace penstock::dns::testing
