// SPDX-License-Identifier: Apache-2.0
#include "daemon/run.h"

#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <latch>

#include "base/assert.h"
#include "base/log.h"
#include "config/address.h"
#include "config/config.h"
#include "crash/signals.h"
#include "daemon/admin.h"
#include "daemon/checks.h"
#include "daemon/engine.h"
#include "daemon/http.h"
#include "daemon/kept.h"
#include "daemon/metrics.h"
#include "daemon/privileges.h"
#include "daemon/reload.h"
#include "daemon/services.h"
#include "daemon/status.h"
#include "daemon/takeover.h"
#include "flow/worker.h"
#include "keeper/keeper.h"

namespace penstock::daemon {
namespace {

constexpr uint64_t kBeatNs = 1'000'000'000;

int fail(const std::string& message) {
  log::error("{}", message);
  return 1;
}

// Whether a thread has had the same flow in hand since the last look. It is to be blamed if nothing changes;
// but not in the place of one that crashes meanwhile, which blames itself.
class Watch {
 public:
  Watch(crash::Shared& crashed, size_t threads) : crashed_(crashed), turns_(threads) {}
  bool stands_still() {
    uint32_t guilty = 0;
    for (size_t i = 0; i < turns_.size(); i++) {
      const uint32_t turn = crashed_.hands[i].turn(), before = std::exchange(turns_[i], turn);
      if (turn % 2 && turn == before) guilty = static_cast<uint32_t>(i + 1);
    }
    uint32_t before = std::exchange(blamed_, guilty);
    crashed_.guilty.compare_exchange_strong(before, guilty);
    return guilty != 0;
  }

