// SPDX-License-Identifier: Apache-2.0
// lab-series: both ends of a few flows through an edge on this loopback, every byte checked by its offset,
// and when they arrive. A record is three 64-bit numbers, times are ns of CLOCK_MONOTONIC:
//   stream: the clients send at a steady pace; (arrived, flow, bytes) of each recv(2)
//   ping: one client after the other sends 64 bytes and gets them back; (sent, flow, ns until they were back)
// Says "open" once it begins. SIGTERM: FIN both ways, then a line of JSON.
#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <random>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "base/fd.h"

namespace penstock::lab {
namespace {

constexpr size_t kPeriodBytes = 65'521;  // prime: no loss or doubling of a round number of bytes looks right
constexpr size_t kChunkBytes = 256 << 10;
constexpr uint64_t kPingBytes = 64;
constexpr uint64_t kSecondNs = 1'000'000'000, kPortionNs = 1'000'000;
constexpr int kEndMs = 10'000;  // the most that nothing may arrive once the end is asked for

struct Options {
  uint16_t listen = 0, to = 0;
  unsigned flows = 8;
  uint64_t rate = 0;  // of all together, a second: bytes, pings
  std::string records;
};

struct Flow {
  unsigned number;
  Fd client, server;
  uint64_t sent = 0, received = 0;    // by the client, by whoever checks
  std::atomic<uint64_t> sent_ns = 0;  // ping: of the one under way, or 0
  bool wrong = false, client_fin = false, server_fin = false;
};

using Flows = std::vector<Flow>;

std::atomic<bool> g_ending = false;

[[noreturn]] void fail(const char* what) {
  throw std::system_error(errno, std::generic_category(), what);
}

uint64_t now_ns() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<uint64_t>(t.tv_sec) * kSecondNs + static_cast<uint64_t>(t.tv_nsec);
}

// What stands at this offset of a flow's stream; kChunkBytes of it.
const char* pattern(const Flow& flow, uint64_t offset) {
  static const std::vector<char> bytes = [] {
    std::vector<char> made(kPeriodBytes + kChunkBytes);
    std::mt19937 random(2026);
    for (size_t i = 0; i < made.size(); i++)
      made[i] = i < kPeriodBytes ? static_cast<char>(random()) : made[i - kPeriodBytes];
    return made;
  }();
  return bytes.data() + (flow.number * 7919 + offset) % kPeriodBytes;
}

sockaddr_in loopback(uint16_t port) {
  return {
      .sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}, .sin_zero = {}};
}

