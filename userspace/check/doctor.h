// SPDX-License-Identifier: Apache-2.0
// check/doctor.h: does a server expect the PROXY header that its upstream sends? Found by dialling it, the
// way that is configured first, then the others until one is served; at most kDialsMax dials, kBetweenDials
// apart, each ended politely. README.md has the verdicts; tests/check/doctor_test.cc holds them against real
// servers.
#pragma once
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "check/probe.h"
#include "config/config.h"
#include "dns/resolver.h"

namespace penstock::check {

inline constexpr size_t kDialsMax = 4;
inline constexpr milliseconds kBetweenDials{2000};
// A dial. Longer than servers wait for a PROXY header (postfix 5 s, dovecot 3 s) and postscreen for a client
// that talks too early (6 s).
inline constexpr milliseconds kDialMax{8000};
inline constexpr milliseconds kQuietMax{2500};  // for a server of which nothing is known to speak first

const char* text(config::ProxyProtocol proxy_protocol);   // as the configuration has it
const char* text(std::optional<config::CheckType> type);  // unset: "greeting"

// Whom to look at, and what is configured.
struct Patient {
  std::string upstream, server;  // as in the configuration
  std::string host;
  std::optional<IpAddress> address;
  uint16_t port = 0;
  config::ProxyProtocol proxy_protocol = config::ProxyProtocol::off;
  std::optional<config::CheckType> type;  // unset: what the server's greeting tells
  bool local_too = false;                 // its checks send LOCAL: that too must be understood
  std::string sni;
  config::Family family = config::Family::any;
  std::optional<IpAddress> source;
};

// `config`: with the servers of `srv` upstreams. `server`: its text, or empty for the first one. `port`:
// where the server itself has none; else that of the check, or the first one a listener of this upstream has.
// An Error names what there is.
Result<Patient> find_patient(const config::Config& config, std::string_view upstream, std::string_view server,
                             std::optional<uint16_t> port);

struct Dial {
  config::ProxyProtocol header = config::ProxyProtocol::off;
  bool local = false;
  Outcome outcome;
};

enum class Verdict {
  as_configured,  // served the way flows dial
  mismatch,       // served another way: `expects`
  local_refused,  // flows are served, checks with LOCAL are not
  undecided,      // it objects to nothing and says nothing, so nothing is known
  unserved,       // connected, but served in no way
  unreachable,    // no dial connected, or the name has no address
};
const char* text(Verdict verdict);

struct Examination {
  Patient patient;
  std::vector<Dial> dials;
  Verdict verdict = Verdict::unreachable;
  std::optional<config::ProxyProtocol> expects;
  std::string says;                  // the verdict in a sentence, printable
  std::string advice;                // what to change; empty: nothing
  std::optional<IpAddress> trusted;  // the source address of our dials: whom the server must trust
};

// What follows from the dials; pure. Fills verdict, expects, says, advice, trusted.
void conclude(Examination* e);

// The way of the next dial; nothing: it is decided, or there is none left. Pure.
struct Way {
  config::ProxyProtocol header;
  bool local;
};
std::optional<Way> next_way(const Examination& e);

class Doctor {
 public:
  explicit Doctor(dns::Resolver& resolver);  // `resolver` outlives it
  // An examination under way is given up: its `done` runs with what is known.
  ~Doctor();
  Doctor(const Doctor&) = delete;
  Doctor& operator=(const Doctor&) = delete;

  // One at a time: an Error says who is being examined. `done` runs once, on a thread of its own.
  // Thread-safe.
  Status examine(Patient patient, std::function<void(const Examination&)> done);

 private:
  struct Visit;
  dns::Resolver& resolver_;
  std::mutex mutex_;
  std::unique_ptr<Visit> visit_;  // guarded by mutex_: the one under way, or the last one
};

}  // namespace penstock::check