 private:
  crash::Shared& crashed_;
  std::vector<uint32_t> turns_;
  uint32_t blamed_ = 0;
};

// First SIGTERM: no new flows, the open ones have until the grace is over, then they are reset. The second
// one, or an empty house, ends it. Of a worker that died meanwhile the grace goes on.
void wait_for_the_end(Parts& p, Kept& kept, Reload& reload, keeper::State& state, int signals,
                      std::atomic<Readiness>* readiness) {
  flow::Shared& shared = p.shared;
  const int orphaned = keeper::hear_of_keepers_end(state);
  bool draining = false, alone = false;
  std::atomic<uint64_t>& end_ns = kept.memory->end_ns;
  const auto drain = [&] {
    reload.refuse("the daemon is ending");
    const auto grace = shared.plan()->config().daemon.shutdown_grace;
    if (end_ns == 0) end_ns = io::now_ns() + static_cast<uint64_t>(std::chrono::nanoseconds(grace).count());
    draining = true;
    *readiness = Readiness::draining;
    log::info("draining: {} flows have {:.1f} s", flow::read(shared.statistics.totals->active),
              static_cast<double>(end_ns - std::min<uint64_t>(end_ns, io::now_ns())) / 1e9);
    p.listeners->stop();
    for (auto& w : shared.workers) w->stop_accepting();
  };
  const auto tell_upgrade = [&] {
    const uint32_t answered = state.upgrades_answered;
    if (kept.memory->answers_told.exchange(answered) == answered) return;
    if (state.result == keeper::UpgradeResult::done)
      log::info("upgraded: penstockd {} goes on", PENSTOCK_VERSION);
    else
      log::error("upgrade: the old program goes on: {}", reason_of(state.result, state.result_detail));
  };
  Watch watch(crash::Shared::take_over(kept.memory->crash), shared.workers.size());
  for (uint64_t beat_ns = 0;;) {
    if (state.ends_wanted > 1) break;
    if (!draining && state.ends_wanted > 0) drain();
    int timeout_ms = p.services->turn();
    if (io::now_ns() >= beat_ns) {
      tell_upgrade();
      if (!watch.stands_still()) keeper::beat(state);
      beat_ns = io::now_ns() + kBeatNs;
    }
    const int until_beat_ms = static_cast<int>((beat_ns - std::min(beat_ns, io::now_ns())) / 1'000'000) + 1;
    if (timeout_ms < 0 || timeout_ms > until_beat_ms) timeout_ms = until_beat_ms;
    if (draining) {
      if (flow::read(shared.statistics.totals->active) == 0 || io::now_ns() >= end_ns) break;
      timeout_ms = 20;
    }
    pollfd polled[] = {
        {signals, POLLIN, 0}, {p.services->wake_fd(), POLLIN, 0}, {alone ? -1 : orphaned, POLLIN, 0}};
    if (poll(polled, std::size(polled), timeout_ms) <= 0) continue;
    if (polled[2].revents) {
      alone = true;
      log::error("the keeper has ended: nobody would start another worker; ending");
      if (!draining) drain();
    }
    if (!polled[0].revents) continue;
    signalfd_siginfo info{};
    if (read(signals, &info, sizeof info) != sizeof info) continue;
    if (info.ssi_signo == SIGHUP) {
      reload.run();
      continue;
    }
    if (info.ssi_signo == SIGUSR2 && state.step == keeper::UpgradeStep::quiescing) {
      log::info("upgrade: everything is put down for the next program");
      // As if we had died: the next worker finds everything as it is, also the lines that wait in the ring.
      // After log::stop() threads that still run would put out theirs behind its back.
      _exit(keeper::kQuiesced);
    }
    if (info.ssi_signo == SIGUSR1 || info.ssi_signo == SIGUSR2) continue;
    if (draining && (state.ends_wanted > 1 || state.ends_wanted == 0 || alone)) break;
    if (!draining) drain();
  }
  if (uint64_t left = flow::read(shared.statistics.totals->active))
    log::warn("{} flows are reset: {}", left,
              io::now_ns() >= end_ns ? "the grace is over" : "a second signal ends it at once");
}

// What a reload changes, or an error, and nothing has changed.
Result<std::vector<std::string>> apply(Parts& p, Kept& kept, const config::Config& c,
                                       const config::Source& source) {
  const auto before = p.shared.plan();
  auto plan = flow::Plan::make(c, *p.listener_names, *p.upstream_names, before.get(), before->id() + 1);
  if (!plan) return plan.error();
  kept.plans->keep(source, *plan);
  p.shared.memory_limit_bytes = memory_limit_bytes(c);
  if (p.shared.sockmap)
    std::atomic_ref(p.shared.sockmap->globals().memory_limit_bytes)
        .store(p.shared.memory_limit_bytes, std::memory_order_relaxed);
  log::set_level(c.daemon.log_level);
  p.resolver->configure({c.dns.servers, c.dns.ttl_min, c.dns.ttl_max, c.dns.stale});
  p.shared.set_plan(*plan);
  keep_drained(kept.memory->drained, **plan);
  check_servers_of(**plan, *p.checker);
  p.services->wake();
  auto waiting = p.listeners->apply(*plan);
  for (const std::string& sentence : waiting) log::warn("{}; tried again every second", sentence);
  return waiting;
}

// Until every worker has adopted its flows: each looks into its inbox only then.
void wait_for_adoptions(const flow::Shared& shared) {
  const auto adopted = std::make_shared<std::latch>(static_cast<ptrdiff_t>(shared.workers.size()));
  for (auto& w : shared.workers) w->post([=](flow::Worker&) { adopted->count_down(); });
  adopted->wait();
}

}  // namespace

int run_worker(const Arguments& arguments, const config::Config& started_with, const config::Source& source,
               Kept& kept, keeper::State& state) {
  const bool is_first = state.ever_ready == 0;
  // A worker that cannot go on with what another left leaves it to the next one, as if it had died: closed by
  // nobody.
  struct Own {
    std::unique_ptr<Parts> parts = std::make_unique<Parts>();
    bool closes;
    ~Own() {
      if (!closes) (void)parts.release();
    }
  } own{.closes = is_first};
  Fd signals;  // blocked, in every thread made from here on
  Parts& p = *own.parts;
  Facts facts;
  Estate estate;
  config::Config config = started_with;
  if (auto built = build(p, kept, facts); !built) return fail(built.error().message);
  const crash::Options reports = report_options(kept);
  p.shared.hands = reports.shared->hands;
  p.shared.prepare_thread = [&reports](uint32_t thread) {
    // Without memory for it a report of a full stack will be missing.
    (void)crash::prepare_thread(&reports.shared->hands[thread]);
  };
  if (!is_first) {
    estate = inspect(p, kept, state);
    if (!estate.plans.empty())
      if (auto parsed = config::load(estate.plans.back().source, arguments.config); parsed.config)
        config = *parsed.config;
  }
  make_workers(p, kept, facts);
  log::start(config.daemon.log_level, started_with.daemon.log_format, kept.memory->log_ring);
  crash::install(reports);
  (void)crash::prepare_thread(nullptr);
  if (!estate.death.empty()) log::warn("{}", estate.death);
  if (estate.stock.abandoned)
    log::error("{} flows were abandoned: workers crash as they close them", estate.stock.abandoned);
  sigset_t mask;
  sigemptyset(&mask);
  for (int s : {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2}) sigaddset(&mask, s);
  signals.reset(signalfd(-1, &mask, SFD_CLOEXEC));
  if (!signals.valid()) return fail("no descriptor for signals");
  utsname kernel{};
  uname(&kernel);
  facts.kernel = kernel.release;
  facts.keeper = &state;
  facts.drained = &kept.memory->drained;
  std::atomic<Readiness> readiness{Readiness::starting};
  std::atomic<bool> said_ready{false};
  const uid_t keepers = geteuid();  // before become()
  auto admin =
      Admin::start(*kept.admin, [&, keepers](const Json& request, uid_t asker, const Admin::Reply& reply) {
        if (readiness == Readiness::starting) return reply({{"error", "penstockd is still starting"}});
        // Whoever has an answer counts on what the keeper has been told: for an upgrade, after a death.
        said_ready.wait(false);
        if (request.value("command", "") == "doctor")
          return examine(*p.doctor, *p.shared.plan(), request, reply);
        // It is executed with the keeper's privileges. Without a name it is the one at the daemon's own path.
        if (request.value("command", "") == "upgrade" && asker != 0 && asker != keepers &&
            !request.value("program", "").empty())
          return reply({{"error", "only root may name a program"}});
        reply(answer(p.shared, facts, request));
      });
  if (!admin) return fail(admin.error().message);
  std::unique_ptr<Admin> admin_thread = std::move(*admin);
  // Of a worker that somebody wanted to end alone: the next one listens again.
  if (state.ends_wanted == 0) kept.memory->end_ns = 0;
  if (auto s = is_first || estate.plans.empty() ? begin(p, kept, config, source)
                                                : take_over(p, kept, arguments, estate);
      !s)
    return fail(s.error().message);
  std::unique_ptr<Http> http;
  if (!started_with.admin.http.empty())
    http = std::make_unique<Http>(
        *config::parse_bind(started_with.admin.http),  // the configuration has been checked
        [&](const std::string& path) { return page(path, readiness, p.shared, facts); });
  facts.http = http.get();
  facts.http_address = started_with.admin.http;
  if (auto s = become(started_with.daemon.user, started_with.daemon.group); !s)
    return fail(s.error().message);
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
    if (!is_first) {  // as if it had died: the next one has the flows
      log::error("{}", started.error().message);
      _exit(1);
    }
    for (auto& other : p.shared.workers) other->stop(flow::CloseReason::shutdown);
    return fail(started.error().message);
  }
  facts.io = p.shared.workers[0]->io_description();
  if (const std::string& refusal = p.shared.workers[0]->io_refusal(); !refusal.empty()) {
    log::warn("io_uring is refused, epoll takes its place: {}", refusal);
    if (!p.shared.splice) facts.engine_reason += "; everything is relayed, with epoll";
  }
  Reload reload(arguments, started_with, p.shared.plan()->id() - 1,
                [&](const config::Config& c, const config::Source& s) { return apply(p, kept, c, s); });
  if (!is_first) reload.go_on(config);
  reload.before = [&] { keeper::say_reloading(state); };
  reload.after = [&] { keeper::say_ready(state); };
  facts.reload = &reload;
  check_servers_of(*p.shared.plan(), *p.checker);
  // As long as the old program can come back; after any other death it serves meanwhile.
  if (state.step == keeper::UpgradeStep::trying) wait_for_adoptions(p.shared);
  readiness = Readiness::ready;
  keeper::say_ready(state);
  said_ready = true;
  said_ready.notify_all();
  log::info("ready: engine {} ({}), {}, {} threads, {} flows at most", facts.engine, facts.engine_reason,
            facts.io, p.shared.workers.size(), facts.flows_max);

  wait_for_the_end(p, kept, reload, state, signals.get(), &readiness);
  admin_thread.reset();  // it asks workers, which must run
  for (auto& w : p.shared.workers) w->stop(flow::CloseReason::shutdown);
  for (auto& w : p.shared.workers) w->join();
  own.closes = true;
  http.reset();  // it looks at all that goes now
  uint64_t closed = 0;
  for (size_t i = 0; i < flow::kCloseReasons; i++)
    closed += flow::read(p.shared.statistics.closed(static_cast<flow::CloseReason>(i)));
  log::info("stopped: {} accepted = {} active + {} closed", flow::read(p.shared.statistics.totals->accepted),
            flow::read(p.shared.statistics.totals->active), closed);
  return 0;
}

}  // namespace penstock::daemon
