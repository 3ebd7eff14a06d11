// SPDX-License-Identifier: Apache-2.0
// keeper/notify.h: sd_notify(3) for a thread that may open nothing. The socket is made before, each message
// is one sendto(2) that never waits; what systemd does not take is lost.
#pragma once
#include <sys/un.h>

#include <cstdint>

namespace penstock::keeper {

class Notify {
 public:
  // By NOTIFY_SOCKET (a path or "@name"), WATCHDOG_USEC and WATCHDOG_PID; without them nothing is sent.
  void open();
  void close();
  int fd() const { return fd_; }
  int64_t watchdog_ns() const { return watchdog_ns_; }  // systemd's patience; 0: it has no watchdog for us
  void send(const char* text) const;

 private:
  int fd_ = -1;
  sockaddr_un to_{};
  unsigned to_bytes_ = 0;
  int64_t watchdog_ns_ = 0;
};

}  // namespace penstock::keeper
