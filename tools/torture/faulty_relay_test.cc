// SPDX-License-Identifier: Apache-2.0
// Shows that the generator can fail: a relay of a few lines, right or with one planted defect, stands between
// its ends, and the defect must come out by its name.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "loop.h"

namespace penstock::torture {
namespace {

using namespace std::string_literals;

enum class Defect {
  none,
  drop,
  repeat,
  flip,
  truncate,
  rst_into_fin,
  fin_into_rst,
  fin_forgotten,
  rst_swallowed,
  surplus,
  wrong_client,
  wrong_destination,
  dial_twice,
  dial_in_vain,
  never_dial,
  absent,
  log_reason,
  log_bytes,
  log_nothing
};

constexpr uint64_t kSpoiltAt = 1000;  // of a direction from the client
constexpr size_t kSpoiltBytes = 10;

Endpoint local(uint16_t port) {
  return {IpAddress::v4(INADDR_LOOPBACK), port};
}

Endpoint name_of_socket(int fd, decltype(&getsockname) which) {
  sockaddr_storage address;
  socklen_t length = sizeof address;
  if (which(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) return {};
  return Endpoint::from_sockaddr(reinterpret_cast<sockaddr*>(&address), length).value();
}

Fd listener() {
  Fd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_storage address;
  const socklen_t length = local(0).to_sockaddr(&address);
  bind(fd.get(), reinterpret_cast<sockaddr*>(&address), length);
  listen(fd.get(), 512);
  return fd;
}

bool send_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n < 0) return false;
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return true;
}

bool is_closed(int fd) {
  tcp_info info{};
  socklen_t length = sizeof info;
  getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length);
  return info.tcpi_state == TCP_CLOSE;
}

// Two threads per connection, blocking calls: nothing to go wrong but what is planted.
class Relay {
 public:
  // Where `ledger` is not null it gets penstockd's line of each connection.
  Relay(Endpoint upstream, Defect defect, Ledger* ledger)
      : upstream_(upstream), defect_(defect), ledger_(ledger), listening_(listener()) {
    accepting_ = std::thread([this] { accept_all(); });
  }
  ~Relay() { stop(); }
  void stop() {
    shutdown(listening_.get(), SHUT_RDWR);
    if (accepting_.joinable()) accepting_.join();
    for (std::thread& t : pumps_) t.join();
    pumps_.clear();
  }
  Endpoint address() const { return name_of_socket(listening_.get(), getsockname); }

 private:
  struct Pair {
    Fd client, upstream;
    Endpoint peer;
    Relay* relay = nullptr;
    std::atomic<uint64_t> up = 0, down = 0;
    std::atomic<bool> broken = false, client_told_fin = false, upstream_told_fin = false;
    ~Pair() {
      relay->log(*this);
      if (broken) {
        const linger now{1, 0};
        for (int fd : {client.get(), upstream.get()}) setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
      }
    }
  };

  void accept_all() {
    sockaddr_storage address;
    socklen_t length = sizeof address;
    auto* peer = reinterpret_cast<sockaddr*>(&address);
    for (int fd; (fd = accept4(listening_.get(), peer, &length, SOCK_CLOEXEC)) >= 0;
         length = sizeof address) {
      const Endpoint from = Endpoint::from_sockaddr(peer, length).value();
      if (defect_ == Defect::never_dial) {
        close(fd);
        continue;
      }
      auto pair = std::make_shared<Pair>();
      pair->relay = this;
      pair->peer = from;
      pair->client.reset(fd);
      pair->upstream = dial(from, name_of_socket(fd, getsockname));
      if (defect_ == Defect::dial_twice) dial(from, name_of_socket(fd, getsockname));
      pumps_.emplace_back([this, pair] { pump(*pair, pair->client.get(), pair->upstream.get()); });
      pumps_.emplace_back([this, pair] { pump(*pair, pair->upstream.get(), pair->client.get()); });
    }
  }

