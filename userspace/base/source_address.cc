// SPDX-License-Identifier: Apache-2.0
#include "base/source_address.h"

#include <sys/socket.h>

#include <cerrno>

#include "base/fd.h"

namespace penstock {

bool has_source_address(const Endpoint& to) {
  const Fd fd(::socket(to.address.is_v4() ? AF_INET : AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_storage address;
  const socklen_t size = to.to_sockaddr(&address);
  return ::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), size) == 0 || errno != EADDRNOTAVAIL;
}

}  // namespace penstock
