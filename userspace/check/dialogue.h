// SPDX-License-Identifier: Apache-2.0
// check/dialogue.h: what is said to an SMTP (RFC 5321) or IMAP (RFC 3501) server to see that it serves, and
// how to leave without being rude. A pure machine, bytes in and bytes out: no fd, no clock. Any bytes are
// safe. Kept true by tests/unit/dialogue_test.cc and tests/fuzz/dialogue_fuzz.cc.
#pragma once
#include <cstddef>
#include <string>
#include <string_view>

namespace penstock::check {

inline constexpr size_t kLineBytesMax = 4096;       // RFC 5321 4.5.3.1.5 says 512, servers say more
inline constexpr size_t kDialogueBytesMax = 65536;  // all a server may say in one check
inline constexpr size_t kShownBytesMax = 120;       // of a line, in a reason

enum class Protocol {
  by_greeting,  // what the server's first line tells; one that is neither below ends the dialogue as `passed`
  smtp,         // 220, EHLO, 250, QUIT, 221
  imap,         // * OK or * PREAUTH, LOGOUT, * BYE, OK
};

class Dialogue {
 public:
  // `hostname`: for EHLO; what cannot be a host name becomes "penstock".
  Dialogue(Protocol protocol, std::string_view hostname);

  void received(std::string_view bytes);
  std::string take_outgoing();  // to be sent now; empty: nothing
  // What may be said when the check ends here, whatever for: QUIT or LOGOUT, or nothing where the server has
  // not greeted (RFC 5321 3.1: a client waits) or was told already. Once.
  std::string farewell();

  enum class Verdict { open, passed, failed };
  Verdict verdict() const { return verdict_; }
  // Once failed: "smtp: 421 4.7.0 too many connections", printable, one line.
  const std::string& reason() const { return reason_; }
  bool over() const { return step_ == Step::over; }  // nothing more is expected of the server
  bool greeted() const { return !first_line_.empty(); }
  const std::string& first_line() const { return first_line_; }  // printable; empty: no whole line yet
  Protocol protocol() const { return protocol_; }                // by_greeting: not told yet, or neither

 private:
  enum class Step { greeting, hello, leaving, over };
  void on_line(std::string_view line);
  void on_smtp(std::string_view line);
  void on_imap(std::string_view line);
  void pass();
  void fail(std::string_view what);  // the line, or words of our own
  void fail_with_line(std::string_view line);
  const char* name() const;

  Protocol protocol_;
  Step step_ = Step::greeting;
  Verdict verdict_ = Verdict::open;
  bool may_speak_ = false;  // the greeting is complete
  bool left_ = false;       // QUIT or LOGOUT was said, and nothing has shown that it was misread
  std::string hello_, line_, outgoing_, reason_, first_line_;
  size_t received_bytes_ = 0;
};

}  // namespace penstock::check
