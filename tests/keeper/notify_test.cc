// SPDX-License-Identifier: Apache-2.0
#include "keeper/notify.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <csignal>
#include <cstddef>

#include "keeper/kept.h"

namespace penstock::keeper::test {
namespace {

// systemd's end of NOTIFY_SOCKET.
class NotifySocket {
 public:
  explicit NotifySocket(const std::string& name) : name_(name) {
    sockaddr_un address{.sun_family = AF_UNIX};
    name.copy(address.sun_path, sizeof address.sun_path - 1);
    if (name[0] == '@') address.sun_path[0] = 0;
    const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size());
    EXPECT_EQ(bind(fd_.get(), reinterpret_cast<sockaddr*>(&address), size), 0) << name;
    const int on = 1;
    setsockopt(fd_.get(), SOL_SOCKET, SO_PASSCRED, &on, sizeof on);
  }
  ~NotifySocket() {
    if (name_[0] == '/') unlink(name_.c_str());
  }

  // The next message; "" when none comes. `sender` is then the process that systemd would take it from.
  std::string next() {
    pollfd readable{fd_.get(), POLLIN, 0};
    if (poll(&readable, 1, static_cast<int>(kPatience.count())) <= 0) return "";
    char text[512], control[CMSG_SPACE(sizeof(ucred))];
    iovec part{text, sizeof text};
    msghdr message{
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    const ssize_t n = recvmsg(fd_.get(), &message, 0);
    if (n < 0) return "";
    if (const cmsghdr* c = CMSG_FIRSTHDR(&message))
      sender = reinterpret_cast<const ucred*>(CMSG_DATA(c))->pid;
    return std::string(text, static_cast<size_t>(n));
  }
  // The next that begins so; those before it are passed over.
  std::string next(std::string_view beginning) {
    for (std::string message; !(message = next()).empty();)
      if (message.starts_with(beginning)) return message;
    return "";
  }
  pid_t sender = -1;

 private:
  std::string name_;
  Fd fd_{socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)};
};

std::string place(char first) {
  return first + ("/tmp/keeper-notify-" + std::to_string(getpid())).substr(first == '/' ? 1 : 0);
}

class Notified : public testing::TestWithParam<char> {};

TEST_P(Notified, from_ready_to_stopping) {
  NotifySocket systemd(place(GetParam()));
  Kept kept("ready", {}, {{"NOTIFY_SOCKET", place(GetParam())}});
  EXPECT_EQ(systemd.next(), "READY=1\nSTATUS=serving");
  EXPECT_EQ(systemd.sender, kept.process().pid());  // MAINPID
  ASSERT_TRUE(kept.ready(1));

  kept.process().signal(SIGHUP);
  const std::string reloading = systemd.next();
  EXPECT_TRUE(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC=")) << reloading;
  EXPECT_GT(std::stoll(reloading.substr(reloading.rfind('=') + 1)), 0);
  EXPECT_EQ(systemd.next(), "READY=1\nSTATUS=serving");

  kept.process().signal(SIGTERM);
  EXPECT_EQ(systemd.next(), "STOPPING=1");
  EXPECT_EQ(kept.exit_code(), 0);
}

INSTANTIATE_TEST_SUITE_P(Path, Notified, testing::Values('/'));
INSTANTIATE_TEST_SUITE_P(Abstract, Notified, testing::Values('@'));

TEST(Notify, tells_crash_backoff_and_storm) {
  NotifySocket systemd(place('@'));
  Kept kept("ready,exit7,exit7,ready", {"backoff=1", "storm=3", "steady=60000"},
            {{"NOTIFY_SOCKET", place('@')}});
  EXPECT_EQ(systemd.next(), "READY=1\nSTATUS=serving");
  kept.kill_worker();
  EXPECT_EQ(systemd.next(), "STATUS=the worker was killed by signal 9; the next one starts in 1 ms");
  EXPECT_EQ(systemd.next(),
            "STATUS=the worker exited with code 7 before it was ready; the next one starts in 2 ms");
  EXPECT_EQ(
      systemd.next(),
      "STATUS=restart storm: the worker exited with code 7 before it was ready; the next one starts in 4 ms");
  EXPECT_EQ(systemd.next(), "READY=1\nSTATUS=serving");
}

TEST(Notify, feeds_the_watchdog_twice_as_often_as_it_must) {
  NotifySocket systemd(place('@'));
  Kept kept("ready", {}, {{"NOTIFY_SOCKET", place('@')}, {"WATCHDOG_USEC", "100000"}});
  for (int i = 0; i < 5; i++) EXPECT_EQ(systemd.next("WATCHDOG"), "WATCHDOG=1");
}

TEST(Notify, a_socket_that_is_not_there_hurts_nobody) {
  Kept kept("ready", {}, {{"NOTIFY_SOCKET", "/tmp/keeper-nobody-listens"}});
  ASSERT_TRUE(kept.ready(1));
  kept.process().signal(SIGTERM);
  EXPECT_EQ(kept.exit_code(), 0);
}

}  // namespace
}  // namespace penstock::keeper::test
