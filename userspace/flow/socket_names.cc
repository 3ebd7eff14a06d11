// SPDX-License-Identifier: Apache-2.0
#include "flow/socket_names.h"

#include <netinet/in.h>

namespace penstock::flow {
namespace {

Endpoint ask(int fd, int (*which)(int, sockaddr*, socklen_t*)) {
  sockaddr_storage a;
  socklen_t size = sizeof a;
  if (which(fd, reinterpret_cast<sockaddr*>(&a), &size)) return {};
  return Endpoint::from_sockaddr(reinterpret_cast<sockaddr*>(&a), size).value_or(Endpoint{});
}

}  // namespace

Endpoint local_of(int fd) {
  return ask(fd, getsockname);
}

Endpoint remote_of(int fd) {
  return ask(fd, getpeername);
}

// SO_PEERNAME takes no more room than it fills.
Endpoint peer_of(int fd) {
  sockaddr_storage a;
  for (socklen_t size : {sizeof(sockaddr_in6), sizeof(sockaddr_in)})
    if (getsockopt(fd, SOL_SOCKET, SO_PEERNAME, &a, &size) == 0)
      return Endpoint::from_sockaddr(reinterpret_cast<sockaddr*>(&a), size).value_or(Endpoint{});
  return {};
}

uint64_t cookie_of(int fd) {
  uint64_t cookie = 0;
  socklen_t size = sizeof cookie;
  getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &size);
  return cookie;
}

}  // namespace penstock::flow
