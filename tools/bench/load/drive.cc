// SPDX-License-Identifier: Apache-2.0
#include "drive.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <system_error>
#include <thread>
#include <vector>

#include "loop.h"
#include "short.h"

namespace penstock::bench {
namespace {

using Loops = std::vector<std::unique_ptr<Loop>>;

void say(const char* word) {
  fmt::print("{}\n", word);
  std::fflush(stdout);
}

// Throws std::system_error.
void check(bool good, const char* what) {
  if (!good) throw std::system_error(errno, std::system_category(), what);
}

Fd open_flow(const DriveOptions& options, const Request& request) {
  sockaddr_storage address{};
  const socklen_t length = options.to.to_sockaddr(&address);
  Fd socket(::socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  check(socket.valid(), "socket");
  check(connect(socket.get(), reinterpret_cast<sockaddr*>(&address), length) == 0, "connect");
  check(send(socket.get(), &request, sizeof request, MSG_NOSIGNAL) == sizeof request, "send");
  if (options.load == "idle") {  // open from end to end: one byte there and back
    char byte = 0;
    check(send(socket.get(), &byte, 1, MSG_NOSIGNAL) == 1, "send");
    check(recv(socket.get(), &byte, 1, 0) == 1, "recv: the echo of an idle flow");
  }
  set_options(socket.get());
  return socket;
}

struct Roles {
  Role client, server;
};

Roles roles_of(const DriveOptions& o) {
  if (o.load == "pingpong") return {Role::ping, Role::echo};
  if (o.load == "idle") return {Role::sink, Role::echo};
  const Role sender = o.load == "paced" ? Role::paced : Role::source;
  const Role reader = o.load == "slow" ? Role::slow : Role::sink;
  return o.down ? Roles{reader, sender} : Roles{sender, reader};
}

void open_flows(const DriveOptions& options, Loops& loops) {
  const Roles roles = roles_of(options);
  const uint64_t rate = options.rate / options.flows;
  const Request request{.role = roles.server, .size = options.size, .rate = rate};
  for (unsigned i = 0; i < options.flows; ++i)
    (new Flow(*loops[i % loops.size()], open_flow(options, request), roles.client, options.size, rate))
        ->watch();
}

uint64_t sum(const Loops& loops, std::atomic<uint64_t> Loop::*counter) {
  uint64_t total = 0;
  for (auto& loop : loops) total += (*loop.*counter).load(std::memory_order_relaxed);
  return total;
}

void set_measuring(const Loops& loops, bool on) {
  for (auto& loop : loops) loop->measuring = on;
}

// The p-th part of them are not above it.
double quantile_us(std::vector<uint32_t>& sorted_ns, double p) {
  if (sorted_ns.empty()) return 0;
  return sorted_ns[static_cast<size_t>(p * static_cast<double>(sorted_ns.size() - 1))] / 1e3;
}

}  // namespace

int drive(const DriveOptions& options) {
  Loops loops;
  for (unsigned i = 0; i < options.threads; ++i) loops.push_back(std::make_unique<Loop>());
  if (options.load == "connections") {
    const std::string question =
        options.sni.empty() ? std::string(kQuestionBytes, '\0') : client_hello(options.sni);
    for (unsigned i = 0; i < options.flows; ++i)
      (new Asker(*loops[i % loops.size()], options.to, question))->connect();
  } else {
    open_flows(options, loops);
  }
  std::vector<std::jthread> threads;
  for (auto& loop : loops) threads.emplace_back([&loop] { loop->run(); });

  say("open");
  std::this_thread::sleep_for(std::chrono::milliseconds(options.warm_up_ms));
  const uint64_t began_bytes = sum(loops, &Loop::moved_bytes), began_ns = now_ns();
  set_measuring(loops, true);
  say("begin");
  std::this_thread::sleep_for(std::chrono::milliseconds(options.measure_ms));
  set_measuring(loops, false);
  const uint64_t bytes = sum(loops, &Loop::moved_bytes) - began_bytes;
  const double seconds = static_cast<double>(now_ns() - began_ns) / 1e9;
  say("end");
  for (auto& loop : loops) loop->stop();
  threads.clear();

  std::vector<uint32_t> latencies_ns;
  for (auto& loop : loops)
    latencies_ns.insert(latencies_ns.end(), loop->latencies_ns.begin(), loop->latencies_ns.end());
  std::sort(latencies_ns.begin(), latencies_ns.end());
  const nlohmann::json result = {{"seconds", seconds},
                                 {"bytes", bytes},
                                 {"rounds", latencies_ns.size()},
                                 {"p50_us", quantile_us(latencies_ns, 0.5)},
                                 {"p99_us", quantile_us(latencies_ns, 0.99)},
                                 {"p999_us", quantile_us(latencies_ns, 0.999)},
                                 {"ended", sum(loops, &Loop::ended)}};
  fmt::print("{}\n", result.dump());
  return 0;
}

}  // namespace penstock::bench
