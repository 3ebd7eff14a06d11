// SPDX-License-Identifier: Apache-2.0
// postfix behind the edge, the set-up the product is for: smtpd and postscreen learn the true client by PROXY
// header.
#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "e2e/site.h"

namespace penstock::test {
namespace {

class Postfix : public Site {
 protected:
  static constexpr uint16_t kSmtpd = 25, kPostscreen = 587;

  void SetUp() override {
    const passwd* owner = ::getpwnam("postfix");
    ASSERT_NE(owner, nullptr) << "postfix is not installed";
    for (const char* name : {"etc", "spool", "lib"}) ASSERT_EQ(::mkdir(file(name).c_str(), 0755), 0);
    ASSERT_EQ(::chown(file("lib").c_str(), owner->pw_uid, owner->pw_gid), 0);
    directory_.write("etc/main.cf", "compatibility_level = 3.6\nqueue_directory = " + file("spool") +
                                        "\ndata_directory = " + file("lib") +
                                        "\nmaillog_file = " + file("mail.log") +
                                        R"(
maillog_file_prefixes = /tmp
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
setgid_group = postdrop
inet_interfaces = 198.51.100.25
inet_protocols = ipv4
myhostname = mailbox.example.net
mydestination = mailbox.example.net
mynetworks = 127.0.0.0/8
local_transport = discard:
local_recipient_maps =
alias_maps =
smtpd_peername_lookup = no
smtpd_relay_restrictions = reject_unauth_destination
smtpd_upstream_proxy_protocol = haproxy
postscreen_upstream_proxy_protocol = haproxy
postscreen_greet_wait = 1s
postscreen_cache_map =
)");
    directory_.write("etc/master.cf", R"(
198.51.100.25:25 inet n - n - - smtpd
198.51.100.25:587 inet n - n - 1 postscreen
smtpd pass - - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
proxymap unix - - n - - proxymap
discard unix - - n - - discard
error unix - - n - - error
anvil unix - - n - 1 anvil
tlsmgr unix - - n 1000? 1 tlsmgr
dnsblog unix - - n - 0 dnsblog
tlsproxy unix - - n - 0 tlsproxy
postlog unix-dgram n - n - 1 postlogd
)");
    // Its master leaves the process group: a pid namespace ends them all together.
    start_server({"unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "postfix", "-c", file("etc"),
                  "start-fg"},
                 {kSmtpd, kPostscreen});
  }
  void TearDown() override {
    if (HasFailure()) std::fprintf(stderr, "---- postfix said ----\n%s", mail_log().c_str());
    Site::TearDown();
  }
  std::string mail_log() const { return read_file(file("mail.log")); }
  bool logged(const std::string& text) const {
    return wait_until([&] { return mail_log().find(text) != std::string::npos; });
  }
  // A whole session: a message for the mailbox.
  static void deliver(const TcpStream& client) {
    const auto expect = [&](const std::string& code) {
      std::string line;
      do line = client.recv_line();
      while (line.size() > 3 && line[3] == '-');
      ASSERT_EQ(line.substr(0, 3), code) << line;
    };
    expect("220");
    for (const char* command : {"EHLO client.example.net\r\n", "MAIL FROM:<a@example.org>\r\n",
                                "RCPT TO:<b@mailbox.example.net>\r\n"}) {
      client.send_all(command);
      expect("250");
    }
    client.send_all("DATA\r\n");
    expect("354");
    client.send_all("Subject: water\r\n\r\nAll of it.\r\n.\r\n");
    expect("250");
    client.send_all("QUIT\r\n");
    expect("221");
    EXPECT_EQ(client.recv_to_end(), End::fin);
  }
};

class PostfixLearns : public Postfix, public testing::WithParamInterface<const char*> {};
INSTANTIATE_TEST_SUITE_P(proxy_protocol, PostfixLearns, testing::Values("v1", "v2"),
                         [](const auto& tested) { return tested.param; });

TEST_P(PostfixLearns, TheClientInSmtpd) {
  start_edge(pass_through({kSmtpd}, GetParam()));
  deliver(connect(kEdgeV4, kSmtpd));
  EXPECT_TRUE(logged("connect from unknown[192.0.2.10]"));
  EXPECT_TRUE(logged("client=unknown[192.0.2.10]"));
  EXPECT_EQ(mail_log().find("198.51.100.1]"), std::string::npos);  // the edge is nobody's client
}

TEST_P(PostfixLearns, TheClientInPostscreen) {
  start_edge(pass_through({kPostscreen}, GetParam()));
  const TcpStream client = connect(kEdgeV4, kPostscreen);
  deliver(client);
  EXPECT_TRUE(
      logged("CONNECT from [192.0.2.10]:" + std::to_string(client.local().port) + " to [192.0.2.1]:587"));
  EXPECT_TRUE(logged("client=unknown[192.0.2.10]"));
}

}  // namespace
}  // namespace penstock::test
