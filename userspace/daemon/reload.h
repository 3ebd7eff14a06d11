// SPDX-License-Identifier: Apache-2.0
// daemon/reload.h: a new configuration, penstock.env included, takes the place of the old one while flows go
// on, or nothing changes and the answer says why. Asked for by SIGHUP and by `penstock reload`.
// tests/netns/reload_test.cc.
#pragma once
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "base/result.h"
#include "config/config.h"
#include "daemon/daemon.h"
#include "daemon/json.h"

namespace penstock::daemon {

// Keys in which the two differ and that only a start reads: "daemon.threads", ...
std::vector<std::string> needs_restart(const config::Config& running, const config::Config& wanted);

class Reload {
 public:
  // Puts a configuration to work; an error means that it changed nothing. What could not be had but is tried
  // again (a port in use) is returned, a sentence each.
  using Apply = std::function<Result<std::vector<std::string>>(const config::Config&, const config::Source&)>;

  // `reloads`: so far, by workers before this one.
  Reload(Arguments arguments, config::Config started_with, uint64_t reloads, Apply apply);

  // {"reloaded": true, "warnings": […], "waiting": […], "pending": […]}, or {"reloaded": false, "reason": …,
  // "diagnostics": […]}. Logged in either case. Thread-safe: one after the other.
  Json run();
  std::function<void()> before, after;  // of each
  void refuse(std::string why);         // from now on
  // As long as it is held, none runs.
  std::unique_lock<std::mutex> exclude() { return std::unique_lock(running_); }
  // Another worker put it to work. What it was refused before that is forgotten.
  void go_on(const config::Config& current);
  // For status and metrics: the file, its generation (1: of the start) and when it was read, how often since
  // the start, when and why the last attempt failed, how many did, which keys wait for a restart.
  Json state() const;

 private:
  Json read_and_apply();

  const Arguments arguments_;
  const config::Config started_with_;
  const Apply apply_;
  std::mutex running_;
  mutable std::mutex mutex_;  // of what follows
  std::string refusal_, error_;
  std::vector<std::string> pending_;
  double loaded_unix_s_, refused_unix_s_ = 0;
  uint64_t reloads_, refused_ = 0;
};

}  // namespace penstock::daemon
