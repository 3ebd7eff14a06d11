// SPDX-License-Identifier: Apache-2.0
#include "support/daemon.h"

#include <bpf/bpf.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <sstream>
#include <stdexcept>
#include <system_error>
#include <vector>

namespace penstock::test {
namespace {

std::string from_environment(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : otherwise;
}

}  // namespace

std::string daemon_program() {
  return from_environment("PENSTOCKD", PENSTOCK_DAEMON);
}
std::string command_program() {
  return from_environment("PENSTOCK", PENSTOCK_COMMAND);
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TempDir::TempDir() : path_("/tmp/penstock-test-XXXXXX") {
  if (::mkdtemp(path_.data()) == nullptr) throw std::system_error(errno, std::generic_category(), "mkdtemp");
  std::filesystem::permissions(path_, std::filesystem::perms(0755));
}

TempDir::~TempDir() {
  std::error_code ignored;  // a test that failed half-way may have left it in any state
  std::filesystem::remove_all(path_, ignored);
}

std::string TempDir::write(const std::string& name, const std::string& text, mode_t mode) const {
  const std::string file = path_ + "/" + name;
  std::ofstream(file) << text;
  std::filesystem::permissions(file, std::filesystem::perms(mode));
  return file;
}

Daemon::Daemon(const DaemonOptions& options) {
  pin_ = !options.pin.empty() ? options.pin
                              : "/sys/fs/bpf/" + std::filesystem::path(directory_.path()).filename().string();
  std::ostringstream toml;
  toml << "[daemon]\nengine = " << std::quoted(options.engine) << "\nthreads = " << options.threads
       << "\nlog = { level = \"debug\" }\n"
       << options.daemon_keys << "\n"
       << "[admin]\nsocket = " << std::quoted(admin_socket()) << "\nhttp = " << std::quoted(options.http)
       << "\n"
       << "[bpf]\npin = " << std::quoted(pin_) << "\nmax_flows = " << options.max_flows << "\n"
       << options.tables;
  directory_.write("penstock.toml", toml.str());
  ProcessOptions process = options.process;
  process.environment.emplace("STATE_DIRECTORY", directory_.path() + "/crashes");
  process_ = std::make_unique<Process>(std::vector<std::string>{daemon_program(), "--config", config_file()},
                                       process);
  if (!process_->wait_for("ready: engine")) throw std::runtime_error("penstockd did not start:\n" + log());
}

Daemon::~Daemon() {
  if (process_->running()) {
    process_->signal(SIGTERM);
    process_->signal(SIGTERM);  // at once: the test is over
    try {
      process_->wait_exit(5s);
    } catch (const std::exception&) {
      // ~Process kills it. A daemon that does not end on SIGTERM is found by the tests that call stop().
    }
  }
}

Json Daemon::ask(const Json& request) const {
  const Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  admin_socket().copy(address.sun_path, sizeof address.sun_path - 1);
  if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    throw std::system_error(errno, std::generic_category(), "admin socket");
  }
  const timeval patience{kPatience.count() / 1000, 0};
  ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  const std::string line = request.dump() + "\n";
  if (::send(fd.get(), line.data(), line.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(line.size())) {
    throw std::system_error(errno, std::generic_category(), "admin socket");
  }
  std::string answer;
  char bytes[65536];
  while (answer.empty() || answer.back() != '\n') {
    const ssize_t n = ::recv(fd.get(), bytes, sizeof bytes, 0);
    if (n <= 0) throw std::runtime_error("admin socket: no complete answer to " + line);
    answer.append(bytes, static_cast<size_t>(n));
  }
  return Json::parse(answer);
}

uint64_t Daemon::closed(const std::string& reason) const {
  return totals().at("closed").value(reason, uint64_t{0});
}

Json Daemon::wait_flow(const std::string& phase) const {
  Json found;
  const bool seen = wait_until([&] {
    found = flows();
    return found.size() == 1 && found[0].at("phase") == phase;
  });
  if (!seen) throw std::runtime_error("no single flow in phase " + phase + ": " + found.dump());
  return found[0];
}

bool Daemon::wait_lane(const std::string& direction, const std::string& lane, milliseconds limit) const {
  return wait_until(
      [&] {
        const Json all = flows();
        return all.size() == 1 && all[0].at("directions").at(direction).at("lane") == lane;
      },
      limit);
}

bool Daemon::wait_active(uint64_t flows, milliseconds limit) const {
  return wait_until([&] { return totals().at("active") == flows; }, limit);
}

std::string Daemon::order_lane(const std::string& cookie, const std::string& direction,
                               const std::string& lane) const {
  return ask({{"command", "lane"}, {"cookie", cookie}, {"direction", direction}, {"to", lane}})
      .value("error", "");
}

Descriptors Daemon::descriptors() const {
  Descriptors count;
  std::error_code gone;  // a descriptor may be closed while we look
  for (const auto& entry :
       std::filesystem::directory_iterator("/proc/" + std::to_string(process_->pid()) + "/fd")) {
    const std::string what = std::filesystem::read_symlink(entry.path(), gone).string();
    if (what.starts_with("socket:"))
      ++count.sockets;
    else if (what.starts_with("pipe:") || what.starts_with("/proc/"))
      ++count.pipes;
    else
      ++count.others;
  }
  return count;
}

bool Daemon::wait_worker_after(pid_t before) const {
  return wait_until([&] {
    try {
      const Json now = status();
      return now.contains("worker") && now.at("worker").at("pid") != before;
    } catch (const std::exception&) {
      return false;  // it died with our question
    }
  });
}

std::optional<size_t> Daemon::pinned_flows() const {
  const Fd map(::bpf_obj_get((pin_ + "/flows").c_str()));
  if (!map.valid()) return {};
  size_t count = 0;
  uint64_t key = 0, next = 0;
  for (bool first = true; ::bpf_map_get_next_key(map.get(), first ? nullptr : &key, &next) == 0;
       first = false) {
    key = next;
    ++count;
  }
  return count;
}

int Daemon::stop() {
  process_->signal(SIGTERM);
  return process_->wait_exit();
}

}  // namespace penstock::test
