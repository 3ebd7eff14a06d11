// SPDX-License-Identifier: Apache-2.0
#include "support/netns.h"

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <cerrno>
#include <stdexcept>
#include <system_error>

#include "support/process.h"

namespace penstock::test {
namespace {

constexpr char kOwnNetns[] = "/proc/thread-self/ns/net";

[[noreturn]] void fail(const char* what) {
  throw std::system_error(errno, std::generic_category(), what);
}

Fd open_own_netns() {
  Fd fd(::open(kOwnNetns, O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) fail(kOwnNetns);
  return fd;
}

std::vector<std::string> words(const std::string& text) {
  std::vector<std::string> out;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find(' ', at), text.size());
    if (end > at) out.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return out;
}

}  // namespace

Netns::Netns() {
  {
    const Fd home = open_own_netns();
    if (::unshare(CLONE_NEWNET) != 0) fail("unshare(CLONE_NEWNET)");
    fd_ = open_own_netns();
    if (::setns(home.get(), CLONE_NEWNET) != 0) fail("setns");
  }
  ip("link set lo up");
}

Netns::Inside::Inside(const Netns& ns) : home_(open_own_netns()) {
  if (::setns(ns.fd(), CLONE_NEWNET) != 0) fail("setns");
}

Netns::Inside::~Inside() {
  if (::setns(home_.get(), CLONE_NEWNET) != 0) std::abort();
}

void Netns::ip(const std::string& arguments) const {
  const Inside inside(*this);
  std::vector<std::string> argv = words(arguments);
  argv.insert(argv.begin(), "ip");
  Process process(argv);
  const int code = process.wait_exit();
  if (code != 0) throw std::runtime_error("ip " + arguments + ": " + process.output());
}

void Netns::join(const Netns& a, const std::string& a_device, const std::vector<std::string>& a_addresses,
                 const Netns& b, const std::string& b_device, const std::vector<std::string>& b_addresses) {
  a.ip("link add " + a_device + " type veth peer name " + b_device + " netns " + b.path());
  for (const auto& address : a_addresses) a.ip("addr add " + address + " dev " + a_device + " nodad");
  for (const auto& address : b_addresses) b.ip("addr add " + address + " dev " + b_device + " nodad");
  a.ip("link set " + a_device + " up");
  b.ip("link set " + b_device + " up");
}

std::string Netns::path() const {
  return "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(fd_.get());
}

}  // namespace penstock::test
