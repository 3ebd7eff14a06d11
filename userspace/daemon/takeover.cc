// SPDX-License-Identifier: Apache-2.0
#include "daemon/takeover.h"

#include <fmt/format.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <vector>

#include "base/log.h"
#include "crash/directory.h"
#include "flow/account.h"
#include "flow/socket_names.h"

namespace penstock::daemon {
namespace {

std::string death_of(const keeper::State& state) {
  const int signal = state.last_crash_signal;
  if (state.last_crash_cause == keeper::Cause::no_heartbeat) return "no heartbeat for 10 s";
  if (!signal) return fmt::format("exit code {}", state.last_crash_exit_code.load());
  if (!sigabbrev_np(signal)) return fmt::format("signal {}", signal);
  return fmt::format("SIG{} ({})", sigabbrev_np(signal), sigdescr_np(signal));
}

// Or its flow's record was torn.
bool is_new(int fd, const std::vector<uint64_t>& lost) {
  flow::SocketAccount account;
  if (std::find(lost.begin(), lost.end(), flow::cookie_of(fd)) != lost.end()) return false;
  return flow::read_account(fd, false, &account) && account.written_bytes == 0 &&
         account.received_bytes <= flow::unread_bytes(fd) + 1;  // a FIN counts one
}

flow::FlowTable* g_table = nullptr;  // for a crash

void describe(const InHand::Flow& flow, char* out, size_t bytes) {
  flow::describe(*g_table, flow, out, bytes);
}

// "; in hand: cookie=…" of what the threads worked on when the process died; empty: nothing.
std::string in_hand_of(const crash::Shared& crashed) {
  std::string all;
  for (const InHand& hand : crashed.hands) {
    const auto flow = hand.flow();
    if (!flow) continue;
    char words[160];
    describe(*flow, words, sizeof words);
    all += fmt::format("{}{}", all.empty() ? "; in hand: " : "; ", words);
  }
  return all;
}

// Its own report, or the one that is written here; in words, for the log.
std::string report_death(const Kept& kept, const crash::Options& reports, const keeper::State& state) {
  if (reports.directory < 0) return "no report, for want of a directory";
  auto written = crash::write_report(reports, {state.last_crash_pid, death_of(state)});
  crash::keep_newest(reports.directory, crash::kReportsKept);
  if (!written) return "no report: " + written.error().message;
  return fmt::format("report {}/{}", kept.crash_directory, *written);
}

}  // namespace

crash::Options report_options(Kept& kept) {
  g_table = &*kept.table;
  return {.directory = kept.crashes.get(),
          .shared = &crash::Shared::take_over(kept.memory->crash),
          .log_ring = std::as_bytes(std::span(kept.memory->log_ring)),
          .describe = describe};
}

Estate inspect(Parts& p, Kept& kept, const keeper::State& state) {
  Estate e;
  const crash::Options reports = report_options(kept);
  crash::Shared& crashed = *reports.shared;
  const uint64_t crashes = state.crashes;
  const bool died = kept.memory->crashes_told.exchange(crashes) != crashes;
  if (died)
    e.death = fmt::format("worker {} died: {}; {}{}", state.last_crash_pid.load(), death_of(state),
                          report_death(kept, reports, state), in_hand_of(crashed));
  // What a new program died of that did not come to serve is no crash, and says nothing of a flow under this
  // one.
  if (const uint32_t guilty = crashed.guilty; died && guilty && guilty <= PENSTOCK_THREADS_MAX)
    if (const auto flow = crashed.hands[guilty - 1].flow()) flow::blame(p.shared, *flow);
  crashed.guilty = 0;
  for (InHand& hand : crashed.hands) hand.let_go();
  e.stock = flow::take_stock(p.shared, kept.threads);
  std::sort(e.stock.descriptors.begin(), e.stock.descriptors.end());
  e.found = audit_descriptors([&](int fd) {
    return kept.is_kept(fd) || keeper::is_keepers(state, fd) ||
           std::binary_search(e.stock.descriptors.begin(), e.stock.descriptors.end(), fd);
  });
  e.plans = needed_plans(kept);
  kept.plans->keep_only(e.plans);
  return e;
}

Status take_over(Parts& p, Kept& kept, const Arguments& arguments, const Estate& estate) {
  const uint64_t begun_ns = io::now_ns();
  const Found& found = estate.found;
  flow::Shared& shared = p.shared;
  std::map<uint32_t, std::shared_ptr<const flow::Plan>> plans;
  for (const Plans::Kept& k : estate.plans) {
    config::Parsed parsed = config::load(k.source, arguments.config);
    if (!parsed.config || parsed.config->listeners.size() != k.listener_slots.size() ||
        parsed.config->upstreams.size() != k.upstream_slots.size())
      return Error{fmt::format("configuration {} cannot be read again", k.id)};
    for (size_t i = 0; i < k.listener_slots.size(); i++)
      p.listener_names->restore(parsed.config->listeners[i].name, k.listener_slots[i]);
    for (size_t i = 0; i < k.upstream_slots.size(); i++)
      p.upstream_names->restore(parsed.config->upstreams[i].name, k.upstream_slots[i]);
    const flow::Plan* before = plans.empty() ? nullptr : plans.rbegin()->second.get();
    auto plan = flow::Plan::make(*parsed.config, *p.listener_names, *p.upstream_names, before, k.id);
    if (!plan) return plan.error();
    kept.plans->keep(k.source, *plan);
    plans[k.id] = *plan;
  }
  const std::shared_ptr<const flow::Plan> newest = plans.rbegin()->second;
  shared.set_plan(newest);
  shared.memory_limit_bytes = memory_limit_bytes(newest->config());
  if (shared.sockmap)
    std::atomic_ref(shared.sockmap->globals().memory_limit_bytes)
        .store(shared.memory_limit_bytes, std::memory_order_relaxed);
  log::set_level(newest->config().daemon.log_level);
  drain_again(kept.memory->drained, *newest);
  const bool ending = kept.memory->end_ns != 0;
  if (!ending) p.listeners->adopt(found.listeners);
  for (const FoundListener& l : found.listeners)
    if (ending) close(l.fd);
  for (const uint32_t slot : estate.stock.flows) {
    const flow::FlowRecord& r = (*kept.table)[slot];
    const auto plan = plans.find(r.plan);
    shared.workers[r.thread]->adopt(slot, plan == plans.end() ? newest : plan->second);
  }
  if (!ending)
    for (const std::string& sentence : p.listeners->apply(newest))
      log::warn("{}; tried again every second", sentence);
  size_t next = 0;
  for (const int fd : found.accepted) {
    Endpoint bound;
    const auto listener = p.listeners->listener_of(flow::local_of(fd), device_of(fd), &bound);
    if (listener && is_new(fd, estate.stock.lost))
      shared.workers[next++ % shared.workers.size()]->adopt_connection(fd, *listener, bound, newest);
    else
      reset_connection(fd);
  }
  log::info("taken over: {}; {} connections, {} listening sockets; {} descriptors closed; {:.1f} ms",
            flow::in_words(estate.stock), found.accepted.size(), found.listeners.size(), found.closed,
            static_cast<double>(io::now_ns() - begun_ns) / 1e6);
  return Nothing{};
}

}  // namespace penstock::daemon
