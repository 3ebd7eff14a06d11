// SPDX-License-Identifier: Apache-2.0
#include "daemon/daemon.h"

#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "base/assert.h"
#include "base/log.h"
#include "config/address.h"
#include "config/config.h"
#include "daemon/admin.h"
#include "daemon/caretaker.h"
#include "daemon/checks.h"
#include "daemon/engine.h"
#include "daemon/http.h"
#include "daemon/listen.h"
#include "daemon/metrics.h"
#include "daemon/privileges.h"
#include "daemon/reload.h"
#include "daemon/services.h"
#include "daemon/status.h"
#include "flow/worker.h"

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

int fail(const std::string& message) {
  log::error("{}", message);
  return 1;
}

// Everything a run needs, in the order it is torn down from the bottom up.
struct Parts {
  std::unique_ptr<sockmap::Sockmap> sockmap;
  std::unique_ptr<dns::Resolver> resolver;
  std::unique_ptr<check::Checker> checker;
  std::unique_ptr<Services> services;
  std::optional<check::Doctor> doctor;
  std::optional<flow::FlowTable> table;
  std::optional<flow::Clients> clients;
  penstock_totals own_totals{};  // where there are no maps
  std::vector<penstock_listener> own_listeners;
  std::vector<penstock_upstream> own_upstreams;
  std::optional<flow::Names> listener_names, upstream_names;
  flow::Flow* flows = nullptr;
  size_t flows_bytes = 0;
  flow::Shared shared;
  std::optional<Listeners> listeners;
  ~Parts() {
    listeners.reset();
    for (auto& w : shared.workers) w->join();  // stopped before, or never started
    doctor.reset();
    checker.reset();   // before the resolver it asks
    services.reset();  // its plan goes before the names that have it
    resolver.reset();  // its last answers go to the workers
    shared.workers.clear();
    if (flows) munmap(flows, flows_bytes);
  }
};

void name_counters(Parts& p) {
  auto& s = p.shared.statistics;
  if (p.sockmap) {
    s = {&p.sockmap->totals(), p.sockmap->listeners(), p.sockmap->upstreams()};
  } else {
    p.own_listeners.resize(PENSTOCK_LISTENERS_MAX);
    p.own_upstreams.resize(PENSTOCK_UPSTREAMS_MAX);
    s = {&p.own_totals, p.own_listeners.data(), p.own_upstreams.data()};
  }
  auto name = [](auto* entries) {
    return [entries](uint32_t slot, std::string_view text) {
      entries[slot] = {};
      text.copy(entries[slot].name, PENSTOCK_NAME_BYTES - 1);
    };
  };
  p.listener_names.emplace(PENSTOCK_LISTENERS_MAX, name(s.listeners));
  p.upstream_names.emplace(PENSTOCK_UPSTREAMS_MAX, name(s.upstreams));
}

uint64_t memory_limit_bytes(const config::Config& c) {
  return c.limits.memory_bytes.value_or(ram_bytes() / 4);
}

