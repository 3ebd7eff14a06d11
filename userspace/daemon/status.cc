// SPDX-License-Identifier: Apache-2.0
#include "daemon/status.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstring>
#include <future>
#include <mutex>
#include <optional>
#include <set>

#include "base/unavailable.h"
#include "daemon/checks.h"
#include "daemon/drained.h"
#include "daemon/http.h"
#include "daemon/listen.h"
#include "daemon/reload.h"
#include "daemon/snapshot.h"
#include "io/io.h"
#include "keeper/state.h"

namespace penstock::daemon {
namespace {

constexpr uint32_t kUpgradePatienceS = 60;

using flow::Flow;
using flow::FlowView;
using flow::Worker;

// Runs `visit` on every worker's thread, one after the other. REQUIRES: the workers run (the daemon stops the
// admin socket before them).
void ask_workers(flow::Shared& shared, const std::function<void(Worker&)>& visit) {
  for (auto& w : shared.workers) {
    std::promise<void> done;
    w->post([&](Worker& worker) {
      visit(worker);
      done.set_value();
    });
    done.get_future().wait();
  }
}

// {"state": ..., "reason": ..., "sockets": [...]} of each listener, over all threads.
std::vector<Json> listener_states(flow::Shared& shared, const flow::Plan& plan, Listeners& listeners) {
  const size_t count = plan.config().listeners.size();
  std::vector<flow::ListenerView> views(count);
  ask_workers(shared, [&](Worker& w) {
    for (uint32_t i = 0; i < count; i++) {
      flow::ListenerView v = w.listener_view(plan.listener_slot(i));
      views[i].listening &= v.listening;
      if (v.accept_error) views[i].accept_error = v.accept_error;
    }
  });
  std::vector<Json> states(count);
  std::vector<std::string> waits(count);
  for (const Listeners::State& s : listeners.states()) {
    const auto index = plan.find_listener(s.listener);
    if (!index) continue;  // of a configuration that has come meanwhile
    Json socket = {{"address", s.address}, {"state", s.waits.empty() ? "listening" : "waiting"}};
    if (!s.device.empty()) socket["interface"] = s.device;
    if (!s.waits.empty()) socket["reason"] = s.waits;
    if (s.optional) socket["optional"] = true;
    states[*index]["sockets"].push_back(std::move(socket));
    if (s.waits.empty() || s.optional) continue;
    std::string& all = waits[*index];
    all += fmt::format("{}{}: {}", all.empty() ? "" : "; ", s.bind, s.waits);
  }
  for (size_t i = 0; i < count; i++) {
    const flow::ListenerView& v = views[i];
    if (!v.listening)
      states[i].update({{"state", "closed"}, {"reason", "draining"}});
    else if (v.accept_error)
      states[i].update({{"state", "waiting"}, {"reason", strerror(v.accept_error)}});
    else if (!waits[i].empty())
      states[i].update({{"state", "waiting"}, {"reason", waits[i]}});
    else
      states[i].update({{"state", "listening"}});
  }
  return states;
}

const char* state_of(const flow::Server& s) {
  if (s.drained) return "drained";
  if (s.health == flow::Health::down) return "down";
  if (s.shunned(io::now_ns())) return "failing";
  return s.health == flow::Health::up ? "up" : "unchecked";
}

// A server that is a name: what it meant when it was last dialled; nothing before.
Json server_json(const config::Upstream& upstream, const flow::Server& s, const check::Checker& checker) {
  Json j = {{"server", s.what().text},
            {"state", state_of(s)},
            {"flows", s.flows.load()},
            {"addresses", Json::array()}};
  if (const uint32_t failures = s.failures()) j["failed_dials"] = failures;
  const auto health = checker.health(check::Target::key_of(s.upstream(), s.what().text));
  if (upstream.check && health) j["health"] = health_json(upstream.check->type, *health);
  if (s.what().address) {
    j["addresses"].push_back(s.what().address->text());
    return j;
  }
  const dns::Answer answer = s.answer();
  for (const IpAddress& a : answer.addresses) j["addresses"].push_back(a.text());
  if (!answer.error.empty()) j["error"] = answer.error;
  return j;
}

Json http(const Facts& facts) {
  if (!facts.http) return {{"state", "off"}};
  Http::State state = facts.http->state();
  Json out = {{"address", facts.http_address}, {"state", state.listening ? "listening" : "waiting"}};
  if (!state.listening) out["reason"] = state.reason;
  return out;
}

Json listeners(flow::Shared& shared, const Facts& facts, const Snapshot& s) {
  const config::Config& c = s.plan->config();
  Json all = Json::array();
  std::vector<Json> states = listener_states(shared, *s.plan, *facts.listeners);
  for (size_t i = 0; i < c.listeners.size(); i++) {
    Json bind = Json::array();
    for (const auto& b : c.listeners[i].bind) bind.push_back(b.text);
    Json l = {{"name", c.listeners[i].name},
              {"bind", bind},
              {"accepted", s.listeners[i].accepted},
              {"active", s.listeners[i].active},
              {"closed", s.listeners[i].closed}};
    l.update(states[i]);
    all.push_back(std::move(l));
  }
  return all;
}

Json upstreams(const Snapshot& s, const check::Checker& checker) {
  const config::Config& c = s.plan->config();
  Json all = Json::array();
  for (size_t i = 0; i < c.upstreams.size(); i++) {
    Json servers = Json::array();
    s.plan->servers_at(i).for_each_server(
        [&](const flow::Server& server) { servers.push_back(server_json(c.upstreams[i], server, checker)); });
    Json u = {{"name", c.upstreams[i].name},
              {"servers", servers},
              {"active", s.upstreams[i].active},
              {"dialed", s.upstreams[i].dialed},
              {"dial_failed", s.upstreams[i].dial_failed},
              {"resolve_failed", s.upstreams[i].resolve_failed}};
    if (!c.upstreams[i].srv.empty()) u["srv"] = c.upstreams[i].srv;
    if (const std::string error = s.plan->servers_at(i).error(); !error.empty()) u["error"] = error;
    all.push_back(std::move(u));
  }
  return all;
}

Json totals(const flow::Shared& shared, const Snapshot& s) {
  const penstock_totals& t = s.totals;
  Json closed = Json::object(), changes = Json::object();
#define X(name) closed[#name] = t.closed.name;
  PENSTOCK_CLOSE_REASONS(X)
#undef X
#define X(name) changes[#name] = t.lane_changes.name;
  PENSTOCK_LANE_CHANGES(X)
#undef X
  return {{"accepted", t.accepted},
          {"active", t.active},
          {"closed", closed},
          {"bytes", {{"splice", t.spliced_bytes}, {"relay", t.relayed_bytes}}},
          {"spliced_flows", t.spliced_flows},
          {"lane_changes", changes},
          {"late_completions", t.late_completions},
          {"accept_failed", t.accept_failed},
          {"pipes", t.pipes},
          {"pipe_bytes", t.pipe_bytes},
          {"pipes_refused", t.pipes_refused},
          {"tlvs_dropped", t.tlvs_dropped},
          {"log_lines_dropped", s.log_lines_dropped},
          {"clients_forgotten", s.clients_forgotten},
          {"held_bytes", s.globals.held_bytes},
          {"memory_limit_bytes", shared.memory_limit_bytes.load()}};
}

Json sockmap(const penstock_globals& g) {
  return {{"closes", g.closes},
          {"closes_refused", g.closes_refused},
          {"trims", g.trims},
          {"overlaps", g.overlaps},
          {"overlap_bytes", g.overlap_bytes},
          {"pulls", g.pulls},
          {"pulls_failed", g.pulls_failed}};
}

// How often workers were started and died; the last death.
Json worker(const keeper::State& k) {
  Json out = {{"pid", getpid()},
              {"starts", k.starts.load()},
              {"crashes", k.crashes.load()},
              {"upgrades", k.upgrades.load()},
              {"state", keeper::name(k.phase.load())}};
  const uint32_t answered = k.upgrades_answered;  // before the result: it is written after it
  const keeper::UpgradeResult result = k.result;
  out["upgrade"] = {{"answered", answered}, {"result", keeper::name(result)}};
  if (const std::string reason = reason_of(result, k.result_detail); !reason.empty())
    out["upgrade"]["reason"] = reason;
  if (const int64_t when_ns = k.last_crash_ns) {
    Json last = {{"unix_s", static_cast<double>(when_ns) / 1e9},
                 {"pid", k.last_crash_pid.load()},
                 {"cause", k.last_crash_cause == keeper::Cause::no_heartbeat ? "no heartbeat" : "died"}};
    if (const int signal = k.last_crash_signal)
      last["signal"] = signal;
    else
      last["exit_code"] = k.last_crash_exit_code.load();
    out["last_crash"] = std::move(last);
  }
  return out;
}

// The answer is the next worker's: status, worker.upgrade.
Json upgrade(keeper::State& k, const Json& request) {
  const auto program = request.value("program", std::string());
  const auto patience_s = request.value("patience_s", kUpgradePatienceS);
  if (patience_s < 1 || patience_s > 600) return {{"error", "patience_s: accepted: 1 to 600"}};
  if (!keeper::ask_upgrade(k, program, 1000 * patience_s))
    return {{"error", "an upgrade is under way, or the path has more than 255 bytes"}};
  return {{"asked", true}};
}

Json status(flow::Shared& shared, const Facts& facts) {
  Snapshot s = take_snapshot(shared);
  Json out = {{"version", PENSTOCK_VERSION},
              {"pid", facts.pid},
              {"worker", worker(*facts.keeper)},
              {"uptime_s", (io::now_ns() - facts.started_ns) / 1'000'000'000},
              {"engine", facts.engine},
              {"engine_reason", facts.engine_reason},
              {"io", facts.io},
              {"kernel", facts.kernel},
              {"threads", shared.workers.size()},
              {"flows_max", facts.flows_max},
              {"configuration", facts.reload->state()},
              {"http", http(facts)},
              {"listeners", listeners(shared, facts, s)},
              {"upstreams", upstreams(s, *facts.checker)},
              {"totals", totals(shared, s)},
              {"sockmap", shared.sockmap ? sockmap(s.globals) : Json::object()}};
  if (shared.sockmap) {
    out["pin"] = shared.sockmap->pin();
    if (!shared.sockmap->pin_error().empty()) out["pin_error"] = shared.sockmap->pin_error();
  }
  return out;
}

Json direction_json(const flow::DirectionView& d) {
  return {{"lane", flow::text(d.lane)}, {"bytes", d.spliced_bytes + d.relayed_bytes},
          {"spliced", d.spliced_bytes}, {"relayed", d.relayed_bytes},
          {"held_bytes", d.held_bytes}, {"changes", d.lane_changes}};
}

Json flows(flow::Shared& shared, const Json& request) {
  std::optional<Cidr> client;
  std::string listener = request.value("listener", "");
  if (std::string text = request.value("client", ""); !text.empty()) {
    client = Cidr::parse(text);
    if (!client) return {{"error", "client: not an address or CIDR"}};
  }
  std::vector<FlowView> views;
  ask_workers(shared, [&](Worker& w) {
    w.for_each_flow([&](Flow& f) {
      FlowView v = w.view(f);
      if (!listener.empty() && v.listener != listener) return;
      if (client && !client->contains(v.client.address)) return;
      views.push_back(std::move(v));
    });
  });
  Json list = Json::array();
  for (const FlowView& v : views) {
    Json j = {{"cookie", std::to_string(v.cookie)},
              {"listener", v.listener},
              {"client", v.client.text()},
              {"destination", v.destination.text()},
              {"proxy", v.proxy.port ? v.proxy.text() : ""},
              {"sni", v.sni},
              {"upstream", v.upstream},
              {"server", v.server.port ? v.server.text() : ""},
              {"phase", flow::text(v.phase)},
              {"thread", v.thread},
              {"age_ms", v.age_ms},
              {"idle_ms", v.idle_ms},
              {"directions",
               {{"up", direction_json(v.direction[flow::kUp])},
                {"down", direction_json(v.direction[flow::kDown])}}}};
    list.push_back(std::move(j));
  }
  return {{"flows", list}};
}

// Runs `act` on the flow whose client socket has this cookie.
Json on_flow(flow::Shared& shared, const Json& request, const std::function<void(Worker&, Flow&)>& act) {
  std::string text = request.value("cookie", "");
  bool found = false;
  ask_workers(shared, [&](Worker& w) {
    Flow* flow = nullptr;
    w.for_each_flow([&](Flow& f) {
      if (std::to_string(f.record->cookie[flow::kClient]) == text) flow = &f;
    });
    if (!flow) return;
    found = true;
    act(w, *flow);
  });
  if (!found) return {{"error", "no flow has this cookie"}};
  return {{"ok", true}};
}

// {"cookies": [...]}: one pass over the flows, however many are named.
Json kill(flow::Shared& shared, const Json& request) {
  auto wanted = request.at("cookies").get<std::set<std::string>>();
  Json killed = Json::array();
  ask_workers(shared, [&](Worker& w) {
    w.for_each_flow([&](Flow& f) {
      auto found = wanted.extract(std::to_string(f.record->cookie[flow::kClient]));
      if (found.empty()) return;
      killed.push_back(found.value());
      w.kill_here(f, flow::CloseReason::killed);
    });
  });
  return {{"killed", killed}, {"not_found", wanted}};
}

Json order_lane(flow::Shared& shared, const Json& request) {
  std::string direction = request.value("direction", ""), to = request.value("to", "");
  if (direction != "up" && direction != "down") return {{"error", "direction: up or down"}};
  flow::Lane lane = to == "splice"  ? flow::Lane::splice
                    : to == "held"  ? flow::Lane::held
                    : to == "relay" ? flow::Lane::relay
                                    : flow::Lane::none;
  if (lane == flow::Lane::none) return {{"error", "to: splice, held or relay"}};
  bool followed = false;
  Json result = on_flow(shared, request, [&](Worker& w, Flow& f) {
    followed = w.order_lane_here(f, direction == "up" ? flow::kUp : flow::kDown, lane);
  });
  if (result.contains("ok") && !followed)
    return {{"error", "this direction may not go to that lane from where it is"}};
  return result;
}

// {"name": "mailbox"}, or "mailbox/192.0.2.1:25".
Json drain(const flow::Shared& shared, const Facts& facts, const Json& request, bool drained) {
  const auto name = request.at("name").get<std::string>();
  std::unique_lock<std::mutex> alone;  // a reload would make its plan of the former drains
  if (facts.reload) alone = facts.reload->exclude();
  const auto plan = shared.plan();
  std::vector<DrainedServer> servers;
  if (!set_drained(*plan, name, drained, &servers)) {
    std::string names;
    for (const config::Upstream& u : plan->config().upstreams) names += (names.empty() ? "" : ", ") + u.name;
    return {{"error",
             "no upstream or server has this name (accepted: UPSTREAM, UPSTREAM/SERVER as penstock "
             "status names it; upstreams: " +
                 names + ")"}};
  }
  if (facts.drained) keep_drained(*facts.drained, *plan);
  Json answer = Json::array();
  for (const auto& [s, changed] : servers) {
    if (changed)
      log::info("upstream {}: server {} {}", s->upstream(), s->what().text,
                drained ? "is drained: no new flows" : "serves again");
    answer.push_back({{"server", s->upstream() + "/" + s->what().text}, {"flows", s->flows.load()}});
  }
  return {{drained ? "drained" : "resumed", answer}};
}

}  // namespace

std::string reason_of(keeper::UpgradeResult result, int detail) {
  using R = keeper::UpgradeResult;
  const auto because = [&](const char* what) { return fmt::format("{}: {}", what, strerror(detail)); };
  switch (result) {
    case R::not_now:
      return "not while it is starting or ending";
    case R::missing:
      return because("the program cannot be opened");
    case R::not_trusted:
      return "the program is not root's alone, others own it or may write to it; or it was exchanged "
             "meanwhile";
    case R::not_executable:
      return because("the program cannot be executed");
    case R::trial_failed:
      return detail ? fmt::format("it refused on trial, exit code {}; why is in the log", detail)
                    : "it is no penstockd, or one that knows no upgrades: it ended on trial without a word";
    case R::trial_killed:
      return fmt::format("it was killed by signal {} on trial", detail);
    case R::trial_timed_out:
      return "its trial took too long";
    case R::not_quiesced:
      return "the worker did not put everything down in time";
    case R::worker_died:
      return "the worker died meanwhile";
    case R::exec_failed:
      return because("it cannot take the keeper's place");
    case R::unknown_layout:
      return "it does not know what is kept";
    case R::start_failed:
      return fmt::format("its worker died before it served, signal or exit code {}; why is in the log",
                         detail);
    case R::start_timed_out:
      return "its worker did not serve in time";
    case R::back_failed:
      return because("the old program cannot be executed any more");
    case R::none:
    case R::done:
      break;
  }
  return "";
}

Json answer(flow::Shared& shared, const Facts& facts, const Json& request) {
  std::string command = request.value("command", "");
  if (command == "status") return status(shared, facts);
  if (command == "flows") return flows(shared, request);
  if (command == "lane") return order_lane(shared, request);
  if (command == "kill") return kill(shared, request);
  if (command == "upgrade") return upgrade(*facts.keeper, request);
  if (command == "drain") return drain(shared, facts, request, true);
  if (command == "resume") return drain(shared, facts, request, false);
  if (command == "reload") return facts.reload->run();
  if (is_unavailable(kUnavailableCommands, command)) return {{"error", unavailable(command)}};
  return {{"error", "unknown command"}};
}

}  // namespace penstock::daemon
