// SPDX-License-Identifier: Apache-2.0
#include "support/named_echo.h"

#include <cerrno>
#include <stdexcept>

#include "support/proxy_header.h"

namespace penstock::test {

NamedEcho::NamedEcho(std::string name, const Endpoint& address, Proxy proxy)
    : name_(std::move(name)), proxy_(proxy), listener_(address), acceptor_([this] { accept_all(); }) {}

NamedEcho::~NamedEcho() {
  stop_ = true;
  acceptor_.join();
}

void NamedEcho::accept_all() {
  std::vector<std::jthread> clients;
  while (!stop_) {
    auto client = listener_.accept_within(10ms);
    if (!client) continue;
    ++served_;
    clients.emplace_back([this, stream = std::move(*client)] {
      try {
        serve(stream);
      } catch (const std::exception&) {
        // The client went away in the middle: the test sees that at its own end of the stream.
      }
    });
  }
}

void NamedEcho::serve(const TcpStream& client) {
  std::string who = "-";
  if (proxy_ == Proxy::required) {
    const ProxyHeader header = read_proxy_header(client);
    who = "v" + std::to_string(header.version) + " " + header.client;
  }
  client.send_all(name_ + " " + who + "\n");
  char bytes[16 << 10];
  while (!stop_) {
    if (!client.readable_within(10ms)) continue;
    const ssize_t n = client.recv_some(bytes, sizeof bytes);
    if (n <= 0) return;
    client.send_all({bytes, static_cast<size_t>(n)});
  }
}

}  // namespace penstock::test
