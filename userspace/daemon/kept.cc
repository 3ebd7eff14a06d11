// SPDX-License-Identifier: Apache-2.0
#include "daemon/kept.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <pwd.h>
#include <sys/mman.h>
#include <sys/socket.h>
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
  else if (user &&
           (fchmod(k->crashes.get(), 0770) ||  // our group's too: the next worker begins as root without
            fchown(k->crashes.get(), user->pw_uid, static_cast<gid_t>(-1))))  // CAP_DAC_OVERRIDE
    log::warn("no crash reports: {}: cannot give it to {}: {}", k->crash_directory, c.daemon.user,
              strerror(errno));
}

Status map_memory(Kept* k) {
  struct stat s {};
  if (fstat(k->memory_file.get(), &s) ||
      (static_cast<size_t>(s.st_size) < sizeof(Memory) && ftruncate(k->memory_file.get(), sizeof(Memory))))
    return Error{fmt::format("no memory to keep anything in: {}", strerror(errno))};
  void* memory = mmap(nullptr, sizeof(Memory), PROT_READ | PROT_WRITE, MAP_SHARED, k->memory_file.get(), 0);
  if (memory == MAP_FAILED) return Error{fmt::format("cannot map what is kept: {}", strerror(errno))};
  k->memory = static_cast<Memory*>(memory);
  return Nothing{};
}

template <size_t N>
void put(char (&out)[N], const std::string& text) {
  out[text.copy(out, N - 1)] = 0;
}

void write_manifest(Kept* k) {
  Manifest& m = k->memory->manifest;
  m.flows_max = k->flows_max;
  m.threads = k->threads;
  m.splice = k->engine.splice;
  m.table = k->table->memory();
  m.plans = k->plans->memory();
  m.crashes = k->crashes.get();
  m.started_ns = k->started_ns;
  m.started_unix_s = k->started_unix_s;
  m.admin = k->admin->handle();
  if (k->sockmap) m.sockmap = k->sockmap->handles();
  m.has_sockmap = k->sockmap != nullptr;
  put(m.engine_reason, k->engine.reason);
  put(m.crash_directory, k->crash_directory);
  m.layout = kMemoryLayout;
}

// Sorted.
std::vector<int> descriptors_of(const Manifest& m, int memory_file) {
  std::vector<int> all = {0, 1, 2, m.table, m.plans, m.crashes, m.admin.fd, memory_file};
  if (m.has_sockmap) {
    for (const int fd : m.sockmap.maps) all.push_back(fd);
    for (uint32_t t = 0; t < m.threads; t++) all.push_back(m.sockmap.rings[t]);
    for (const int fd : m.sockmap.programs) all.push_back(fd);
    for (const int fd : {m.sockmap.socket_ops, m.sockmap.cgroup, m.sockmap.pin_lock}) all.push_back(fd);
  }
  std::sort(all.begin(), all.end());
  return all;
}

bool may_be_a_flows(int fd) {
  struct stat s {};
  return fstat(fd, &s) == 0 && (S_ISSOCK(s.st_mode) || S_ISFIFO(s.st_mode));
}

Status known(const Manifest& m) {
  if (!can_take_over(m.layout, kMemoryLayout))
    return Error{fmt::format("what is kept has layout {}, not {}", m.layout, kMemoryLayout)};
  if (m.has_sockmap && !can_take_over(m.sockmap.layout, PENSTOCK_LAYOUT))
    return Error{fmt::format("the BPF maps have layout {}, not {}", m.sockmap.layout, PENSTOCK_LAYOUT)};
  return Nothing{};
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

Status make_kept(const config::Config& c, const config::Source& source, Kept* k) {
  k->pid = getpid();
  k->started_ns = io::now_ns();
  k->started_unix_s =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  // First of all, so that a second daemon is told about the first one and not about its ports.
  auto admin = AdminSocket::open(c.admin.socket);
  if (!admin) return admin.error();
  k->admin = std::move(*admin);
  k->memory_file.reset(memfd_create("penstock-memory", MFD_CLOEXEC));
  if (!k->memory_file.valid() || ftruncate(k->memory_file.get(), sizeof(Memory)))
    return Error{fmt::format("no memory to keep anything in: {}", strerror(errno))};
  if (auto s = map_memory(k); !s) return s;
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
  k->plans->keep_start(source);
  open_crashes(c, k);
  write_manifest(k);
  k->descriptors = open_descriptors();
  std::sort(k->descriptors.begin(), k->descriptors.end());
  return Nothing{};
}

void remove_kept(Kept& k) {
  if (k.reopened) return remove_kept(k.memory_file.get());
  if (k.table) reset_open_flows(*k.table);
  if (k.admin) k.admin->remove();
  k.admin.reset();
  k.sockmap.reset();
}

void reset_open_flows(flow::FlowTable& table) {
  std::vector<int> complete;
  for (uint32_t slot = 0; slot < std::min<uint32_t>(table.used(), table.size()); slot++) {
    const flow::FlowRecord& r = table[slot];
    const bool shut = r.direction[0].lane == flow::Lane::shut && r.direction[1].lane == flow::Lane::shut;
    if (r.phase == flow::Phase::free || !shut) continue;
    complete.insert(complete.end(), std::begin(r.fd), std::end(r.fd));
  }
  std::sort(complete.begin(), complete.end());
  const linger now{1, 0};
  for (const int fd : open_descriptors())
    if (!std::binary_search(complete.begin(), complete.end(), fd))
      setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);  // of what is no socket: refused
}

