// SPDX-License-Identifier: Apache-2.0
// tools/penstock/commands.h: what the operator's command can do. Each prints its result to stdout and what
// went wrong to stderr, and returns the exit code.
#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace penstock::command {

enum Exit { kDone = 0, kFailed = 1, kBadUsage = 2 };

struct Daemon {
  std::string socket = "/run/penstock/admin.sock";
  bool json = false;  // print its answer as it is, one line
};

// Offline. kBadUsage when the configuration has an error.
int check(const std::string& file, const std::optional<std::string>& env_file, bool json);

struct Explain {
  std::string file;
  std::optional<std::string> env_file;
  std::string to, from;            // "ADDRESS:PORT" or ":PORT"; an address, with or without port
  std::optional<std::string> via;  // the trusted proxy that says `from` is the client
  std::string interface;           // the device the client comes in by; empty: any
  std::string sni;                 // empty: none
  std::vector<std::string> alpn;
  bool json = false;
};
// Offline, but for DNS: what the daemon would do with this client. kFailed when nothing listens there or the
// client is turned away, kBadUsage also when the configuration has an error.
int explain(const Explain& what);

// Becomes `penstockd --probe`; returns only when it cannot.
int probe(bool json);

int status(const Daemon& daemon);

struct FlowFilter {
  std::optional<std::string> listener, client;  // `client`: a CIDR
};
int flows(const Daemon& daemon, const FlowFilter& filter);

// Resets those flows. kFailed when one of them is not there; the others are reset all the same.
int kill(const Daemon& daemon, const std::vector<std::string>& cookies);

// The whole configuration anew. kBadUsage when it has a mistake.
int reload(const Daemon& daemon);

// Another program in the place of the one that runs; empty: the one at the same path. kFailed when that is
// back.
int upgrade(const Daemon& daemon, const std::string& program, unsigned patience_s);

// No new flows for an upstream, or one of its servers ("mailbox/192.0.2.1:25"); or again.
int drain(const Daemon& daemon, const std::string& name);
int resume(const Daemon& daemon, const std::string& name);

int lane(const Daemon& daemon, const std::string& cookie, const std::string& direction,
         const std::string& to);

struct Examined {
  std::string upstream, server;  // `server` empty: the first one
  std::optional<unsigned> port;
};
// kFailed unless the server expects what it gets.
int doctor(const Daemon& daemon, const Examined& whom);

// To stdout; main() finds out whether it arrived.
void print(std::string_view text);

// "penstock: message" on stderr; returns kFailed.
int fail(const std::string& message);

}  // namespace penstock::command
