// SPDX-License-Identifier: Apache-2.0
#include "keeper/notify.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>

namespace penstock::keeper {

void Notify::open() {
  const char* path = getenv("NOTIFY_SOCKET");
  const size_t size = path ? strlen(path) : 0;
  if (size < 2 || size >= sizeof to_.sun_path || (*path != '/' && *path != '@')) return;
  to_.sun_family = AF_UNIX;
  memcpy(to_.sun_path, path, size);
  if (*path == '@') to_.sun_path[0] = 0;
  to_bytes_ = static_cast<unsigned>(offsetof(sockaddr_un, sun_path) + size);
  fd_ = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  const char *usec = getenv("WATCHDOG_USEC"), *pid = getenv("WATCHDOG_PID");
  if (usec && (!pid || atoll(pid) == getpid())) watchdog_ns_ = atoll(usec) * 1000;
}

void Notify::close() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

void Notify::send(const char* text) const {
  if (fd_ < 0) return;
  sendto(fd_, text, strlen(text), MSG_DONTWAIT | MSG_NOSIGNAL, reinterpret_cast<const sockaddr*>(&to_),
         to_bytes_);
}

}  // namespace penstock::keeper
