// SPDX-License-Identifier: Apache-2.0
// A descriptor table that somebody else has left.
#include "daemon/audit.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>

#include "base/fd.h"

namespace penstock::daemon {
namespace {

bool is_open(int fd) {
  return fcntl(fd, F_GETFD) >= 0;
}

sockaddr_storage loopback(int family, uint16_t port, socklen_t* size) {
  sockaddr_storage where{};
  if (family == AF_INET) {
    auto& in = reinterpret_cast<sockaddr_in&>(where);
    in = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}, .sin_zero = {}};
    *size = sizeof in;
  } else {
    auto& in6 = reinterpret_cast<sockaddr_in6&>(where);
    in6.sin6_family = AF_INET6;
    in6.sin6_port = htons(port);
    in6.sin6_addr = in6addr_loopback;
    *size = sizeof in6;
  }
  return where;
}

// What is there before the test is kept, as the daemon's own is.
struct AuditTest : testing::Test {
  AuditTest() : before(open_descriptors()) {}
  ~AuditTest() override {
    for (const int fd : open_descriptors())
      if (!was_there(fd)) close(fd);
  }
  bool was_there(int fd) const { return std::find(before.begin(), before.end(), fd) != before.end(); }
  Found audit(const std::set<int>& kept = {}) {
    return audit_descriptors([&](int fd) { return was_there(fd) || kept.contains(fd); });
  }

  static int listen_on(int family, const char* device = "") {
    const int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    socklen_t size = 0;
    const sockaddr_storage where = loopback(family, 0, &size);
    const auto bytes = static_cast<socklen_t>(strlen(device));
    EXPECT_EQ(setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, device, bytes), 0) << strerror(errno);
    EXPECT_EQ(bind(fd, reinterpret_cast<const sockaddr*>(&where), size), 0) << strerror(errno);
    EXPECT_EQ(listen(fd, 8), 0);
    return fd;
  }
  static uint16_t port_of(int fd) {
    sockaddr_storage where{};
    socklen_t size = sizeof where;
    getsockname(fd, reinterpret_cast<sockaddr*>(&where), &size);
    return ntohs(where.ss_family == AF_INET ? reinterpret_cast<sockaddr_in&>(where).sin_port
                                            : reinterpret_cast<sockaddr_in6&>(where).sin6_port);
  }
  static int connect_to(int family, uint16_t port) {
    const int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    socklen_t size = 0;
    const sockaddr_storage where = loopback(family, port, &size);
    EXPECT_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&where), size), 0) << strerror(errno);
    return fd;
  }

  const std::vector<int> before;
};

TEST_F(AuditTest, EveryOpenDescriptorOnce) {
  const int fd = eventfd(0, EFD_CLOEXEC);
  std::vector<int> now = open_descriptors();
  std::erase_if(now, [&](int other) { return was_there(other); });
  EXPECT_EQ(now, std::vector<int>{fd});
  close(fd);
  EXPECT_EQ(open_descriptors(), before);
}

TEST_F(AuditTest, WhatNobodySpeaksOfIsClosed) {
  int pipe[2], pair[2];
  ASSERT_EQ(pipe2(pipe, O_CLOEXEC), 0);
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  const int nobodys[] = {pipe[0],
                         pipe[1],
                         pair[0],
                         pair[1],
                         eventfd(0, EFD_CLOEXEC),
                         timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC),
                         epoll_create1(EPOLL_CLOEXEC),
                         memfd_create("nobody's", MFD_CLOEXEC),
                         socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0),
                         socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  const int kept = eventfd(0, EFD_CLOEXEC);
  const Found found = audit({kept});
  EXPECT_EQ(found.closed, std::size(nobodys));
  for (const int fd : nobodys) EXPECT_FALSE(is_open(fd)) << fd;
  EXPECT_TRUE(is_open(kept));
  EXPECT_TRUE(found.listeners.empty());
  EXPECT_TRUE(found.accepted.empty());
}

TEST_F(AuditTest, WhatListensIsFoundWithItsAddressAndDevice) {
  const int four = listen_on(AF_INET), six = listen_on(AF_INET6), bound = listen_on(AF_INET, "lo"),
            kept = listen_on(AF_INET);
  Found found = audit({kept});
  EXPECT_EQ(found.closed, 0u);
  ASSERT_EQ(found.listeners.size(), 3u);
  const auto of = [&](int fd) {
    return *std::find_if(found.listeners.begin(), found.listeners.end(),
                         [&](const auto& l) { return l.fd == fd; });
  };
  EXPECT_EQ(of(four).family, AF_INET);
  EXPECT_EQ(of(four).where.port, port_of(four));
  EXPECT_EQ(of(four).device, "");
  EXPECT_EQ(of(four).device_index, 0u);
  EXPECT_EQ(of(six).family, AF_INET6);
  EXPECT_EQ(of(six).where.port, port_of(six));
  EXPECT_EQ(of(bound).device, "lo");
  EXPECT_EQ(of(bound).device_index, 1u);
  for (const int fd : {four, six, bound, kept}) EXPECT_TRUE(is_open(fd));
}

// A connection belongs to a port of ours; one to somebody else's was a dial, or a question to DNS.
TEST_F(AuditTest, AConnectionToOnePortOfOursIsFound) {
  const int ours = listen_on(AF_INET), ours6 = listen_on(AF_INET6), theirs = listen_on(AF_INET);
  const int client = connect_to(AF_INET, port_of(ours)), client6 = connect_to(AF_INET6, port_of(ours6));
  const int accepted = accept4(ours, nullptr, nullptr, SOCK_CLOEXEC),
            accepted6 = accept4(ours6, nullptr, nullptr, SOCK_CLOEXEC);
  const int dialed = connect_to(AF_INET, port_of(theirs));
  close(theirs);
  Found found = audit({client, client6});
  std::sort(found.accepted.begin(), found.accepted.end());
  EXPECT_EQ(found.accepted, (std::vector<int>{std::min(accepted, accepted6), std::max(accepted, accepted6)}));
  EXPECT_EQ(found.closed, 1u);
  EXPECT_FALSE(is_open(dialed));
  EXPECT_TRUE(is_open(accepted));
  EXPECT_EQ(found.listeners.size(), 2u);
}

}  // namespace
}  // namespace penstock::daemon
