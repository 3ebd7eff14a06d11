// SPDX-License-Identifier: Apache-2.0
// One look at a real server, and what that server's own log makes of it.
#include "check/probe.h"

#include <signal.h>

#include <future>

#include "mail_site.h"
#include "support/lost_time.h"

namespace penstock::test {
namespace {

using check::Failure;
using check::Outcome;
using check::Stage;
using config::CheckType;
using config::ProxyProtocol;

class Probe : public MailSite {
 protected:
  void SetUp() override { ::signal(SIGPIPE, SIG_IGN); }
  void expect_quiet(const std::string& log) const {
    for (const char* complaint : {"lost connection", "improper command pipelining", "timeout", "warning:",
                                  "rror:", "invalid commands", "Connection closed", "Connection reset"})
      EXPECT_EQ(log.find(complaint), std::string::npos) << complaint << " in\n" << log;
  }
};

bool passed(const Outcome& o) {
  return o.ok && o.stage == Stage::passed && o.failure == Failure::none;
}

TEST_F(Probe, PostfixHasNothingToComplainAbout) {
  start_postfix();
  const Outcome plain = probe(order(kSmtp, CheckType::smtp));
  EXPECT_TRUE(passed(plain)) << plain.reason;
  EXPECT_EQ(plain.said, "220 mailbox.example.net ESMTP Postfix");
  EXPECT_EQ(plain.local->address.text(), kEdgeAtServers);
  for (const auto version : {ProxyProtocol::v1, ProxyProtocol::v2}) {
    EXPECT_TRUE(passed(probe(order(kSmtpProxy, CheckType::smtp, version, false))));
    EXPECT_TRUE(passed(probe(order(kPostscreenProxy, CheckType::smtp, version, false))));
  }
  EXPECT_TRUE(passed(probe(order(kSmtpProxy, CheckType::smtp, ProxyProtocol::v2, true))));
  EXPECT_TRUE(passed(probe(order(kPostscreenProxy, CheckType::smtp, ProxyProtocol::v2, true))));
  const Outcome tls = probe(order(kSmtps, CheckType::tls));
  EXPECT_TRUE(passed(tls)) << tls.reason;
  ASSERT_TRUE(tls.certificate);
  EXPECT_EQ(tls.certificate->subject, "CN=mailbox.example.net");
  EXPECT_EQ(tls.certificate->issuer, "CN=mailbox.example.net");
  EXPECT_TRUE(tls.certificate->self_signed);
  EXPECT_EQ(tls.certificate->days_left(std::chrono::system_clock::now()),
            1);  // made for 2 days, a moment ago
  const auto ended = [&] {
    const std::string log = mail_log();
    size_t count = 0;
    for (size_t at = log.find("ehlo=1 quit=1"); at != log.npos; at = log.find("ehlo=1 quit=1", at + 1))
      count++;
    return count;
  };
  EXPECT_TRUE(wait_until([&] { return ended() == 8; })) << ended();
  expect_quiet(mail_log());
}

// Version 1 has no LOCAL: UNKNOWN takes its place, which postfix 3.7 does not take ("bad or missing protocol
// type").
TEST_F(Probe, PostfixRefusesUnknownOfVersion1) {
  start_postfix();
  const Outcome o = probe(order(kSmtpProxy, CheckType::smtp, ProxyProtocol::v1, true));
  EXPECT_EQ(o.failure, Failure::answer);
  EXPECT_EQ(o.reason, "smtp: 421 4.3.0 mailbox.example.net Server local error");
}

TEST_F(Probe, DovecotSaysThatItWasLoggedOutOf) {
  start_dovecot();
  EXPECT_TRUE(passed(probe(order(kImap, CheckType::imap))));
  EXPECT_TRUE(passed(probe(order(kImaps, CheckType::tls))));
  for (const auto version : {ProxyProtocol::v1, ProxyProtocol::v2}) {
    for (const bool local : {false, true}) {
      EXPECT_TRUE(passed(probe(order(kImapProxy, CheckType::imap, version, local))));
      EXPECT_TRUE(passed(probe(order(kImapsProxy, CheckType::tls, version, local))));
    }
  }
  // All there is to see of it; every "Disconnected:" of this log is that one.
  constexpr const char* kSaid = "Disconnected: Aborted login by logging out (no auth attempts in";  // 0 secs
  const auto count = [&](const std::string& text) {
    const std::string log = dovecot_->output();
    size_t n = 0;
    for (size_t at = log.find(text); at != log.npos; at = log.find(text, at + 1)) n++;
    return n;
  };
  EXPECT_TRUE(wait_until([&] { return count(kSaid) == 10; })) << count(kSaid);
  EXPECT_EQ(count("Disconnected"), 10u);
  expect_quiet(dovecot_->output());
}

TEST_F(Probe, NginxAndHaproxyTakeLocal) {
  start_postfix();
  start_nginx();
  start_haproxy();
  const Outcome https = probe(order(kHttps, CheckType::tls));
  ASSERT_TRUE(passed(https)) << https.reason;
  EXPECT_EQ(https.certificate->subject, "CN=www.example.net");
  EXPECT_TRUE(passed(probe(order(kHttp, CheckType::tcp))));
  for (const auto version : {ProxyProtocol::v1, ProxyProtocol::v2}) {
    for (const bool local : {false, true}) {
      EXPECT_TRUE(passed(probe(order(kHttpsProxy, CheckType::tls, version, local))));
      EXPECT_TRUE(passed(probe(order(kHaproxy, CheckType::smtp, version, local))));
    }
  }
  for (const char* complaint : {"broken header", "[error]", "reset by peer"})
    EXPECT_EQ(nginx_->output().find(complaint), std::string::npos) << nginx_->output();
  EXPECT_TRUE(mail_logged("ehlo=1 quit=1"));
  expect_quiet(mail_log());
}

TEST_F(Probe, OpensslShowsTheNameItWasAskedFor) {
  for (const char* name : {"a.example.net", "b.example.net"}) make_certificate(name);
  start_server({"openssl", "s_server", "-www", "-accept", "198.51.100.25:4433", "-servername",
                "b.example.net", "-cert", file("a.example.net.pem"), "-key", file("a.example.net.key"),
                "-cert2", file("b.example.net.pem"), "-key2", file("b.example.net.key")},
               {4433});
  check::Order o = order(4433, CheckType::tls);
  Outcome shown = probe(o);
  ASSERT_TRUE(shown.certificate) << shown.reason;
  EXPECT_EQ(shown.certificate->subject, "CN=a.example.net");
  o.sni = "b.example.net";
  shown = probe(o);
  ASSERT_TRUE(shown.certificate) << shown.reason;
  EXPECT_EQ(shown.certificate->subject, "CN=b.example.net");
}

TEST_F(Probe, SaysWhyNobodyIsThere) {
  make_void();
  Outcome o = probe(order(9, CheckType::tcp));
  EXPECT_EQ(o.failure, Failure::refused);
  EXPECT_EQ(o.reason, "connection refused");
  EXPECT_EQ(o.stage, Stage::dialing);
  check::Order blackholed = order(25, CheckType::smtp);
  blackholed.to = at(kVoid, 25);
  blackholed.timeout = milliseconds(300);
  const LostTime lost;
  o = probe(blackholed);
  EXPECT_EQ(o.failure, Failure::timeout);
  EXPECT_EQ(o.reason, "timeout: no answer to the dial");
  EXPECT_GE(o.took.count(), 300);
  EXPECT_LT(o.took, 2s + lost.so_far());
  check::Order elsewhere = order(25, CheckType::smtp);
  elsewhere.source = IpAddress::parse("192.0.2.77");
  o = probe(elsewhere);
  EXPECT_EQ(o.failure, Failure::local);
  EXPECT_EQ(o.reason, "source 192.0.2.77: cannot assign requested address");
  elsewhere.source = IpAddress::parse("2001:db8::1");
  EXPECT_EQ(probe(elsewhere).reason, "the source address 2001:db8::1 is of the other family");
  elsewhere.source = IpAddress::parse("192.0.2.1");  // ours, of another device
  elsewhere.to = at(kServerV4, 9);
  elsewhere.timeout = milliseconds(300);
  EXPECT_EQ(probe(elsewhere).failure, Failure::timeout);  // the server has no way back there
}

// What a server of the test's own heard, and how the connection ended.
struct Seen {
  Outcome outcome;
  std::string heard;
  End end = End::reset;
};

class Misbehaving : public Probe {
 protected:
  static constexpr milliseconds kUnreached{15'000}, kReached{2'000};  // even where dialing takes its time

