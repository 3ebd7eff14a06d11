// SPDX-License-Identifier: Apache-2.0
// netns/edge.h: a daemon alone in a namespace, with a mail listener (the server is the test) and what every
// test must leave behind: accounts that add up, no flow, no descriptor, no complaint of the kernel, exit 0.
#pragma once
#include <gtest/gtest.h>

#include <optional>
#include <string>

#include "support/daemon.h"
#include "support/kernel_log.h"
#include "support/netns.h"
#include "support/pattern.h"
#include "support/tcp.h"

namespace penstock::test {

// Both ends of one open flow.
struct Pair {
  TcpStream client, server;
};

struct Drive {
  const char* engine;
  bool epoll = false;  // io_uring is refused, as a seccomp profile may
};

// Every test runs once for each way of driving the edge, its parameter.
class Edge : public testing::TestWithParam<Drive> {
 protected:
  static constexpr const char* kAddress = "127.0.0.1";
  static constexpr uint16_t kMailPort = 2525, kWebPort = 8443, kServerPort = 3525;

  // Listener "mail" on kMailPort → kServerPort; `more` is further TOML (top-level tables).
  void start(const std::string& more = "");
  void start_with(DaemonOptions options);
  static std::string mail_tables(const std::string& upstream_keys = "",
                                 const std::string& listener_keys = "");

  TcpStream connect() const { return TcpStream::connect(at(kAddress, kMailPort)); }
  // REQUIRES: the test's server listens on kServerPort and nobody else connects meanwhile.
  Pair open_flow(const TcpListener& server) const;
  bool sockmap() const { return daemon_->engine() == "sockmap"; }
  // Once one flow has been closed for this reason and no flow is left.
  bool closed_for(const std::string& reason, uint64_t times = 1) const;

  void TearDown() override;

  Netns netns_;
  Netns::Inside inside_{netns_};
  KernelLog kernel_log_;
  std::optional<Daemon> daemon_;
  Descriptors at_start_;
};

inline std::string drive_name(const testing::TestParamInfo<Drive>& info) {
  return std::string(info.param.engine) + (info.param.epoll ? "_epoll" : "");
}
// auto, auto_epoll, io_uring, io_uring_epoll: the last two relay everything.
#define FOR_BOTH_ENGINES(suite)                                                                        \
  INSTANTIATE_TEST_SUITE_P(                                                                            \
      drive, suite,                                                                                    \
      testing::Values(Drive{"auto"}, Drive{"auto", true}, Drive{"io_uring"}, Drive{"io_uring", true}), \
      drive_name)
#define FOR_ENGINE(suite, engine) \
  INSTANTIATE_TEST_SUITE_P(drive, suite, testing::Values(Drive{engine}, Drive{engine, true}), drive_name)

}  // namespace penstock::test
