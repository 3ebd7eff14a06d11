// SPDX-License-Identifier: Apache-2.0
#include "own_daemon.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <thread>

#include "tally.h"

namespace penstock::torture {
namespace {

constexpr int kServers = 4;  // each has ports of its own for the connections to it
constexpr int kLogPipeBytes = 1 << 20;

// Free on every loopback address as far as v4 and v6 of it can tell.
uint16_t free_port() {
  const Fd fd(socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_storage address;
  socklen_t length = Endpoint{*IpAddress::parse("::")}.to_sockaddr(&address);
  if (bind(fd.get(), reinterpret_cast<sockaddr*>(&address), length) != 0) {
    throw std::runtime_error(std::string("no free port: ") + strerror(errno));
  }
  length = sizeof address;
  getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &length);
  return Endpoint::from_sockaddr(reinterpret_cast<sockaddr*>(&address), length)->port;
}

Endpoint v4(int host, uint16_t port) {
  return {IpAddress::v4(INADDR_LOOPBACK - 1 + static_cast<uint32_t>(host)), port};
}

Endpoint v6(uint16_t port) {
  return {*IpAddress::parse("::1"), port};
}

std::string listener(std::string_view name, const std::vector<Endpoint>& bind, std::string_view more) {
  std::vector<std::string> words;
  for (const Endpoint& e : bind) words.push_back('"' + e.text() + '"');
  return fmt::format("[[listener]]\nname = \"{}\"\nbind = [{}]\n{}", name, fmt::join(words, ", "), more);
}

constexpr std::string_view kByName =
    "upstream = \"nobody\"\n  [[listener.route]]\n  sni = [\"*.torture.test\"]\n  upstream = \"server\"\n";
constexpr std::string_view kBehindProxy = "accept_proxy = { from = [\"127.16.0.0/12\"] }\n";

}  // namespace

OwnDaemon::OwnDaemon(Options& o) {
  std::string pattern = std::filesystem::temp_directory_path() / "penstock-torture-XXXXXX";
  if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error(pattern + ": " + strerror(errno));
  directory_.path = pattern;
  o.admin = directory_.path + "/admin.sock";
  const uint16_t server = free_port(), plain = free_port(), tls = free_port(), proxy = free_port(),
                 proxy_tls = free_port();
  std::vector<std::string> servers;
  for (int i = 1; i <= kServers; ++i) {
    o.serve.push_back(v4(i, server));
    servers.push_back('"' + v4(i, server).text() + '"');
  }
  o.serve.push_back(v6(server));
  o.preamble = Preamble::v2;
  // Three of eight lives are plain, one of them IPv6 on both legs.
  o.to = {{v4(1, plain), {}},
          {v4(1, tls), {.client_hello = true}},
          {v4(1, proxy), {.proxy_header = true}},
          {v6(plain), {}},
          {v4(1, proxy_tls), {.proxy_header = true, .client_hello = true}},
          {v4(1, plain), {}},
          {v4(1, tls), {.client_hello = true}},
          {v4(1, proxy), {.proxy_header = true}}};
  const std::string config =
      fmt::format(
          "[daemon]\nengine = \"{}\"\n[admin]\nsocket = \"{}\"\nhttp = \"\"\n"
          "[bpf]\npin = \"/sys/fs/bpf/penstock-torture-{}\"\nmax_flows = {}\n"
          "[timeouts]\nclient_hello = \"1m\"\nproxy_header = \"1m\"\nconnect = \"1m\"\n"
          "[upstream.server]\nservers = [{}]\nproxy_protocol = \"v2\"\n"
          "[upstream.server6]\nservers = [\"{}\"]\nproxy_protocol = \"v2\"\n"
          "[upstream.nobody]\nservers = [\"127.0.0.1:1\"]\n",
          o.engine, o.admin, getpid(), 2 * o.concurrency + 100, fmt::join(servers, ", "), v6(server).text()) +
      listener("plain", {v4(1, plain)}, "upstream = \"server\"\n") +
      listener("plain6", {v6(plain)}, "upstream = \"server6\"\n") +
      listener("proxy", {v4(1, proxy)}, std::string(kBehindProxy) + "upstream = \"server\"\n") +
      listener("tls", {v4(1, tls)}, kByName) +
      listener("proxy-tls", {v4(1, proxy_tls)}, std::string(kBehindProxy) + std::string(kByName));
  const std::string path = directory_.path + "/penstock.toml";
  std::ofstream(path) << config;
  start(o.penstockd, path);
  await_ready();
}

void OwnDaemon::start(const std::string& program, const std::string& config) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) throw std::runtime_error(std::string("pipe: ") + strerror(errno));
  log_.reset(ends[0]);
  const Fd write_end(ends[1]);
  fcntl(ends[0], F_SETPIPE_SZ, kLogPipeBytes);
  pid_ = fork();
  if (pid_ < 0) throw std::runtime_error(std::string("fork: ") + strerror(errno));
  if (pid_ > 0) return;
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  sigset_t none;  // ours may be blocked
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  dup2(ends[1], STDOUT_FILENO);
  dup2(ends[1], STDERR_FILENO);
  execlp(program.c_str(), program.c_str(), "--config", config.c_str(), nullptr);
  dprintf(STDERR_FILENO, "%s: %s\n", program.c_str(), strerror(errno));
  _exit(1);
}

void OwnDaemon::await_ready() {
  std::string said;
  char chunk[4096];
  for (ssize_t n; (n = read(log_.get(), chunk, sizeof chunk)) > 0;) {
    said.append(chunk, static_cast<size_t>(n));
    if (said.find(" ready: engine ") != said.npos && said.back() == '\n') return;
  }
  stop();
  throw std::runtime_error("penstockd did not start:\n" + said);
}

int OwnDaemon::stop() {
  constexpr int64_t kPatienceMs = 20'000;
  if (pid_ < 0) return 0;
  const int64_t until_ms = now_ms() + kPatienceMs;
  kill(pid_, SIGTERM);
  int status = 0;
  while (waitpid(pid_, &status, WNOHANG) == 0) {
    if (now_ms() > until_ms) kill(pid_, SIGKILL);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

OwnDaemon::~OwnDaemon() {
  stop();
}

OwnDaemon::Directory::~Directory() {
  std::error_code ignored;
  if (!path.empty()) std::filesystem::remove_all(path, ignored);
}

}  // namespace penstock::torture
