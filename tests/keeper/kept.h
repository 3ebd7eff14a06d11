// SPDX-License-Identifier: Apache-2.0
// keeper/kept.h: scene.cc under a real keeper, and what can be seen of it from outside.
#pragma once
#include <csignal>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/fd.h"
#include "keeper/state.h"
#include "support/process.h"

namespace penstock::keeper::test {

using penstock::test::kPatience;
using penstock::test::milliseconds;
using penstock::test::Process;
using penstock::test::wait_until;

class Kept {
 public:
  // Starts version 1. The descriptors of `given` are there at the numbers that are its keys.
  explicit Kept(const std::string& starts, const std::vector<std::string>& timing = {},
                const std::map<std::string, std::string>& environment = {},
                const std::map<int, int>& given = {});
  ~Kept();
  Kept(const Kept&) = delete;
  Kept& operator=(const Kept&) = delete;

  Process& process() { return *process_; }
  State& state();                         // REQUIRES: the keeper has begun; the mapping is ours and stays
  void command(const std::string& line);  // to whichever worker reads it
  bool says(std::string_view line) { return process_->wait_for(line); }
  bool ready(uint64_t start);  // that worker, or a later one
  void kill_worker(int signal = SIGKILL);
  int exit_code() { return process_->wait_exit(); }
  // Waits for the answer.
  UpgradeResult upgrade(const std::string& path, milliseconds patience = kPatience);

 private:
  Fd commands_;
  std::optional<Process> process_;
  State* state_ = nullptr;
};

std::string scene(int version);                     // its path
std::map<int, std::string> descriptors(pid_t pid);  // number → what /proc says it is; pids of pidfds left out
std::set<pid_t> threads(pid_t pid);
std::string status_line(const std::string& task, const std::string& key);  // of /proc/TASK/status

}  // namespace penstock::keeper::test