void set_options(int fd) {
  const int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

Flows open_flows(const Options& options) {
  const sockaddr_in here = loopback(options.listen), edge = loopback(options.to);
  const Fd listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int one = 1;
  setsockopt(listener.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(listener.get(), reinterpret_cast<const sockaddr*>(&here), sizeof here) ||
      listen(listener.get(), 64))
    fail("listen");
  Flows flows(options.flows);
  for (Flow& flow : flows) {
    flow.number = static_cast<unsigned>(&flow - flows.data());
    flow.client.reset(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (connect(flow.client.get(), reinterpret_cast<const sockaddr*>(&edge), sizeof edge)) fail("connect");
    flow.server.reset(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!flow.server.valid()) fail("accept");
    set_options(flow.client.get());
    set_options(flow.server.get());
  }
  return flows;
}

class Records {
 public:
  explicit Records(const std::string& path) : file_(fopen(path.c_str(), "wbe")) {
    if (!file_) fail(path.c_str());
  }
  ~Records() { fclose(file_); }
  Records(const Records&) = delete;
  Records& operator=(const Records&) = delete;
  void add(uint64_t when_ns, const Flow& flow, uint64_t what) {
    const std::array<uint64_t, 3> record{when_ns, flow.number, what};
    fwrite(record.data(), sizeof record, 1, file_);
  }

 private:
  FILE* file_;
};

// FIN, or the flow was cut off.
bool is_over(ssize_t n) {
  return n == 0 || (n < 0 && errno != EAGAIN);
}

// Serves those ends that have something to read, until on_ready(flow) has said of each that it is over.
template <typename F>
void read_all(Flows& flows, Fd Flow::*end, F on_ready) {
  const Fd epoll(epoll_create1(EPOLL_CLOEXEC));
  for (Flow& flow : flows) {
    epoll_event event{.events = EPOLLIN, .data = {.ptr = &flow}};
    if (epoll_ctl(epoll.get(), EPOLL_CTL_ADD, (flow.*end).get(), &event)) fail("epoll_ctl");
  }
  for (size_t left = flows.size(); left > 0;) {
    std::array<epoll_event, 64> ready;
    const int n = epoll_wait(epoll.get(), ready.data(), ready.size(), kEndMs);
    if (n == 0 && g_ending) return;
    for (int i = 0; i < n; i++) {
      Flow& flow = *static_cast<Flow*>(ready[static_cast<size_t>(i)].data.ptr);
      if (on_ready(flow)) continue;
      epoll_ctl(epoll.get(), EPOLL_CTL_DEL, (flow.*end).get(), nullptr);
      left--;
    }
  }
}

void echo(Flows& flows) {
  read_all(flows, &Flow::server, [](Flow& flow) {
    std::array<char, kPingBytes> bytes;
    const ssize_t n = recv(flow.server.get(), bytes.data(), bytes.size(), 0);
    if (n > 0) send(flow.server.get(), bytes.data(), static_cast<size_t>(n), MSG_NOSIGNAL);
    if (!is_over(n)) return true;
    flow.server_fin = n == 0;
    shutdown(flow.server.get(), SHUT_WR);
    return false;
  });
}

bool is_right(Flow& flow, const char* bytes, ssize_t n) {
  flow.wrong |= memcmp(bytes, pattern(flow, flow.received), static_cast<size_t>(n)) != 0;
  flow.received += static_cast<uint64_t>(n);
  return !flow.wrong;
}

void read_pings(Flows& flows, Records& records) {
  read_all(flows, &Flow::client, [&](Flow& flow) {
    std::array<char, kPingBytes> bytes;
    const ssize_t n = recv(flow.client.get(), bytes.data(), bytes.size(), 0);
    flow.client_fin = n == 0;
    if (n <= 0 || !is_right(flow, bytes.data(), n)) return !is_over(n) && !flow.wrong;
    if (flow.received % kPingBytes == 0) {
      records.add(flow.sent_ns, flow, now_ns() - flow.sent_ns);
      flow.sent_ns = 0;
    }
    return true;
  });
}

void read_stream(Flows& flows, Records& records) {
  std::vector<char> bytes(kChunkBytes);
  read_all(flows, &Flow::server, [&](Flow& flow) {
    const ssize_t n = recv(flow.server.get(), bytes.data(), bytes.size(), 0);
    if (n > 0) records.add(now_ns(), flow, static_cast<uint64_t>(n));
    flow.server_fin = n == 0;
    if (n > 0 ? is_right(flow, bytes.data(), n) : !is_over(n)) return true;
    shutdown(flow.server.get(), SHUT_WR);
    return false;
  });
}

// What does not fit is sent later: who was held up catches up.
void send_due(Flow& flow, uint64_t due) {
  while (flow.sent < due) {
    const ssize_t n = send(flow.client.get(), pattern(flow, flow.sent),
                           std::min(due - flow.sent, kChunkBytes), MSG_NOSIGNAL);
    if (n <= 0) return;
    flow.sent += static_cast<uint64_t>(n);
  }
}

void send_paced(Flows& flows, const Options& options, bool pings) {
  const uint64_t begun_ns = now_ns(), tick_ns = pings ? kSecondNs / options.rate : kPortionNs;
  for (uint64_t tick = 1; !g_ending; tick++) {
    const uint64_t at_ns = begun_ns + tick * tick_ns;
    const timespec at{static_cast<time_t>(at_ns / kSecondNs), static_cast<long>(at_ns % kSecondNs)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, nullptr);
    if (!pings) {
      for (Flow& flow : flows)
        send_due(flow, (at_ns - begun_ns) / 1000 * (options.rate / flows.size()) / 1'000'000);
    } else if (Flow& flow = flows[tick % flows.size()]; flow.sent_ns == 0) {
      flow.sent_ns = now_ns();
      send_due(flow, flow.sent + kPingBytes);
    }
  }
  for (Flow& flow : flows) shutdown(flow.client.get(), SHUT_WR);
}

void await_fins(Flows& flows) {
  read_all(flows, &Flow::client, [](Flow& flow) {
    char byte;
    const ssize_t n = recv(flow.client.get(), &byte, 1, 0);
    flow.client_fin = n == 0;
    flow.wrong |= n > 0;
    return n < 0 && errno == EAGAIN;
  });
}

int run(const Options& options, bool pings) {
  sigset_t ends;
  sigemptyset(&ends);
  sigaddset(&ends, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &ends, nullptr);
  Flows flows = open_flows(options);
  Records records(options.records);
  {
    std::vector<std::jthread> threads;
    threads.emplace_back([&] { send_paced(flows, options, pings); });
    threads.emplace_back([&] { pings ? read_pings(flows, records) : read_stream(flows, records); });
    if (pings) threads.emplace_back([&] { echo(flows); });
    fmt::print("open\n");
    fflush(stdout);
    int number = 0;
    sigwait(&ends, &number);
    g_ending = true;
  }
  if (!pings) await_fins(flows);
  uint64_t sent = 0, received = 0, wrong = 0, whole = 0;
  for (const Flow& flow : flows) {
    sent += flow.sent;
    received += flow.received;
    wrong += flow.wrong;
    whole += !flow.wrong && flow.sent == flow.received && flow.client_fin && flow.server_fin;
  }
  fmt::print(R"({{"flows":{},"whole":{},"wrong":{},"sent":{},"received":{}}})"
             "\n",
             flows.size(), whole, wrong, sent, received);
  return 0;
}

}  // namespace
}  // namespace penstock::lab

int main(int argc, char** argv) {
  CLI::App app{"Both ends of a few flows through an edge on loopback, and when each of their bytes arrived"};
  app.require_subcommand(1);
  penstock::lab::Options options;
  auto* stream = app.add_subcommand("stream", "bytes at a steady pace");
  auto* ping = app.add_subcommand("ping", "64 bytes there and back, at a steady pace");
  for (CLI::App* load : {stream, ping}) {
    load->add_option("--listen", options.listen, "PORT of the server's end")->required();
    load->add_option("--to", options.to, "PORT of the edge")->required();
    load->add_option("--flows", options.flows)->check(CLI::Range(1, 64));
    load->add_option("--rate", options.rate, "of all flows together: bytes/s, pings/s")
        ->required()
        ->check(CLI::PositiveNumber);
    load->add_option("--records", options.records, "FILE")->required();
  }
  CLI11_PARSE(app, argc, argv);
  try {
    return penstock::lab::run(options, ping->parsed());
  } catch (const std::system_error& e) {
    fmt::print(stderr, "lab-series: {}\n", e.what());
    return 1;
  }
}
