// SPDX-License-Identifier: Apache-2.0
// tests/dns/dnsmasq.h: a real name server with a few records, that can be paused, counted and ended.
#pragma once
#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/fd.h"

namespace penstock::dns::testing {

uint16_t free_port();  // free for UDP and TCP on 127.0.0.1 a moment ago

class Dnsmasq {
 public:
  // `records`: options such as "--host-record=a.test,192.0.2.1". Returns when it answers.
  Dnsmasq(uint16_t port, const std::vector<std::string>& records, const std::string& address = "127.0.0.1");
  ~Dnsmasq();
  Dnsmasq(const Dnsmasq&) = delete;
  Dnsmasq& operator=(const Dnsmasq&) = delete;

  void pause();  // what is asked waits in its sockets
  void resume();
  // Queries for `name` since the start, one for each type ("query[A] a.test").
  size_t queries(const std::string& name);

  void wait_for_log(int timeout_ms);  // returns with its next line, or when the time is over

 private:
  pid_t pid_ = -1;
  Fd log_;
  std::string text_;
};

}  // namespace penstock::dns::testing
