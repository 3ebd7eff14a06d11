// SPDX-License-Identifier: Apache-2.0
#include "client.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>
#include <string_view>

#include "base/fd.h"
#include "base/log.h"

namespace penstock::command {
namespace {

constexpr const char* kElsewhere = "if its [admin].socket is another path, give that with --socket";

std::string connect_error(const std::string& path, int error) {
  struct stat s;
  switch (error) {
    case ENOENT:
      return "penstockd is not running: there is no socket " + path + " (" + kElsewhere + ")";
    case ECONNREFUSED:
      if (::stat(path.c_str(), &s) == 0 && !S_ISSOCK(s.st_mode)) return path + " is not a socket";
      return "penstockd is not running: nobody listens on " + path + " (" + kElsewhere + ")";
    case EACCES:
    case EPERM:
      return "no permission to use " + path + ": run as root or as a member of group penstock";
    case EAGAIN:
      return "penstockd does not take the connection to " + path + ": too many wait already";
    case EPROTOTYPE:
      return path + " is another program's socket";
    default:
      return "cannot connect to " + path + ": " + std::strerror(error);
  }
}

std::string silence(const std::string& path, std::chrono::seconds patience) {
  return "penstockd has said nothing on " + path + " for " + std::to_string(patience.count()) + " s";
}

Result<Fd> connect_to(const std::string& path, std::chrono::seconds patience) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return Error{"--socket: accepted: a path of 1 to " + std::to_string(sizeof address.sun_path - 1) +
                 " bytes"};
  }
  path.copy(address.sun_path, path.size());
  Fd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return Error{std::string("socket: ") + std::strerror(errno)};
  timeval limit{patience.count(), 0};
  ::setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);  // of connect() too
  ::setsockopt(socket.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  if (::connect(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    return Error{connect_error(path, errno)};
  }
  return socket;
}

// A daemon that refuses us says so and closes: what it said counts, not that it did not read.
void send_all(const Fd& socket, std::string_view bytes) {
  while (!bytes.empty()) {
    ssize_t n = ::send(socket.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n <= 0) return;
    bytes.remove_prefix(static_cast<size_t>(n));
  }
}

Result<std::string> receive_line(const Fd& socket, const std::string& path, std::chrono::seconds patience) {
  std::string line;
  std::string buffer(1 << 16, '\0');
  for (;;) {
    ssize_t n = ::recv(socket.get(), buffer.data(), buffer.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return Error{silence(path, patience)};
    if (n <= 0) return Error{"penstockd closed " + path + " before its answer was complete"};
    std::string_view part(buffer.data(), static_cast<size_t>(n));
    size_t end = part.find('\n');
    line += part.substr(0, end);
    if (end != part.npos) return line;
  }
}

}  // namespace

Result<Json> ask(const std::string& socket_path, const Json& request, std::chrono::seconds patience) {
  auto socket = connect_to(socket_path, patience);
  if (!socket) return socket.error();
  send_all(*socket, json_line(request) + "\n");
  auto line = receive_line(*socket, socket_path, patience);
  if (!line) return line.error();
  auto answer = parse_json(*line);
  if (!answer || !answer->is_object()) {
    return Error{"what answers on " + socket_path + " is not penstockd: \"" + log::escaped(*line, 80) + "\""};
  }
  if (auto error = answer->find("error"); error != answer->end()) {
    return Error{"penstockd: " +
                 log::escaped(error->is_string() ? error->get<std::string>() : error->dump())};
  }
  return std::move(*answer);
}

}  // namespace penstock::command
