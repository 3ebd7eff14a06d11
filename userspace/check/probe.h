// SPDX-License-Identifier: Apache-2.0
// check/probe.h: one look at one address of a server: dial, PROXY header, a few words, a polite end. Never
// blocks; whoever owns it polls and calls advance(). It leaves as a client would: QUIT, LOGOUT or
// close_notify where that may be said, FIN, then the server's own FIN or kPartingMax, so that nothing is
// reset and no server has cause to ban us. REQUIRES: SIGPIPE is ignored. Not thread-safe. Kept true by
// tests/check/probe_test.cc, against real servers.
#pragma once
#include <poll.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "base/endpoint.h"
#include "base/fd.h"
#include "check/certificate.h"
#include "check/dialogue.h"
#include "check/tls_stream.h"
#include "config/config.h"

namespace penstock::check {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// How long a server may take to answer our goodbye, and again to send its FIN; and how long one that has
// shaken hands may take to greet: a mail server must be told QUIT or LOGOUT behind TLS too.
inline constexpr milliseconds kPartingMax{1000};

struct Order {
  Endpoint to;
  std::optional<IpAddress> source;
  config::ProxyProtocol proxy_protocol = config::ProxyProtocol::off;
  bool local = true;  // the header is LOCAL (v1: UNKNOWN); else it tells our socket's own two addresses
  // Unset: what the server's greeting tells; for one that says nothing until the timeout that is no failure.
  std::optional<config::CheckType> type = config::CheckType::tcp;
  std::string sni;  // of type tls; empty: none
  milliseconds timeout{5000};
  // For so long after it a server that was too slow to greet, or to shake hands, is still told goodbye: it
  // may be loaded, and who hangs up on it then looks like an attacker in its log.
  milliseconds late{0};
};

enum class Stage { dialing, greeting, dialogue, handshake, passed };  // where the verdict fell
const char* text(Stage stage);

// Why a check failed, in one word that does not change. text() is what JSON says.
enum class Failure {
  none,
  resolve,      // the name has no address
  local,        // our side: descriptors, source address
  refused,      // RST in answer to our SYN
  unreachable,  // no route, or a router or firewall says so
  timeout,      // see the stage
  reset,        // connected, then RST
  closed,       // connected, then FIN before the server served
  answer,       // it said something else than a server that serves
  tls,          // the handshake failed
};
const char* text(Failure failure);

struct Outcome {
  bool ok = false;
  Failure failure = Failure::none;
  bool starved = false;  // for want of a descriptor, a port or memory it was not even tried
  std::string reason;    // empty when ok; else one printable line: "smtp: 421 4.7.0 too many connections"
  Stage stage = Stage::dialing;
  Endpoint address;                        // dialled
  std::optional<Endpoint> local;           // our own, once connected: whom the server must trust
  std::string said;                        // its first line, printable; empty: none
  std::optional<Certificate> certificate;  // of type tls
  milliseconds took{0};                    // from the dial to the verdict
};

class Probe {
 public:
  Probe(Order order, Clock::time_point now);
  Probe(const Probe&) = delete;
  Probe& operator=(const Probe&) = delete;

  bool decided() const { return decided_; }            // the outcome is final; we may still be leaving
  const Outcome& outcome() const { return outcome_; }  // REQUIRES: decided()
  bool done() const { return step_ == Step::done; }    // the socket is closed

  pollfd wanted() const;  // REQUIRES: !done()
  Clock::time_point deadline() const { return deadline_; }
  void advance(Clock::time_point now);  // after poll() saw what was wanted, or once the deadline has passed
  void leave(Clock::time_point now);    // now, whatever it is doing; undecided it stays so

 private:
  enum class Step { dialing, sending_header, talking, shaking_hands, parting, finished, done };

  void dial(Clock::time_point now);
  void fail_to_dial(int error, Clock::time_point now);
  void on_connected(Clock::time_point now);
  void begin_service(Clock::time_point now);
  void talk(Clock::time_point now);
  void shake_hands(Clock::time_point now);
  void drain();
  ssize_t receive(std::span<char> out);
  void on_deadline(Clock::time_point now);
  bool flush();
  void pass(Clock::time_point now);
  void fail(Failure failure, std::string reason, Clock::time_point now);
  void decide(Clock::time_point now);
  void begin_parting(Clock::time_point now);
  void finish(Clock::time_point now);
  Stage stage() const;

  Order order_;
  Outcome outcome_;
  bool decided_ = false;
  Step step_ = Step::dialing;
  Clock::time_point started_, deadline_;
  Fd fd_;
  std::string outgoing_;
  std::optional<Dialogue> dialogue_;
  std::optional<TlsStream> tls_;
  bool tls_wants_write_ = false;  // of its handshake
  bool tls_open_ = false;         // the handshake is done
  bool late_ = false;             // failed for being slow, and waited for all the same
  bool leaving_ = false;
  size_t drained_bytes_ = 0;
};

}  // namespace penstock::check