Kept::~Kept() {
  if (memory) munmap(memory, sizeof(Memory));
  if (!reopened) return;
  (void)memory_file.release();  // the keeper's, as all of them
  (void)crashes.release();
}

Status look_at_kept(int memory_file, Kept* k) {
  k->reopened = true;
  k->pid = getppid();
  k->memory_file.reset(memory_file);
  if (auto s = map_memory(k); !s) return s;
  const Manifest& m = k->memory->manifest;
  if (auto s = known(m); !s) return s;
  k->flows_max = m.flows_max;
  k->threads = m.threads;
  k->started_ns = m.started_ns;
  k->started_unix_s = m.started_unix_s;
  k->engine.splice = m.splice;
  k->engine.reason = m.engine_reason;
  k->admin = AdminSocket::reopen(m.admin);
  k->crash_directory = m.crash_directory;
  k->crashes.reset(m.crashes);
  auto table = flow::FlowTable::reopen(m.table);
  if (!table) return table.error();
  k->table.emplace(std::move(*table));
  auto plans = Plans::reopen(m.plans);
  if (!plans) return plans.error();
  k->plans.emplace(std::move(*plans));
  return Nothing{};
}

Status reopen_kept(const keeper::State& state, uint64_t run, Kept* k) {
  const int memory_file = state.memory;
  std::vector<int> before = open_descriptors();
  std::sort(before.begin(), before.end());
  if (auto s = look_at_kept(memory_file, k); !s) return s;
  Manifest& m = k->memory->manifest;
  k->descriptors = descriptors_of(m, memory_file);
  // What the dead worker alone had (audit.h), as far as no record speaks of it: what follows takes some.
  std::erase_if(before, [&](int fd) {
    return !k->is_kept(fd) && !keeper::is_keepers(state, fd) && !may_be_a_flows(fd) && close(fd) == 0;
  });
  if (m.has_sockmap) {
    auto sockmap = sockmap::Sockmap::reopen(m.sockmap, m.loaded_by == run);
    if (!sockmap) return sockmap.error();
    k->sockmap = std::move(*sockmap);
    m.sockmap = k->sockmap->handles();
    std::atomic_signal_fence(std::memory_order_release);
    m.loaded_by = run;  // after all that it speaks of
  }
  m.layout = kMemoryLayout;
  k->table->is_ours_now();
#if PENSTOCK_LAYOUT_STEP
  k->memory->takeovers++;
#endif
  k->descriptors = descriptors_of(m, memory_file);
  for (const int fd : open_descriptors())
    if (!std::binary_search(before.begin(), before.end(), fd)) k->descriptors.push_back(fd);
  std::sort(k->descriptors.begin(), k->descriptors.end());
  return Nothing{};
}

std::vector<Plans::Kept> needed_plans(Kept& k) {
  std::vector<Plans::Kept> plans = k.plans->all();
  std::vector<uint32_t> named;
  if (!plans.empty()) named.push_back(plans.back().id);
  for (uint32_t slot = 0; slot < std::min<uint32_t>(k.table->used(), k.table->size()); slot++)
    if (const flow::FlowRecord& r = (*k.table)[slot]; r.phase != flow::Phase::free) named.push_back(r.plan);
  std::sort(named.begin(), named.end());
  std::erase_if(plans,
                [&](const Plans::Kept& p) { return !std::binary_search(named.begin(), named.end(), p.id); });
  return plans;
}

void remove_kept(int memory_file) {
  Kept k;
  k.reopened = true;
  k.memory_file.reset(memory_file);
  if (!map_memory(&k) || !known(k.memory->manifest)) return;
  if (auto table = flow::FlowTable::reopen(k.memory->manifest.table)) reset_open_flows(*table);
  AdminSocket::reopen(k.memory->manifest.admin).remove();
  if (k.memory->manifest.has_sockmap) sockmap::Sockmap::remove(k.memory->manifest.sockmap);
}

}  // namespace penstock::daemon
