// SPDX-License-Identifier: Apache-2.0
#include "daemon/kept.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <pwd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "base/log.h"
#include "daemon/audit.h"
#include "daemon/privileges.h"
#include "io/io.h"

namespace penstock::daemon {
namespace {

constexpr uint64_t kRamPerFlow =
    64 << 10;  // default of bpf.max_flows: a flow's sockets cost about 10 KiB idle
constexpr uint32_t kFlowsMin = 1024, kFlowsMax = 49152;  // its maps are made whole: 22 MiB of them
constexpr uint64_t kDescriptorsPerFlow = 6, kDescriptorsBeside = 256;  // two sockets, two pipes

uint64_t ram_bytes() {
  struct sysinfo info {};
  sysinfo(&info);
  return static_cast<uint64_t>(info.totalram) * info.mem_unit;
}

uint32_t flows_max_of(const config::Config& c) {
  uint32_t flows_max = c.bpf.max_flows;
  if (!flows_max)
    flows_max = static_cast<uint32_t>(std::clamp<uint64_t>(ram_bytes() / kRamPerFlow, kFlowsMin, kFlowsMax));
  const uint64_t descriptors = raise_descriptor_limit(kDescriptorsPerFlow * flows_max + kDescriptorsBeside);
  const uint64_t served = descriptors > kDescriptorsBeside ? (descriptors - kDescriptorsBeside) / 2 : 1;
  if (served >= flows_max) return flows_max;
  if (!c.bpf.max_flows) return static_cast<uint32_t>(served);
  log::warn("{} descriptors serve fewer than max_flows = {} flows (LimitNOFILE=, ulimit -n)", descriptors,
            flows_max);
  return flows_max;
}

Status open_sockmap(const config::Config& c, Kept* k) {
  k->engine = choose_engine(c.daemon.engine, true);
  if (c.daemon.engine == config::Engine::sockmap && !k->engine.splice)
    return Error{fmt::format("engine = \"sockmap\", but {} (see `penstock probe`)", k->engine.reason)};
  sockmap::Options options;
  options.flows_max = k->flows_max;
  options.threads = k->threads;
  options.memory_limit_bytes = memory_limit_bytes(c);
  options.pin = c.bpf.pin;
  // For measuring what it is worth (bpf/README.md); no operator needs it.
  if (const char* pull = getenv("PENSTOCK_PULL")) options.pull = std::string_view(pull) != "off";
  // With the relay alone the maps serve the operator's eyes; then they may be missing.
  auto sockmap = sockmap::Sockmap::open(options);
  if (sockmap) {
    k->sockmap = std::move(*sockmap);
    if (!k->sockmap->pin_error().empty()) log::warn("statistics are not pinned: {}", k->sockmap->pin_error());
    return Nothing{};
  }
  if (c.daemon.engine == config::Engine::sockmap)
    return Error{fmt::format("engine = \"sockmap\", but {}", sockmap.error().message)};
  if (k->engine.splice) k->engine.reason = sockmap.error().message;
  k->engine.splice = false;
  log::warn("no BPF maps, so no statistics for bpftool: {}", sockmap.error().message);
  return Nothing{};
}

// Where systemd has made one (StateDirectory=), else where it would have. Workers write there.
void open_crashes(const config::Config& c, Kept* k) {
  const char* given = getenv("STATE_DIRECTORY");
  k->crash_directory = given ? given : "/var/lib/penstock";
  mkdir(k->crash_directory.c_str(), 0750);
  k->crashes.reset(open(k->crash_directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  const passwd* user = c.daemon.user.empty() ? nullptr : getpwnam(c.daemon.user.c_str());
  if (!k->crashes.valid())
    log::warn("no crash reports: {}: {}", k->crash_directory, strerror(errno));
  else if (user && fchown(k->crashes.get(), user->pw_uid, static_cast<gid_t>(-1)))
    log::warn("no crash reports: {}: cannot give it to {}: {}", k->crash_directory, c.daemon.user,
              strerror(errno));
}

}  // namespace

uint64_t memory_limit_bytes(const config::Config& c) {
  return c.limits.memory_bytes.value_or(ram_bytes() / 4);
}

flow::Statistics Kept::statistics() {
  if (sockmap) return {&sockmap->totals(), sockmap->listeners(), sockmap->upstreams()};
  return {&memory->totals, memory->listeners, memory->upstreams};
}

bool Kept::is_kept(int fd) const {
  return std::binary_search(descriptors.begin(), descriptors.end(), fd);
}

Status make_kept(const config::Config& c, Kept* k) {
  k->pid = getpid();
  k->started_ns = io::now_ns();
  k->started_unix_s =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  // First of all, so that a second daemon is told about the first one and not about its ports.
  auto admin = AdminSocket::open(c.admin.socket);
  if (!admin) return admin.error();
  k->admin = std::move(*admin);
  void* memory = mmap(nullptr, sizeof(Memory), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return Error{"no memory to keep anything in"};
  k->memory = static_cast<Memory*>(memory);
  k->flows_max = flows_max_of(c);
  k->threads = c.daemon.threads ? c.daemon.threads : std::max(1u, std::thread::hardware_concurrency());
  k->threads = std::min<uint32_t>(k->threads, PENSTOCK_THREADS_MAX);
  if (c.listeners.size() > PENSTOCK_LISTENERS_MAX || c.upstreams.size() > PENSTOCK_UPSTREAMS_MAX)
    return Error{"more than 1024 listeners or upstreams"};
  if (auto s = open_sockmap(c, k); !s) return s;
  auto table = flow::FlowTable::create(k->flows_max);
  if (!table) return table.error();
  k->table.emplace(std::move(*table));
  auto plans = Plans::create();
  if (!plans) return plans.error();
  k->plans.emplace(std::move(*plans));
  open_crashes(c, k);
  k->descriptors = open_descriptors();
  std::sort(k->descriptors.begin(), k->descriptors.end());
  return Nothing{};
}

void remove_kept(Kept& k) {
  if (k.admin) k.admin->remove();
  k.admin.reset();
  k.sockmap.reset();
}

}  // namespace penstock::daemon
