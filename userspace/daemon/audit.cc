// SPDX-License-Identifier: Apache-2.0
#include "daemon/audit.h"

#include <dirent.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>

#include "flow/socket_names.h"

namespace penstock::daemon {
namespace {

int option_of(int fd, int level, int option) {
  int value = 0;
  socklen_t size = sizeof value;
  return getsockopt(fd, level, option, &value, &size) ? -1 : value;
}

FoundListener describe(int fd, int family) {
  std::array<char, IFNAMSIZ> device{};
  socklen_t size = device.size();
  if (getsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, device.data(), &size)) device[0] = 0;
  return {fd, family, flow::local_of(fd), device.data(), device_of(fd)};
}

}  // namespace

std::vector<int> open_descriptors() {
  std::vector<int> all;
  DIR* directory = opendir("/proc/self/fd");
  if (!directory) {  // it needs a descriptor, and there may be none left
    rlimit limit{};
    getrlimit(RLIMIT_NOFILE, &limit);
    for (int fd = 0; fd < static_cast<int>(limit.rlim_max); fd++)
      if (fcntl(fd, F_GETFD) >= 0) all.push_back(fd);
    return all;
  }
  while (const dirent* entry = readdir(directory))
    if (const int fd = atoi(entry->d_name); entry->d_name[0] != '.' && fd != dirfd(directory))
      all.push_back(fd);
  closedir(directory);
  return all;
}

unsigned device_of(int fd) {
  return static_cast<unsigned>(std::max(0, option_of(fd, SOL_SOCKET, SO_BINDTOIFINDEX)));
}

void reset_connection(int fd) {
  const linger now{1, 0};
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
  close(fd);
}

Found audit_descriptors(const std::function<bool(int)>& is_kept) {
  Found found;
  std::vector<int> connected;
  for (const int fd : open_descriptors()) {
    if (is_kept(fd)) continue;
    const int family = option_of(fd, SOL_SOCKET, SO_DOMAIN);
    const bool tcp =
        (family == AF_INET || family == AF_INET6) && option_of(fd, SOL_SOCKET, SO_PROTOCOL) == IPPROTO_TCP;
    if (tcp && option_of(fd, SOL_SOCKET, SO_ACCEPTCONN) == 1) {
      found.listeners.push_back(describe(fd, family));
    } else if (tcp) {
      connected.push_back(fd);
    } else {
      close(fd);
      found.closed++;
    }
  }
  // What we dialled never has the port of a listener: connect(2) takes none that somebody is bound to
  // (net/ipv4/inet_hashtables.c, __inet_hash_connect()).
  for (const int fd : connected) {
    const Endpoint local = flow::local_of(fd);
    const bool ours = std::any_of(found.listeners.begin(), found.listeners.end(),
                                  [&](const FoundListener& l) { return l.where.port == local.port; });
    if (ours) {
      found.accepted.push_back(fd);
    } else {
      reset_connection(fd);
      found.closed++;
    }
  }
  return found;
}

}  // namespace penstock::daemon