Status build(Parts& p, const config::Config& c, Facts& facts) {
  flow::Shared& shared = p.shared;
  uint64_t ram = ram_bytes();
  shared.memory_limit_bytes = memory_limit_bytes(c);
  uint32_t flows_max = c.bpf.max_flows;
  if (!flows_max)
    flows_max = static_cast<uint32_t>(std::clamp<uint64_t>(ram / kRamPerFlow, kFlowsMin, kFlowsMax));
  uint64_t descriptors = raise_descriptor_limit(kDescriptorsPerFlow * flows_max + kDescriptorsBeside);
  uint64_t served = descriptors > kDescriptorsBeside ? (descriptors - kDescriptorsBeside) / 2 : 1;
  if (served < flows_max) {
    if (c.bpf.max_flows)
      log::warn("{} descriptors serve fewer than max_flows = {} flows (LimitNOFILE=, ulimit -n)", descriptors,
                flows_max);
    else
      flows_max = static_cast<uint32_t>(served);
  }
  facts.flows_max = flows_max;
  unsigned threads = c.daemon.threads ? c.daemon.threads : std::max(1u, std::thread::hardware_concurrency());
  threads = std::min<unsigned>(threads, PENSTOCK_THREADS_MAX);
  if (c.listeners.size() > PENSTOCK_LISTENERS_MAX || c.upstreams.size() > PENSTOCK_UPSTREAMS_MAX)
    return Error{"more than 1024 listeners or upstreams"};

  EngineChoice choice = choose_engine(c.daemon.engine, true);
  if (c.daemon.engine == config::Engine::sockmap && !choice.splice)
    return Error{fmt::format("engine = \"sockmap\", but {} (see `penstock probe`)", choice.reason)};
  sockmap::Options options;
  options.flows_max = flows_max;
  options.threads = threads;
  options.memory_limit_bytes = shared.memory_limit_bytes;
  options.pin = c.bpf.pin;
  // For measuring what it is worth (bpf/README.md); no operator needs it.
  if (const char* pull = getenv("PENSTOCK_PULL")) options.pull = std::string_view(pull) != "off";
  // With the relay alone the maps serve the operator's eyes; then they may be missing.
  auto sockmap = sockmap::Sockmap::open(options);
  if (sockmap) {
    p.sockmap = std::move(*sockmap);
    if (!p.sockmap->pin_error().empty()) log::warn("statistics are not pinned: {}", p.sockmap->pin_error());
  } else if (c.daemon.engine == config::Engine::sockmap) {
    return Error{fmt::format("engine = \"sockmap\", but {}", sockmap.error().message)};
  } else {
    if (choice.splice) choice.reason = sockmap.error().message;
    choice.splice = false;
    log::warn("no BPF maps, so no statistics for bpftool: {}", sockmap.error().message);
  }
  shared.sockmap = p.sockmap.get();
  shared.splice = choice.splice;
  facts.engine = choice.splice ? "sockmap" : "io_uring";
  facts.engine_reason = choice.reason;
  name_counters(p);

  auto table = flow::FlowTable::create(flows_max);
  if (!table) return table.error();
  p.table.emplace(std::move(*table));
  p.flows_bytes = sizeof(flow::Flow) * flows_max;
  void* memory = mmap(nullptr, p.flows_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return Error{"no memory for the flow table"};
  p.flows = static_cast<flow::Flow*>(memory);
  shared.table = &*p.table;
  shared.flows = p.flows;
  shared.free_slots.reserve(flows_max);
  for (uint32_t slot = flows_max; slot-- > 0;) shared.free_slots.push_back(slot);
  auto plan = flow::Plan::make(c, *p.listener_names, *p.upstream_names, nullptr);
  if (!plan) return plan.error();
  shared.set_plan(*plan);

  p.clients.emplace(flows_max, PENSTOCK_LISTENERS_MAX);
  shared.clients = &*p.clients;

  for (unsigned t = 0; t < threads; t++) shared.workers.push_back(std::make_unique<flow::Worker>(shared, t));
  p.listeners.emplace(shared.workers, choice.splice ? p.sockmap.get() : nullptr);
  facts.listeners = &*p.listeners;
  const auto failures = p.listeners->apply(*plan);
  if (!failures.empty()) return Error{failures[0]};
  return Nothing{};
}

// First SIGTERM: no new flows, the open ones have until the grace is over, then they are reset. The second
// one, or an empty house, ends it.
void wait_for_the_end(Parts& p, Reload& reload, int signals, std::atomic<Readiness>* readiness) {
  flow::Shared& shared = p.shared;
  std::chrono::milliseconds grace{};
  uint64_t end_ns = 0;
  for (bool draining = false;;) {
    int timeout_ms = p.services->turn();
    if (draining) {
      if (flow::read(shared.statistics.totals->active) == 0 || io::now_ns() >= end_ns) break;
      timeout_ms = 20;
    }
    pollfd polled[] = {{signals, POLLIN, 0}, {p.services->wake_fd(), POLLIN, 0}};
    if (poll(polled, std::size(polled), timeout_ms) <= 0 || !polled[0].revents) continue;
    signalfd_siginfo info{};
    if (read(signals, &info, sizeof info) != sizeof info) continue;
    if (info.ssi_signo == SIGHUP) {
      reload.run();
      continue;
    }
    if (draining) break;
    reload.refuse("the daemon is ending");
    grace = shared.plan()->config().daemon.shutdown_grace;
    end_ns = io::now_ns() + static_cast<uint64_t>(std::chrono::nanoseconds(grace).count());
    draining = true;
    *readiness = Readiness::draining;
    log::info("draining: {} flows have {:.1f} s", flow::read(shared.statistics.totals->active),
              static_cast<double>(grace.count()) / 1000);
    sd_notify(0, "STOPPING=1");
    p.listeners->stop();
    for (auto& w : shared.workers) w->stop_accepting();
  }
  if (uint64_t left = flow::read(shared.statistics.totals->active))
    log::warn("{} flows are reset: {}", left,
              io::now_ns() >= end_ns ? "the grace is over" : "a second signal ends it at once");
}

// What a reload changes, or an error, and nothing has changed.
Result<std::vector<std::string>> apply(Parts& p, const config::Config& c) {
  auto plan = flow::Plan::make(c, *p.listener_names, *p.upstream_names, p.shared.plan().get());
  if (!plan) return plan.error();
  p.shared.memory_limit_bytes = memory_limit_bytes(c);
  if (p.sockmap)
    std::atomic_ref(p.sockmap->globals().memory_limit_bytes)
        .store(p.shared.memory_limit_bytes, std::memory_order_relaxed);
  log::set_level(c.daemon.log_level);
  p.resolver->configure({c.dns.servers, c.dns.ttl_min, c.dns.ttl_max, c.dns.stale});
  p.shared.set_plan(*plan);
  check_servers_of(**plan, *p.checker);
  p.services->wake();
  auto waiting = p.listeners->apply(*plan);
  for (const std::string& sentence : waiting) log::warn("{}; tried again every second", sentence);
  return waiting;
}

int run(const Arguments& arguments, const config::Config& config, int signals) {
  Caretaker caretaker;  // ends last
  Parts p;
  Facts facts;
  facts.started_ns = io::now_ns();
  facts.started_unix_s =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  utsname kernel{};
  uname(&kernel);
  facts.kernel = kernel.release;
  // First of all, so that a second daemon is told about the first one and not about its ports.
  std::atomic<Readiness> readiness{Readiness::starting};
  auto admin = Admin::start(config.admin.socket, [&](const Json& request, const Admin::Reply& reply) {
    if (readiness == Readiness::starting) return reply({{"error", "penstockd is still starting"}});
    if (request.value("command", "") == "doctor") return examine(*p.doctor, *p.shared.plan(), request, reply);
    reply(answer(p.shared, facts, request));
  });
  if (!admin) return fail(admin.error().message);
  std::unique_ptr<Admin> admin_socket = std::move(*admin);
  std::unique_ptr<Http> http;
  if (!config.admin.http.empty())
    http = std::make_unique<Http>(
        *config::parse_bind(config.admin.http),  // the configuration has been checked
        [&](const std::string& path) { return page(path, readiness, p.shared, facts); });
  facts.http = http.get();
  facts.http_address = config.admin.http;
  if (auto built = build(p, config, facts); !built) return fail(built.error().message);
  if (!config.daemon.user.empty()) {
    auto s = caretaker.start([&, daemon = getpid()] {
      if (p.sockmap) p.sockmap->remove_for(daemon);
      admin_socket->remove_socket();
    });
    if (!s) return fail(s.error().message);
  }
  if (auto s = become(config.daemon.user, config.daemon.group); !s) return fail(s.error().message);
  const config::Dns& d = config.dns;
  auto resolver = dns::Resolver::start({d.servers, d.ttl_min, d.ttl_max, d.stale});
  if (!resolver) return fail(resolver.error().message);
  p.resolver = std::move(*resolver);
  p.shared.resolver = p.resolver.get();
  auto checker = check::Checker::start(*p.resolver, [&](const std::string& key, const check::Health& health) {
    tell_flows(p.shared, key, health);
    p.services->wake();
  });
  if (!checker) return fail(checker.error().message);
  p.checker = std::move(*checker);
  facts.checker = p.checker.get();
  auto services = Services::make(p.shared, *p.checker);
  if (!services) return fail(services.error().message);
  p.services = std::move(*services);
  p.shared.on_servers_changed = [&](const config::Upstream& what, const flow::Upstream& servers) {
    p.services->servers_changed(what, servers);
  };
  p.shared.on_dial_failed = [&](const flow::Server& s, flow::CloseReason why) {
    p.checker->suspect(check::Target::key_of(s.upstream(), s.what().text), flow::text(why));
  };
  p.doctor.emplace(*p.resolver);
  if (auto s = p.listeners->watch(); !s) return fail(s.error().message);

  for (auto& w : p.shared.workers) {
    auto started = w->start();
    if (started) continue;
    for (auto& other : p.shared.workers) other->stop(flow::CloseReason::shutdown);
    return fail(started.error().message);
  }
  facts.io = p.shared.workers[0]->io_description();
  if (const std::string& refusal = p.shared.workers[0]->io_refusal(); !refusal.empty()) {
    log::warn("io_uring is refused, epoll takes its place: {}", refusal);
    if (!p.shared.splice) facts.engine_reason += "; everything is relayed, with epoll";
  }
  Reload reload(arguments, config, [&](const config::Config& c) { return apply(p, c); });
  facts.reload = &reload;
  check_servers_of(*p.shared.plan(), *p.checker);
  readiness = Readiness::ready;
  log::info("ready: engine {} ({}), {}, {} threads, {} flows at most", facts.engine, facts.engine_reason,
            facts.io, p.shared.workers.size(), facts.flows_max);
  sd_notify(0, "READY=1");

  wait_for_the_end(p, reload, signals, &readiness);
  admin_socket.reset();  // it asks workers, which must run
  for (auto& w : p.shared.workers) w->stop(flow::CloseReason::shutdown);
  for (auto& w : p.shared.workers) w->join();
  http.reset();  // it looks at all that goes now
  uint64_t closed = 0;
  for (size_t i = 0; i < flow::kCloseReasons; i++)
    closed += flow::read(p.shared.statistics.closed(static_cast<flow::CloseReason>(i)));
  log::info("stopped: {} accepted = {} active + {} closed", flow::read(p.shared.statistics.totals->accepted),
            flow::read(p.shared.statistics.totals->active), closed);
  return 0;
}

}  // namespace

int serve(const Arguments& arguments) {
  config::Parsed parsed = config::load(arguments.config, arguments.env_file);
  for (const auto& d : parsed.diagnostics) fprintf(stderr, "%s\n", d.text.c_str());
  if (!parsed.config) return 2;

  // Signals come through a descriptor; blocked here, they are blocked in every thread made from here on.
  sigset_t signals;
  sigemptyset(&signals);
  for (int s : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&signals, s);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  Fd signal_fd(signalfd(-1, &signals, SFD_CLOEXEC));

  log::start(parsed.config->daemon.log_level, parsed.config->daemon.log_format);
  int code =
      signal_fd.valid() ? run(arguments, *parsed.config, signal_fd.get()) : fail("no descriptor for signals");
  log::stop();
  return code;
}

}  // namespace penstock::daemon
