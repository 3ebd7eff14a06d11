// SPDX-License-Identifier: Apache-2.0
#include "dnsmasq.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "base/assert.h"

namespace penstock::dns::testing {

uint16_t free_port() {
  for (;;) {
    Fd udp(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)),
        tcp(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in a{};
    a.sin_family = AF_INET;
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof a;
    PENSTOCK_ASSERT(::bind(udp.get(), reinterpret_cast<sockaddr*>(&a), length) == 0);
    PENSTOCK_ASSERT(::getsockname(udp.get(), reinterpret_cast<sockaddr*>(&a), &length) == 0);
    if (::bind(tcp.get(), reinterpret_cast<sockaddr*>(&a), length) == 0) return ntohs(a.sin_port);
  }
}

Dnsmasq::Dnsmasq(uint16_t port, const std::vector<std::string>& records, const std::string& address) {
  std::vector<std::string> words = {"dnsmasq",
                                    "--no-daemon",
                                    "--conf-file=/dev/null",
                                    "--user=root",
                                    "--no-resolv",
                                    "--no-hosts",
                                    "--bind-interfaces",
                                    "--listen-address=" + address,
                                    "--log-queries",
                                    "--cache-size=0",
                                    "--port=" + std::to_string(port)};
  words.insert(words.end(), records.begin(), records.end());
  std::vector<char*> argv;
  for (auto& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  int pipe_fds[2];
  PENSTOCK_ASSERT(::pipe2(pipe_fds, O_CLOEXEC) == 0);
  pid_ = ::fork();
  PENSTOCK_ASSERT(pid_ >= 0);
  if (pid_ == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::dup2(pipe_fds[1], STDERR_FILENO);
    ::execv("/usr/sbin/dnsmasq", argv.data());
    std::perror("/usr/sbin/dnsmasq (package dnsmasq-base)");
    ::_exit(127);
  }
  ::close(pipe_fds[1]);
  log_.reset(pipe_fds[0]);
  ::fcntl(log_.get(), F_SETFL, O_NONBLOCK);
  while (text_.find("started, version") == std::string::npos) {
    size_t before = text_.size();
    wait_for_log(10'000);
    if (text_.size() == before) {
      std::fprintf(stderr, "dnsmasq did not start: %s\n", text_.c_str());
      std::abort();
    }
  }
}

Dnsmasq::~Dnsmasq() {
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
}

void Dnsmasq::pause() {
  ::kill(pid_, SIGSTOP);
  PENSTOCK_ASSERT(::waitpid(pid_, nullptr, WUNTRACED) == pid_);
}

void Dnsmasq::resume() {
  ::kill(pid_, SIGCONT);
}

void Dnsmasq::wait_for_log(int timeout_ms) {
  pollfd p{log_.get(), POLLIN, 0};
  if (::poll(&p, 1, timeout_ms) <= 0) return;
  char buffer[4096];
  ssize_t n;
  while ((n = ::read(log_.get(), buffer, sizeof buffer)) > 0) text_.append(buffer, static_cast<size_t>(n));
}

size_t Dnsmasq::queries(const std::string& name) {
  wait_for_log(0);
  size_t count = 0;
  std::string wanted = "] " + name + " from ";
  for (size_t at = text_.find(wanted); at != std::string::npos; at = text_.find(wanted, at + 1)) ++count;
  return count;
}

}  // namespace penstock::dns::testing
