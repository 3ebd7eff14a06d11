// SPDX-License-Identifier: Apache-2.0
#include "check/dialogue.h"

#include <gtest/gtest.h>

namespace penstock::check {
namespace {

// What we say to each thing a server says, "|" between; then the verdict.
std::string talk(Protocol protocol, const std::vector<std::string>& server, bool bytewise = false) {
  Dialogue d(protocol, "edge.example.net");
  std::string said;
  for (const std::string& words : server) {
    if (bytewise)
      for (const char c : words) d.received({&c, 1});
    else
      d.received(words);
    said += d.take_outgoing() + "|";
  }
  said += d.verdict() == Dialogue::Verdict::passed   ? "passed"
          : d.verdict() == Dialogue::Verdict::failed ? "failed: " + d.reason()
                                                     : "open";
  return said + (d.over() ? ", over" : "");
}

TEST(Dialogue, smtp) {
  for (const bool bytewise : {false, true}) {
    EXPECT_EQ(
        talk(Protocol::smtp,
             {"220-mx\r\n", "220 mx\r\n", "250-mx\r\n250-SIZE\r\n250 8BITMIME\r\n", "221 bye\r\n"}, bytewise),
        "|EHLO edge.example.net\r\n|QUIT\r\n||passed, over");
  }
  EXPECT_EQ(talk(Protocol::smtp, {"220\n", "250\n", "221\n"}),
            "EHLO edge.example.net\r\n|QUIT\r\n||passed, over");
  // A goodbye that is not understood changes nothing.
  EXPECT_EQ(talk(Protocol::smtp, {"220 mx\r\n", "250 mx\r\n", "what?\r\n"}),
            "EHLO edge.example.net\r\n|QUIT\r\n||passed, over");
}

TEST(Dialogue, smtp_that_does_not_serve) {
  EXPECT_EQ(talk(Protocol::smtp, {"421 4.7.0 too many connections\r\n"}),
            "|failed: smtp: 421 4.7.0 too many connections, over");
  EXPECT_EQ(talk(Protocol::smtp, {"554 away\r\n", "221 bye\r\n"}), "QUIT\r\n||failed: smtp: 554 away, over");
  EXPECT_EQ(talk(Protocol::smtp, {"220 mx\r\n", "500 what?\r\n", "221 bye\r\n"}),
            "EHLO edge.example.net\r\n|QUIT\r\n||failed: smtp: 500 what?, over");
  EXPECT_EQ(talk(Protocol::smtp, {"\r\n"}), "|failed: smtp: , over");
  EXPECT_EQ(talk(Protocol::smtp, {"220mx\r\n"}), "|failed: smtp: 220mx, over");
  EXPECT_EQ(talk(Protocol::smtp, {"22"}), "|open");
}

TEST(Dialogue, imap) {
  EXPECT_EQ(talk(Protocol::imap, {"* OK ready\r\n", "* BYE\r\n", "a1 OK\r\n"}),
            "a1 LOGOUT\r\n|||passed, over");
  EXPECT_EQ(talk(Protocol::imap, {"* PREAUTH root\r\n", "* 3 EXISTS\r\n* BYE\r\na1 OK\r\n"}),
            "a1 LOGOUT\r\n||passed, over");
  EXPECT_EQ(talk(Protocol::imap, {"* BYE full\r\n"}), "|failed: imap: * BYE full, over");
  EXPECT_EQ(talk(Protocol::imap, {"220 mx\r\n"}), "|failed: imap: 220 mx, over");
  // The PROXY header it did not expect has eaten our LOGOUT: once more, on a line of its own.
  EXPECT_EQ(talk(Protocol::imap, {"* OK ready\r\n", "* BAD what?\r\n", "* BYE\r\n", "a2 OK\r\n"}),
            "a1 LOGOUT\r\n|a2 LOGOUT\r\n|||failed: imap: * BAD what?, over");
}

TEST(Dialogue, by_greeting) {
  EXPECT_EQ(talk(Protocol::by_greeting, {"220 mx\r\n"}), "EHLO edge.example.net\r\n|open");
  EXPECT_EQ(talk(Protocol::by_greeting, {"* OK ready\r\n"}), "a1 LOGOUT\r\n|open");
  EXPECT_EQ(talk(Protocol::by_greeting, {"SSH-2.0-x\r\n"}), "|passed, over");
}

TEST(Dialogue, is_bounded_and_printable) {
  EXPECT_EQ(talk(Protocol::smtp, {std::string(kLineBytesMax, '2')}), "|open");
  EXPECT_EQ(talk(Protocol::smtp, {std::string(kLineBytesMax + 1, '2')}),
            "|failed: smtp: a line of more than 4096 bytes, over");
  std::string lines;
  while (lines.size() <= kDialogueBytesMax) lines += "220-more\r\n";
  EXPECT_EQ(talk(Protocol::smtp, {lines}), "|failed: smtp: more than 65536 bytes, over");
  lines.resize(kDialogueBytesMax - 2 * kLineBytesMax);  // however they come
  EXPECT_EQ(talk(Protocol::smtp, {lines}, true), "|open");
  EXPECT_EQ(talk(Protocol::imap, {"\x1b[2J\xff\n"}), R"(|failed: imap: \x1b[2J\xff, over)");
  const std::string reason = talk(Protocol::smtp, {"554 " + std::string(1000, 'x') + "\r\n"});
  EXPECT_LE(reason.size(), kShownBytesMax + 40);
}

TEST(Dialogue, says_goodbye_only_where_it_may) {
  Dialogue d(Protocol::smtp, "not a name");
  EXPECT_EQ(d.farewell(), "");  // not greeted
  d.received("220-mx\r\n");
  EXPECT_EQ(d.farewell(), "");  // not to the end
  d.received("220 mx\r\n");
  EXPECT_EQ(d.take_outgoing(), "EHLO penstock\r\n");
  EXPECT_EQ(d.farewell(), "QUIT\r\n");
  EXPECT_EQ(d.farewell(), "");  // once
}

}  // namespace
}  // namespace penstock::check
