// SPDX-License-Identifier: Apache-2.0
#include "client.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstdlib>
#include <filesystem>

#include "base/assert.h"

namespace penstock::testing {

TemporaryDirectory::TemporaryDirectory() {
  char name[] = "/tmp/penstock-test-XXXXXX";
  PENSTOCK_ASSERT(::mkdtemp(name) != nullptr);
  path_ = name;
}

TemporaryDirectory::~TemporaryDirectory() {
  std::filesystem::remove_all(path_);
}

Client::Client(const std::string& path) : socket_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  PENSTOCK_ASSERT(::connect(socket_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
}

void Client::send(std::string_view bytes) {
  while (!bytes.empty()) {
    ssize_t n = ::send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n <= 0) return;
    bytes.remove_prefix(static_cast<size_t>(n));
  }
}

void Client::shut_down() {
  ::shutdown(socket_.get(), SHUT_WR);
}

std::string Client::line() {
  size_t searched = 0;
  for (;;) {
    if (size_t end = received_.find('\n', searched); end != std::string::npos) {
      std::string line = received_.substr(0, end);
      received_.erase(0, end + 1);
      return line;
    }
    searched = received_.size();
    pollfd p{socket_.get(), POLLIN, 0};
    if (::poll(&p, 1, 60'000) <= 0) return "(nothing)";
    char buffer[1 << 16];
    ssize_t n = ::recv(socket_.get(), buffer, sizeof buffer, 0);
    if (n <= 0) return "(closed)";
    received_.append(buffer, static_cast<size_t>(n));
  }
}

}  // namespace penstock::testing
