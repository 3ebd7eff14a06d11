// SPDX-License-Identifier: Apache-2.0
#include "keeper/kept.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <stdexcept>

#include "keeper/scene.h"

namespace penstock::keeper::test {

Kept::Kept(const std::string& starts, const std::vector<std::string>& timing,
           const std::map<std::string, std::string>& environment, const std::map<int, int>& given) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC)) throw std::runtime_error("pipe2");
  Fd read_end(ends[0]);
  commands_.reset(ends[1]);
  std::map<int, int> all = given;
  all[kCommands] = read_end.get();
  for (auto [number, fd] : all) dup2(fd, number);
  std::vector<std::string> argv = {scene(1), starts};
  argv.insert(argv.end(), timing.begin(), timing.end());
  std::map<std::string, std::string> variables = environment;
  variables["ASAN_OPTIONS"] = "detect_leaks=0";  // a report would be one more descriptor in the table
  process_.emplace(argv, penstock::test::ProcessOptions{.environment = variables});
  for (auto [number, fd] : all) close(number);
}

Kept::~Kept() {
  if (state_) munmap(state_, kStateBytes);
}

State& Kept::state() {
  if (state_) return *state_;
  const bool found = wait_until([this] {
    for (const auto& [number, what] : descriptors(process_->pid())) {
      if (!what.starts_with("/memfd:penstock-keeper")) continue;
      Fd fd(open(("/proc/" + std::to_string(process_->pid()) + "/fd/" + std::to_string(number)).c_str(),
                 O_RDWR));
      if (Result<State*> state = map_state(fd.get())) state_ = *state;
    }
    return state_ != nullptr;
  });
  if (!found) throw std::runtime_error("no keeper's state; it said:\n" + process_->output());
  return *state_;
}

void Kept::command(const std::string& line) {
  const std::string text = line + "\n";
  if (write(commands_.get(), text.data(), text.size()) < 0) throw std::runtime_error("write");
}

bool Kept::ready(uint64_t start) {
  return wait_until([&] { return state().starts >= start && state().readiness == Readiness::ready; });
}

void Kept::kill_worker(int signal) {
  kill(state().worker_pid, signal);
  if (signal != SIGSTOP) return;
  // Not before it is stopped: of signals that wait, the lowest is taken first.
  EXPECT_TRUE(
      wait_until([&] { return status_line(std::to_string(state().worker_pid), "State").starts_with("T"); }));
}

UpgradeResult Kept::upgrade(const std::string& path, milliseconds patience) {
  const uint32_t answered = state().upgrades_answered;
  command("upgrade " + path + " " + std::to_string(patience.count()));
  EXPECT_TRUE(wait_until([&] { return state().upgrades_answered > answered; })) << process_->output();
  return state().result;
}

std::string scene(int version) {
  return version == 1 ? KEEPER_SCENE_1 : KEEPER_SCENE_2;
}

std::map<int, std::string> descriptors(pid_t pid) {
  std::map<int, std::string> all;
  std::error_code gone;
  for (const auto& entry :
       std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/fd", gone)) {
    const auto what = std::filesystem::read_symlink(entry.path(), gone);
    if (!gone) all[std::stoi(entry.path().filename())] = what;
  }
  return all;
}

std::set<pid_t> threads(pid_t pid) {
  std::set<pid_t> all;
  std::error_code gone;
  for (const auto& entry :
       std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/task", gone))
    all.insert(std::stoi(entry.path().filename()));
  return all;
}

std::string status_line(const std::string& task, const std::string& key) {
  std::ifstream in("/proc/" + task + "/status");
  for (std::string line; std::getline(in, line);)
    if (line.starts_with(key + ":")) return line.substr(line.find_first_not_of(" \t", key.size() + 1));
  return "";
}

}  // namespace penstock::keeper::test
