// SPDX-License-Identifier: Apache-2.0
#include "ask.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <utility>

namespace penstock::dns::testing {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

Endpoint at(uint16_t port) {
  return {IpAddress::v4(INADDR_LOOPBACK), port};
}

void bind_to(const Fd& socket, uint16_t port) {
  sockaddr_storage address;
  socklen_t length = at(port).to_sockaddr(&address);
  ASSERT_EQ(::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), length), 0);
}

std::unique_ptr<Resolver> started(const Options& options) {
  auto resolver = Resolver::start(options);
  if (!resolver) {
    ADD_FAILURE() << resolver.error().message;
    std::abort();
  }
  return std::move(resolver).value();
}

std::unique_ptr<Resolver> started(const std::vector<Endpoint>& servers) {
  Options options;
  options.servers = servers;
  return started(options);
}

Resolver::Done Answers::one() {
  return [this](const Answer& a) {
    std::lock_guard lock(mutex_);
    all_.push_back(a);
    arrived_.notify_all();
  };
}

std::vector<Answer> Answers::wait_for(size_t count) {
  std::unique_lock lock(mutex_);
  arrived_.wait_for(lock, 10s, [&] { return all_.size() >= count; });
  return all_;
}

size_t Answers::count() {
  std::lock_guard lock(mutex_);
  return all_.size();
}

std::string text(const Answer& answer) {
  if (!answer.found()) return "error: " + answer.error;
  std::string line = answer.stale ? "stale" : "";
  for (const auto& a : answer.addresses) line += (line.empty() ? "" : " ") + a.text();
  for (const auto& t : answer.targets) {
    line +=
        (line.empty() ? "" : " ") + std::to_string(t.priority) + " " + t.host + ":" + std::to_string(t.port);
  }
  return line;
}

Answer answer_to(const Question& question) {
  Answers answers;
  question(answers.one());
  auto all = answers.wait_for(1);
  if (all.size() == 1) return all[0];
  // The resolver still holds a callback into `answers`.
  ADD_FAILURE() << all.size() << " answers";
  std::abort();
}

Question of(Resolver& resolver, std::string_view name, Family family) {
  return [&resolver, name = std::string(name), family](Resolver::Done done) {
    resolver.resolve(name, family, std::move(done));
  };
}

std::string ask(Resolver& resolver, std::string_view name, Family family) {
  return text(answer_to(of(resolver, name, family)));
}

std::string ask_srv(Resolver& resolver, std::string_view name) {
  return text(answer_to([&](Resolver::Done done) { resolver.resolve_srv(name, std::move(done)); }));
}

std::string renew(Resolver& resolver, std::string_view name) {
  return text(answer_to([&](Resolver::Done done) { resolver.renew(name, Family::v4, std::move(done)); }));
}

std::optional<std::string> cached(Resolver& resolver, std::string_view name, Family family) {
  bool was_cached = false;
  auto line = text(answer_to([&](const Resolver::Done& done) {
    auto caller = std::this_thread::get_id();
    resolver.resolve(name, family, [done, caller, &was_cached](const Answer& a) {
      was_cached = std::this_thread::get_id() == caller;
      done(a);
    });
  }));
  return was_cached ? std::optional(line) : std::nullopt;
}

void a_moment() {
  ::poll(nullptr, 0, 20);
}

std::string ask_until(Resolver& resolver, std::string_view name, std::string_view wanted) {
  auto started_at = Clock::now();
  for (;;) {
    auto said = ask(resolver, name, Family::v4);
    if (said == wanted || Clock::now() - started_at > 10s) return said;
    a_moment();
  }
}

FaultyServer::FaultyServer(uint16_t port, Reply reply)
    : socket_(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)),
      stop_(::eventfd(0, EFD_CLOEXEC)),
      reply_(std::move(reply)) {
  bind_to(socket_, port);
  thread_ = std::thread([this] { run(); });
}

FaultyServer::~FaultyServer() {
  ::eventfd_write(stop_.get(), 1);
  thread_.join();
}

void FaultyServer::run() {
  for (;;) {
    pollfd polled[] = {{socket_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
    ::poll(polled, 2, -1);
    if (polled[1].revents != 0) return;
    Packet packet(512);
    sockaddr_storage from;
    socklen_t length = sizeof from;
    auto* address = reinterpret_cast<sockaddr*>(&from);
    ssize_t n = ::recvfrom(socket_.get(), packet.data(), packet.size(), 0, address, &length);
    if (n < 12) continue;
    packet.resize(static_cast<size_t>(n));
    if (reply_(&packet)) ::sendto(socket_.get(), packet.data(), packet.size(), 0, address, length);
  }
}

bool FaultyServer::fail(Packet* packet, uint8_t rcode) {
  (*packet)[2] = 0x81;                                // a response; recursion was desired
  (*packet)[3] = static_cast<uint8_t>(0x80 | rcode);  // and is available
  return true;
}

bool FaultyServer::answer(Packet* packet, uint8_t ttl_s, uint8_t last_byte) {
  fail(packet, 0);
  (*packet)[7] = 1;  // ANCOUNT
  const uint8_t a[] = {0xc0, 12, 0, 1, 0, 1, 0, 0, 0, ttl_s, 0, 4, 192, 0, 2, last_byte};
  packet->insert(packet->end(), std::begin(a), std::end(a));
  return true;
}

}  // namespace penstock::dns::testing