  Fd dial(Endpoint from, Endpoint to) {
    Fd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_storage address;
    const socklen_t length = upstream_.to_sockaddr(&address);
    connect(fd.get(), reinterpret_cast<sockaddr*>(&address), length);
    if (defect_ == Defect::dial_in_vain) {
      const Fd second(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
      connect(second.get(), reinterpret_cast<sockaddr*>(&address), length);
    }
    if (defect_ == Defect::wrong_client) from.address = IpAddress::v4(INADDR_LOOPBACK);
    if (defect_ == Defect::wrong_destination) ++to.port;
    send_all(fd.get(), "PROXY TCP4 " + from.address.text() + " " + to.address.text() + " " +
                           std::to_string(from.port) + " " + std::to_string(to.port) + "\r\n");
    return fd;
  }

  void pump(Pair& pair, int from, int to) {
    const bool up = from == pair.client.get();
    const std::atomic<bool>& told_fin = up ? pair.client_told_fin : pair.upstream_told_fin;
    uint64_t moved = 0;
    char buffer[16 << 10];
    for (;;) {
      const ssize_t n = recv(from, buffer, sizeof buffer, 0);
      if (n == 0) {
        if (!is_closed(from) || told_fin || defect_ == Defect::rst_into_fin) break;
        return give_up(pair);  // not a FIN: the other pump's send() has taken the error of a RST
      }
      std::string bytes(buffer, n > 0 ? static_cast<size_t>(n) : 0);
      if (n > 0 && up && moved <= kSpoiltAt && moved + bytes.size() > kSpoiltAt + kSpoiltBytes) {
        if (defect_ == Defect::truncate) break;
        spoil(bytes, kSpoiltAt - moved);
      }
      moved += static_cast<uint64_t>(std::max<ssize_t>(n, 0));
      (up ? pair.up : pair.down) = moved;
      if (n < 0 && defect_ == Defect::rst_swallowed) return;
      if (n > 0 && send_all(to, bytes)) continue;
      if (defect_ == Defect::rst_into_fin) break;
      return give_up(pair);
    }
    if (defect_ == Defect::surplus && up) send_all(to, "x");
    if (defect_ == Defect::fin_into_rst && up) return give_up(pair);
    if (defect_ == Defect::fin_forgotten && up) return;
    (up ? pair.upstream_told_fin : pair.client_told_fin) = true;
    if (shutdown(to, SHUT_WR) != 0 && defect_ != Defect::rst_into_fin) give_up(pair);
  }

  void spoil(std::string& bytes, size_t at) const {
    if (defect_ == Defect::drop) bytes.erase(at, kSpoiltBytes);
    if (defect_ == Defect::repeat) bytes.insert(at, bytes.substr(at, kSpoiltBytes));
    if (defect_ == Defect::flip) bytes[at] = static_cast<char>(bytes[at] ^ 1);
  }

  // The last to leave closes both with a RST; this lets the other leave.
  static void give_up(Pair& pair) {
    pair.broken = true;
    for (int fd : {pair.client.get(), pair.upstream.get()}) shutdown(fd, SHUT_RD);
  }

  // As userspace/flow/close.cc; every stream is whole.
  void log(const Pair& pair) {
    if (ledger_ == nullptr || defect_ == Defect::log_nothing) return;
    ledger_->add_line(
        fmt::format("2026-01-01T00:00:00.000Z info  flow cookie=1 client={} listener=l up={} "
                    "up_relayed=0 up_lanes=0 down={} down_relayed=0 down_lanes=0 ms=1 reason={}",
                    pair.peer.text(), pair.up + (defect_ == Defect::log_bytes), pair.down.load(),
                    defect_ == Defect::log_reason ? "idle_timeout" : "completed"));
  }

  const Endpoint upstream_;
  const Defect defect_;
  Ledger* const ledger_;
  Fd listening_;
  std::thread accepting_;
  std::vector<std::thread> pumps_;
};

struct Outcome {
  uint64_t failed, lives;
  std::array<uint64_t, kFailures> by_kind;
};

uint16_t free_port() {
  return name_of_socket(listener().get(), getsockname).port;
}

Outcome torment(Defect defect, uint64_t lives, Mix mix = Mix::brief) {
  Options options;
  options.recipe.mix = mix;
  options.recipe.bytes_max = 4 << 20;
  options.preamble = Preamble::v1;
  options.lives = lives;
  options.concurrency = 50;
  options.hang_ms = defect == Defect::none ? 30'000 : 1000;
  options.late_ms = 200;
  options.source = Cidr::parse("127.16.0.0/12");
  options.serve = {local(free_port())};
  Tally tally;
  Ledger ledger(options, tally);
  const bool logs = mix == Mix::pingpong;  // nobody resets
  Relay relay(options.serve[0], defect, logs ? &ledger : nullptr);
  options.to = {{defect == Defect::absent ? local(free_port()) : relay.address(), {}}};
  Registry registry(options, tally, logs ? &ledger : nullptr);
  Loop(options, registry, tally, Loop::Role::first).run();
  relay.stop();
  settle(tally);
  ledger.settle(0);
  Outcome outcome{tally.failed(), tally.done, {}};
  for (size_t f = 0; f < kFailures; ++f) outcome.by_kind[f] = tally.failures[f];
  return outcome;
}

TEST(FaultyRelay, ARightOneIsNeverBlamed) {
  for (Mix mix : {Mix::brief, Mix::mixed, Mix::pingpong}) {
    const Outcome outcome = torment(Defect::none, 1000, mix);
    EXPECT_EQ(outcome.lives, 1000u);
    EXPECT_EQ(outcome.failed, 0u);
  }
}

struct Planted {
  Defect defect;
  Failure failure;
};
class PlantedDefect : public testing::TestWithParam<Planted> {};

TEST_P(PlantedDefect, IsNamed) {
  const auto [defect, failure] = GetParam();
  const bool of_log = defect >= Defect::log_reason;
  uint64_t named = 0;
  for (int round = 0; round < 5 && named == 0; round++)  // which of few lives show it is timing
    named = torment(defect, of_log ? 50 : 300, of_log ? Mix::pingpong : Mix::brief)
                .by_kind[static_cast<size_t>(failure)];
  EXPECT_GT(named, 0u) << name_of(failure);
}

INSTANTIATE_TEST_SUITE_P(
    All, PlantedDefect,
    testing::Values(
        Planted{Defect::drop, Failure::corrupt}, Planted{Defect::repeat, Failure::corrupt},
        Planted{Defect::flip, Failure::corrupt}, Planted{Defect::truncate, Failure::truncated},
        Planted{Defect::rst_into_fin, Failure::rst_became_fin},
        Planted{Defect::fin_into_rst, Failure::unasked_rst}, Planted{Defect::fin_forgotten, Failure::hang},
        Planted{Defect::rst_swallowed, Failure::rst_not_passed}, Planted{Defect::surplus, Failure::surplus},
        Planted{Defect::wrong_client, Failure::stranger},
        Planted{Defect::wrong_destination, Failure::wrong_header},
        Planted{Defect::dial_twice, Failure::dialled_twice},
        Planted{Defect::dial_in_vain, Failure::headerless},
        Planted{Defect::never_dial, Failure::never_arrived}, Planted{Defect::absent, Failure::connect_failed},
        Planted{Defect::log_reason, Failure::wrong_reason},
        Planted{Defect::log_bytes, Failure::wrong_account}, Planted{Defect::log_nothing, Failure::unlogged}));

}  // namespace
}  // namespace penstock::torture
