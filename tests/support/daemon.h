// SPDX-License-Identifier: Apache-2.0
// support/daemon.h: a penstockd of its own: temporary directory, admin socket, pins. It starts in the
// namespace of the calling thread.
#pragma once
#include <chrono>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "support/process.h"
#include "support/wait.h"

namespace penstock::test {

using Json = nlohmann::json;

std::string daemon_program();   // $PENSTOCKD, else the one of this build
std::string command_program();  // $PENSTOCK, else the one of this build

std::string read_file(const std::string& path);  // empty when it is not there

class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::string& path() const { return path_; }
  std::string write(const std::string& name, const std::string& text,
                    mode_t mode = 0644) const;  // returns the file's path

 private:
  std::string path_;
};

struct DaemonOptions {
  std::string engine = "auto";
  unsigned threads = 2;
  unsigned max_flows = 1024;
  std::string daemon_keys;  // more keys of [daemon]
  std::string http;         // admin.http
  std::string pin;          // empty: one of its own
  std::string tables;  // more TOML: upstreams and listeners, and tables other than [daemon] [admin] [bpf]
  ProcessOptions process;
};

struct Descriptors {
  unsigned sockets = 0, pipes = 0, others = 0;
  bool operator==(const Descriptors&) const = default;
};

class Daemon {
 public:
  explicit Daemon(
      const DaemonOptions& options);  // returns when it serves; throws with its log when it does not
  ~Daemon();

  Json ask(const Json& request) const;  // one line to the admin socket, one line back
  Json status() const { return ask({{"command", "status"}}); }
  Json flows() const { return ask({{"command", "flows"}}).at("flows"); }
  Json totals() const { return status().at("totals"); }
  uint64_t closed(const std::string& reason) const;

  // The only live flow, once it is in this phase; throws when that does not come.
  Json wait_flow(const std::string& phase = "open") const;
  bool wait_lane(const std::string& direction, const std::string& lane, milliseconds limit = kPatience) const;
  bool wait_active(uint64_t flows, milliseconds limit = kPatience) const;
  // Orders the lane of one direction of a flow; empty, or why it was refused.
  std::string order_lane(const std::string& cookie, const std::string& direction,
                         const std::string& lane) const;

  std::string engine() const { return status().at("engine"); }
  Descriptors descriptors() const;
  // How many live flows the pinned map `flows` shows; nullopt without pins (engine io_uring on a host without
  // BPF).
  std::optional<size_t> pinned_flows() const;
  std::string pin() const { return pin_; }
  std::string admin_socket() const { return directory_.path() + "/admin.sock"; }
  std::string crash_directory() const { return directory_.path() + "/crashes"; }
  std::string config_file() const { return directory_.path() + "/penstock.toml"; }
  int stop();                               // SIGTERM; the exit code
  Process& process() { return *process_; }  // the keeper; it has every descriptor
  // Once another worker than this one serves.
  bool wait_worker_after(pid_t before) const;
  pid_t worker() const { return status().at("worker").at("pid"); }
  std::string log() const { return process_->output(); }

 private:
  TempDir directory_;
  std::string pin_;
  std::unique_ptr<Process> process_;
};

}  // namespace penstock::test
