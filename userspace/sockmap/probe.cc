// SPDX-License-Identifier: Apache-2.0
#include "sockmap/probe.h"

#include <fmt/format.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "base/endpoint.h"
#include "sockmap/cgroup.h"
#include "sockmap/kernel_release.h"
#include "sockmap/loopback_flow.h"
#include "sockmap/probe_checks.h"

namespace penstock::sockmap {
namespace {

struct Check {
  const char* name;
  bool promise;
  std::string (*run)(Sockmap&, uint32_t slot);
};
constexpr Check kChecks[] = {
    {"splice", true, check_splice},
    {"splice_ipv6", true, check_splice_v6},
    {"kick", true, check_kick},
    {"partial_send", true, check_partial_send},
    {"overlap", true, check_overlap},
    {"accounts", true, check_accounts},
    {"fin", true, check_fin},
    {"rst", true, check_rst},
    {"fin_while_closed", true, check_fin_while_closed},
    {"valve", true, check_valve},
    {"kernel_close", true, check_kernel_close},
    {"trim", true, check_trim},
    {"publish", false, check_publish},
    {"pull", false, check_pull},
};
constexpr size_t kCheckCount = std::size(kChecks);
constexpr uint32_t kFlowsMax = 16;
static_assert(kCheckCount <= kFlowsMax);

bool loopback_is_up() {
  Fd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq lo{};
  strcpy(lo.ifr_name, "lo");
  return ::ioctl(fd.get(), SIOCGIFFLAGS, &lo) == 0 && lo.ifr_flags & IFF_UP;
}

bool has_v6_loopback() {
  Fd fd(::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in6 any_port{};
  any_port.sin6_family = AF_INET6;
  any_port.sin6_addr = in6addr_loopback;
  return ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&any_port), sizeof any_port) == 0;
}

Capability run(const Check& check, Sockmap& sockmap, uint32_t slot) {
  try {
    return {check.name, true, check.promise, check.run(sockmap, slot)};
  } catch (const CheckFailed& failed) {
    return {check.name, false, check.promise, failed.what()};
  }
}

// Most checks wait most of the time (a jiffy, a retransmission): each has a thread, all run at once.
std::vector<Capability> run_checks(Sockmap& sockmap) {
  bool v6 = has_v6_loopback();
  std::vector<Capability> results(kCheckCount);
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < kCheckCount; i++) {
    if (kChecks[i].run == check_splice_v6 && !v6) {
      results[i] = {kChecks[i].name, true, true, "not tried: no ::1 in this network namespace"};
      continue;
    }
    threads.emplace_back([&results, &sockmap, i] { results[i] = run(kChecks[i], sockmap, i); });
  }
  for (std::thread& t : threads) t.join();
  return results;
}

void run_all(const Options& planted, std::vector<Capability>& out) {
  bool lo = loopback_is_up();
  out.push_back({"loopback", lo, true, lo ? "" : "lo is down in this network namespace (ip link set lo up)"});
  if (!lo) return;
  if (const std::string why = this_kernel_panics(); !why.empty()) {
    out.push_back({"kernel", false, true, why});
    return;
  }
  Options options = planted;
  options.flows_max = kFlowsMax;
  options.threads = kCheckCount;
  options.memory_limit_bytes = 1u << 30;
  options.pin.clear();
  auto sockmap = Sockmap::open(options);
  if (!sockmap) {
    auto cgroup = OwnCgroup::enter();
    out.push_back({"cgroup2", cgroup.ok(), true, cgroup ? "" : cgroup.error().message});
    if (cgroup) cgroup->leave();
    out.push_back({"bpf", false, true, sockmap.error().message});
    return;
  }
  out.push_back({"cgroup2", true, true, (*sockmap)->cgroup()});
  out.push_back({"bpf", true, true, ""});
  for (Capability& c : run_checks(**sockmap)) out.push_back(std::move(c));
}

}  // namespace

bool ProbeReport::has(const std::string& name) const {
  return std::any_of(capabilities.begin(), capabilities.end(),
                     [&](const Capability& c) { return c.ok && c.name == name; });
}

ProbeReport probe(const Options& planted) {
  auto start = std::chrono::steady_clock::now();
  ProbeReport report;
  run_all(planted, report.capabilities);
  for (const Capability& c : report.capabilities)
    if (!c.ok && c.promise && report.first_failure.empty()) report.first_failure = c.name + ": " + c.detail;
  auto elapsed =
      std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - start);
  report.elapsed_ms = static_cast<uint32_t>(elapsed.count());
  return report;
}

}  // namespace penstock::sockmap