  // It says this at once, and nothing after.
  Seen against(const std::string& says, CheckType type, bool close = false,
               milliseconds timeout = kUnreached) {
    const Netns::Inside inside(servers_);
    TcpListener listener(at(kServerV4, 7));
    check::Order o = order(7, type);
    o.timeout = timeout;
    auto outcome = std::async(std::launch::async, [&] { return probe(o); });
    TcpStream stream = listener.accept();
    Seen seen;
    stream.send_all(says);
    if (close) stream.half_close();
    seen.end = stream.recv_to_end(&seen.heard);
    stream.close();
    seen.outcome = outcome.get();
    return seen;
  }
};

TEST_F(Misbehaving, ABannerThatNeverComes) {
  for (const auto type : {CheckType::smtp, CheckType::imap}) {
    const Seen seen = against("", type, false, kReached);
    EXPECT_EQ(seen.outcome.failure, Failure::timeout);
    EXPECT_EQ(seen.outcome.reason, "timeout: connected, but the server says nothing");
    EXPECT_EQ(seen.heard, "");  // who has not greeted is told nothing
    EXPECT_EQ(seen.end, End::fin);
  }
  const Seen seen = against("", CheckType::tls, false, kReached);
  EXPECT_EQ(seen.outcome.reason, "timeout: connected, but the TLS handshake does not end");
  EXPECT_EQ(seen.end, End::fin);
}

// It failed the check, but may only be loaded.
TEST_F(Misbehaving, ABannerThatComesLate) {
  const Netns::Inside inside(servers_);
  TcpListener listener(at(kServerV4, 7));
  check::Order o = order(7, CheckType::smtp);
  o.timeout = kReached;
  o.late = milliseconds(10'000);
  auto outcome = std::async(std::launch::async, [&] { return probe(o); });
  TcpStream stream = listener.accept();
  pollfd readable{stream.fd(), POLLIN, 0};
  EXPECT_EQ(poll(&readable, 1, 5'000), 0) << "it has hung up";
  stream.send_all("220 mx\r\n");
  EXPECT_TRUE(stream.recv_line().starts_with("EHLO "));
  stream.send_all("250 mx\r\n");
  EXPECT_EQ(stream.recv_line(), "QUIT\r");
  stream.send_all("221 bye\r\n");
  std::string more;
  EXPECT_EQ(stream.recv_to_end(&more), End::fin);
  EXPECT_EQ(more, "");
  stream.close();
  const Outcome o_late = outcome.get();
  EXPECT_FALSE(o_late.ok);
  EXPECT_EQ(o_late.reason, "timeout: connected, but the server says nothing");
}

TEST_F(Misbehaving, AServerThatDoesNotWantUs) {
  Seen seen = against("421 4.7.0 too many connections\r\n", CheckType::smtp, true);
  EXPECT_EQ(seen.outcome.failure, Failure::answer);
  EXPECT_EQ(seen.outcome.reason, "smtp: 421 4.7.0 too many connections");
  EXPECT_EQ(seen.heard, "");  // it closes by itself
  EXPECT_EQ(seen.end, End::fin);
  seen = against("554-go\r\n554 away\r\n", CheckType::smtp);
  EXPECT_EQ(seen.outcome.reason, "smtp: 554 away");
  EXPECT_EQ(seen.heard, "QUIT\r\n");
  seen = against("* BYE too many\r\n", CheckType::imap, true);
  EXPECT_EQ(seen.outcome.reason, "imap: * BYE too many");
  EXPECT_EQ(seen.heard, "");
  seen = against("220 mx\r\n", CheckType::smtp, true);
  EXPECT_EQ(seen.outcome.reason, "the server closed the connection after: 220 mx");
  seen = against("", CheckType::smtp, true);
  EXPECT_EQ(seen.outcome.failure, Failure::closed);
  EXPECT_EQ(seen.outcome.reason, "the server closed the connection before it said anything");
}

TEST_F(Misbehaving, MidDialogueItIsStillToldGoodbye) {
  const Seen seen = against("220 mx\r\n", CheckType::smtp, false, kReached);  // no answer to EHLO
  EXPECT_EQ(seen.outcome.failure, Failure::timeout);
  EXPECT_EQ(seen.outcome.reason, "timeout: it said nothing more after: 220 mx");
  EXPECT_TRUE(seen.heard.starts_with("EHLO ") && seen.heard.ends_with("\r\nQUIT\r\n")) << seen.heard;
  EXPECT_EQ(seen.end, End::fin);
}

TEST_F(Misbehaving, Garbage) {
  Seen seen = against("\x1b[2J\xff\"\r\n", CheckType::smtp);
  EXPECT_EQ(seen.outcome.reason, R"(smtp: \x1b[2J\xff\x22)");
  EXPECT_EQ(seen.end, End::fin);
  EXPECT_EQ(against("HTTP/1.1 400\r\n", CheckType::imap).outcome.reason, "imap: HTTP/1.1 400");
  const Outcome tls = against("220 mx\r\n", CheckType::tls).outcome;
  EXPECT_EQ(tls.failure, Failure::tls);
  EXPECT_EQ(tls.reason, "tls: wrong version number");
}

TEST_F(Misbehaving, AnEndlessLine) {
  const Seen seen = against(std::string(60'000, 'x'), CheckType::smtp);
  EXPECT_EQ(seen.outcome.reason, "smtp: a line of more than 4096 bytes");
  EXPECT_EQ(seen.end, End::fin);
  std::string greeting;
  while (greeting.size() < 80'000) greeting += "220-and one thing more\r\n";
  EXPECT_EQ(against(greeting, CheckType::smtp).outcome.reason, "smtp: more than 65536 bytes");
}

// What is unread at a close() would make it a reset.
TEST_F(Misbehaving, AGreetingNobodyAskedFor) {
  const Seen seen = against("220 mx, and a word that a tcp check does not wait for\r\n", CheckType::tcp);
  EXPECT_TRUE(passed(seen.outcome));
  EXPECT_EQ(seen.heard, "");
  EXPECT_EQ(seen.end, End::fin);
}

TEST_F(Misbehaving, AReset) {
  const Netns::Inside inside(servers_);
  TcpListener listener(at(kServerV4, 7));
  auto outcome = std::async(std::launch::async, [&] { return probe(order(7, CheckType::imap)); });
  listener.accept().reset();
  EXPECT_EQ(outcome.get().failure, Failure::reset);
}

}  // namespace
}  // namespace penstock::test
