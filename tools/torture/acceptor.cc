// SPDX-License-Identifier: Apache-2.0
#include "acceptor.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <cstring>
#include <utility>

namespace penstock::torture {
namespace {

constexpr int kBacklog = 4096;
constexpr int kAcceptsPerTurn = 64;
constexpr size_t kReadBytes = 4096;

void set(int fd, int level, int name, int value) {
  setsockopt(fd, level, name, &value, sizeof value);
}

Fd listen_on(const Endpoint& where) {
  sockaddr_storage address;
  const socklen_t length = where.to_sockaddr(&address);
  Fd fd(socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  set(fd.get(), SOL_SOCKET, SO_REUSEADDR, 1);
  set(fd.get(), SOL_SOCKET, SO_REUSEPORT, 1);
  if (bind(fd.get(), reinterpret_cast<sockaddr*>(&address), length) != 0 || listen(fd.get(), kBacklog) != 0) {
    throw std::system_error(errno, std::generic_category(), "listen on " + where.text());
  }
  return fd;
}

void close_with_rst(int fd) {
  const linger now{1, 0};
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
  close(fd);
}

}  // namespace

struct Acceptor::Listener : Watched {
  Listener(Acceptor& acceptor, Fd listening) : door(acceptor), fd(std::move(listening)) {}
  void on_events(uint32_t) override { door.accept_all(*this); }
  Acceptor& door;
  Fd fd;
};

struct Acceptor::Arrival : Watched {
  Arrival(Acceptor& acceptor, int accepted, const Endpoint& from)
      : door(acceptor), fd(accepted), client(from) {}
  void on_events(uint32_t) override {
    if (fd >= 0 && !known_client) door.read_more(*this);
  }
  Acceptor& door;
  int fd;
  const int64_t since_ms = now_ms();
  std::string bytes;
  bool known_client = false;  // the preamble is complete
  size_t preamble_bytes = 0;
  Endpoint client, destination;  // of the preamble; the peer address where there is none
  uint64_t id = 0;
  std::list<Arrival>::iterator self;
};

Acceptor::Acceptor(const Options& options, Registry& registry, int epoll_fd, Welcome welcome)
    : options_(options), registry_(registry), epoll_fd_(epoll_fd), welcome_(std::move(welcome)) {
  for (const Endpoint& where : options.serve) {
    Listener& listener = listeners_.emplace_back(*this, listen_on(where));
    watch(epoll_fd_, EPOLL_CTL_ADD, listener.fd.get(), EPOLLIN, &listener);
  }
}

Acceptor::~Acceptor() {
  for (const Arrival& arrival : arrivals_) close(arrival.fd);
}

void Acceptor::accept_all(Listener& listener) {
  for (int i = 0; i < kAcceptsPerTurn; ++i) {
    sockaddr_storage address{};
    socklen_t length = sizeof address;
    const int fd = accept4(listener.fd.get(), reinterpret_cast<sockaddr*>(&address), &length,
                           SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return;
    const auto peer = Endpoint::from_sockaddr(reinterpret_cast<sockaddr*>(&address), length);
    Arrival& arrival = arrivals_.emplace_back(*this, fd, peer.value_or(Endpoint{}));
    arrival.self = std::prev(arrivals_.end());
    watch(epoll_fd_, EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, &arrival);
    if (options_.preamble == Preamble::none) {
      arrival.known_client = true;
      identify(arrival);
    } else {
      read_more(arrival);
    }
  }
}

void Acceptor::read_more(Arrival& arrival) {
  while (!arrival.known_client) {
    char chunk[kReadBytes];
    const ssize_t n = recv(arrival.fd, chunk, sizeof chunk, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) return drop(arrival, Failure::headerless, "");
    arrival.bytes.append(chunk, static_cast<size_t>(n));
    if (!read_preamble(arrival)) return;
  }
  identify(arrival);
}

// False if the arrival has been dropped.
bool Acceptor::read_preamble(Arrival& arrival) {
  if (options_.preamble == Preamble::id) {
    arrival.preamble_bytes = sizeof arrival.id;
    if (arrival.bytes.size() < sizeof arrival.id) return true;
    std::memcpy(&arrival.id, arrival.bytes.data(), sizeof arrival.id);
    arrival.known_client = true;
    return true;
  }
  const ProxyHeader header = read_proxy_header(options_.preamble, arrival.bytes);
  switch (header.state) {
    case ProxyHeader::State::need_more:
      return true;
    case ProxyHeader::State::complete:
      break;
    case ProxyHeader::State::local:
      registry_.add_health_check();
      forget(arrival);
      return false;
    case ProxyHeader::State::bad:
      drop(arrival, Failure::stranger, "its first bytes are no PROXY header");
      return false;
  }
  arrival.preamble_bytes = header.header_bytes;
  arrival.client = header.client;
  arrival.destination = header.destination;
  arrival.known_client = true;
  return true;
}

void Acceptor::identify(Arrival& arrival) {
  Life* life = nullptr;
  const Registry::Claim claim = options_.preamble == Preamble::id ? registry_.claim(arrival.id, &life)
                                                                  : registry_.claim(arrival.client, &life);
  const std::string whose =
      options_.preamble == Preamble::id ? fmt::format("id {:x}", arrival.id) : arrival.client.text();
  switch (claim) {
    case Registry::Claim::yours:
      break;
    case Registry::Claim::unknown:
      // Its thread may not have run since its connect() was answered.
      if (now_ms() - arrival.since_ms > options_.hang_ms / 3)
        drop(arrival, Failure::stranger, "no client of ours: " + whose);
      return;
    case Registry::Claim::departed:
      // Or a new one with the same port, as above.
      if (now_ms() - arrival.since_ms <= options_.hang_ms / 30) return;
      close_with_rst(std::exchange(arrival.fd, -1));
      return forget(arrival);
    case Registry::Claim::taken:
      return drop(arrival, Failure::dialled_twice, whose);
  }
  const bool says_destination = options_.preamble == Preamble::v1 || options_.preamble == Preamble::v2;
  Guest guest{arrival.fd, life, std::string_view(arrival.bytes).substr(arrival.preamble_bytes), false, {}};
  if (says_destination && arrival.destination != life->destination) {
    guest.wrong_header = true;
    guest.remark = fmt::format("PROXY header says destination {}, it is {}", arrival.destination.text(),
                               life->destination.text());
  }
  welcome_(guest);
  arrival.fd = -1;
  forget(arrival);
}

bool Acceptor::ask_again() {
  bool any = false;
  for (auto next = arrivals_.begin(); next != arrivals_.end();) {
    Arrival& arrival = *next++;
    if (!arrival.known_client) continue;
    any = true;
    identify(arrival);
  }
  return any;
}

void Acceptor::drop_silent(int64_t now) {
  for (auto next = arrivals_.begin(); next != arrivals_.end();) {
    Arrival& arrival = *next++;
    if (now - arrival.since_ms > options_.hang_ms) drop(arrival, Failure::headerless, "");
  }
}

void Acceptor::drop(Arrival& arrival, Failure failure, const std::string& reason) {
  registry_.add_stray(failure, reason);
  close_with_rst(std::exchange(arrival.fd, -1));
  forget(arrival);
}

void Acceptor::forget(Arrival& arrival) {
  if (arrival.fd >= 0) close(std::exchange(arrival.fd, -1));
  dead_.splice(dead_.end(), arrivals_, arrival.self);
}

void Acceptor::free_dead() {
  dead_.clear();
}

}  // namespace penstock::torture
