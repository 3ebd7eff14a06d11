// SPDX-License-Identifier: Apache-2.0
#include "serve.h"

#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <system_error>
#include <thread>
#include <vector>

#include "loop.h"
#include "short.h"

namespace penstock::bench {
namespace {

constexpr int kBacklog = 4096;

Fd listen_on(Endpoint at) {
  sockaddr_storage address{};
  const socklen_t length = at.to_sockaddr(&address);
  Fd listener(socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  int one = 1;
  setsockopt(listener.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(listener.get(), reinterpret_cast<sockaddr*>(&address), length) < 0 ||
      listen(listener.get(), kBacklog) < 0) {
    fmt::print(stderr, "penstock-bench-load: {}: {}\n", at.text(), std::system_category().message(errno));
    std::exit(1);
  }
  return listener;
}

// Long flows go to the loops in turn, so that eight of them keep every loop busy.
class StreamPort final : public Watched {
 public:
  StreamPort(std::vector<std::unique_ptr<Loop>>& loops, int listener) : loops_(loops), listener_(listener) {}
  void on_ready(uint32_t) override {
    Fd socket(accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket.valid()) return;
    set_options(socket.get());
    (new Flow(*loops_[next_++ % loops_.size()], std::move(socket)))->watch();
  }

 private:
  std::vector<std::unique_ptr<Loop>>& loops_;
  int listener_;
  size_t next_ = 0;
};

// Short ones stay with the loop that accepted them.
class ShortPort final : public Watched {
 public:
  ShortPort(Loop& loop, int listener, bool proxied) : loop_(loop), listener_(listener), proxied_(proxied) {}
  void on_ready(uint32_t) override {
    Fd socket(accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket.valid()) return;
    const int fd = socket.get();
    loop_.add(fd, EPOLLIN, new Answerer(std::move(socket), proxied_));
  }

 private:
  Loop& loop_;
  int listener_;
  bool proxied_;
};

}  // namespace

void serve(const ServeOptions& options) {
  std::vector<std::unique_ptr<Loop>> loops;
  for (unsigned i = 0; i < options.threads; ++i) loops.push_back(std::make_unique<Loop>());
  const Fd streams = listen_on(options.streams), shorts = listen_on(options.shorts),
           proxied = listen_on(options.proxied);
  StreamPort stream_port(loops, streams.get());
  loops[0]->add(streams.get(), EPOLLIN, &stream_port);
  std::vector<std::unique_ptr<ShortPort>> short_ports;
  for (auto& loop : loops) {
    for (const Fd* listener : {&shorts, &proxied}) {
      short_ports.push_back(std::make_unique<ShortPort>(*loop, listener->get(), listener == &proxied));
      loop->add(listener->get(), EPOLLIN | EPOLLEXCLUSIVE, short_ports.back().get());
    }
  }
  fmt::print("ready\n");
  std::fflush(stdout);
  std::vector<std::jthread> threads;
  for (auto& loop : loops) threads.emplace_back([&loop] { loop->run(); });
}

}  // namespace penstock::bench
