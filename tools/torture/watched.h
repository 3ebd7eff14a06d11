// SPDX-License-Identifier: Apache-2.0
// torture/watched.h: what an epoll set points at.
#pragma once
#include <sys/epoll.h>

#include <cerrno>
#include <cstdint>
#include <system_error>

namespace penstock::torture {

class Watched {
 public:
  virtual ~Watched() = default;
  virtual void on_events(uint32_t epoll_events) = 0;
};

inline void watch(int epoll_fd, int operation, int fd, uint32_t events, Watched* what) {
  epoll_event event{};
  event.events = events;
  event.data.ptr = what;
  if (epoll_ctl(epoll_fd, operation, fd, &event) != 0) {
    throw std::system_error(errno, std::generic_category(), "epoll_ctl");
  }
}

}  // namespace penstock::torture
