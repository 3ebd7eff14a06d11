// SPDX-License-Identifier: Apache-2.0
#include "check/dialogue.h"

#include <algorithm>
#include <utility>

#include "base/log.h"

namespace penstock::check {
namespace {

constexpr size_t kHostnameBytesMax = 253;

bool is_hostname(std::string_view text) {
  return !text.empty() && text.size() <= kHostnameBytesMax &&
         std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
                  c == '.';
         });
}

// RFC 5321 4.2: three digits, then the end, a blank or '-'.
bool is_reply(std::string_view line) {
  auto digit = [](char c) { return c >= '0' && c <= '9'; };
  return line.size() >= 3 && std::all_of(line.begin(), line.begin() + 3, digit) &&
         (line.size() == 3 || line[3] == ' ' || line[3] == '-');
}

bool is_last(std::string_view reply) {
  return reply.size() == 3 || reply[3] != '-';
}

}  // namespace

Dialogue::Dialogue(Protocol protocol, std::string_view hostname)
    : protocol_(protocol), hello_(is_hostname(hostname) ? hostname : "penstock") {}

void Dialogue::received(std::string_view bytes) {
  while (!bytes.empty() && step_ != Step::over) {
    const size_t end = bytes.find('\n');
    const std::string_view part = bytes.substr(0, end);
    received_bytes_ += part.size() + (end == bytes.npos ? 0 : 1);
    if (line_.size() + part.size() > kLineBytesMax)
      return fail("a line of more than " + std::to_string(kLineBytesMax) + " bytes");
    if (received_bytes_ > kDialogueBytesMax)
      return fail("more than " + std::to_string(kDialogueBytesMax) + " bytes");
    line_ += part;
    if (end == bytes.npos) return;
    bytes.remove_prefix(end + 1);
    if (line_.ends_with('\r')) line_.pop_back();
    on_line(std::exchange(line_, {}));
  }
}

void Dialogue::on_line(std::string_view line) {
  if (first_line_.empty()) first_line_ = line.empty() ? "\"\"" : log::escaped(line, kShownBytesMax);
  if (protocol_ == Protocol::by_greeting) {
    if (line.starts_with("220 ") || line.starts_with("220-") || line == "220")
      protocol_ = Protocol::smtp;
    else if (line.starts_with("* OK") || line.starts_with("* PREAUTH"))
      protocol_ = Protocol::imap;
    else {
      pass();
      step_ = Step::over;
      return;
    }
  }
  protocol_ == Protocol::smtp ? on_smtp(line) : on_imap(line);
}

void Dialogue::on_smtp(std::string_view line) {
  if (!is_reply(line)) return step_ == Step::leaving ? void(step_ = Step::over) : fail_with_line(line);
  if (!is_last(line)) return;
  if (step_ == Step::greeting) may_speak_ = true;
  if (step_ == Step::leaving) {
    step_ = Step::over;
  } else if (!line.starts_with(step_ == Step::greeting ? "220" : "250")) {
    if (line.starts_with("421")) left_ = true;  // RFC 5321 3.8: it closes by itself
    fail_with_line(line);
  } else if (step_ == Step::greeting) {
    outgoing_ += "EHLO " + hello_ + "\r\n";
    step_ = Step::hello;
  } else {
    pass();
    outgoing_ += farewell();
  }
}

void Dialogue::on_imap(std::string_view line) {
  switch (step_) {
    case Step::greeting:
      if (!line.starts_with("* OK") && !line.starts_with("* PREAUTH")) {
        left_ = line.starts_with("* BYE");  // RFC 3501 7.1.5: it closes by itself
        return fail_with_line(line);
      }
      may_speak_ = true;
      step_ = Step::hello;
      outgoing_ += farewell();
      return;
    case Step::hello:
      if (line.starts_with("* BYE")) return pass();
      if (line.starts_with("* ") && !line.starts_with("* BAD") && !line.starts_with("* NO")) return;
      // A server that got a PROXY header as a command read our LOGOUT as the rest of it.
      left_ = false;
      return fail_with_line(line);
    case Step::leaving:
      if (!line.starts_with("* ")) step_ = Step::over;
      return;
    case Step::over:
      return;
  }
}

std::string Dialogue::take_outgoing() {
  return std::exchange(outgoing_, {});
}

std::string Dialogue::farewell() {
  if (!may_speak_ || std::exchange(left_, true)) return {};
  return protocol_ == Protocol::smtp   ? "QUIT\r\n"
         : verdict_ == Verdict::failed ? "a2 LOGOUT\r\n"
                                       : "a1 LOGOUT\r\n";
}

void Dialogue::pass() {
  verdict_ = Verdict::passed;
  step_ = Step::leaving;
}

void Dialogue::fail_with_line(std::string_view line) {
  fail(log::escaped(line, kShownBytesMax));
}

void Dialogue::fail(std::string_view what) {
  // What goes wrong while leaving changes nothing: it served.
  if (verdict_ == Verdict::open) {
    verdict_ = Verdict::failed;
    reason_ = std::string(name()) + ": " + std::string(what);
  }
  step_ = left_ || !may_speak_ ? Step::over : Step::leaving;
  outgoing_ += farewell();
}

const char* Dialogue::name() const {
  switch (protocol_) {
    case Protocol::by_greeting:
      return "greeting";
    case Protocol::smtp:
      return "smtp";
    case Protocol::imap:
      return "imap";
  }
  return "";
}

}  // namespace penstock::check
