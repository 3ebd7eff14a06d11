// SPDX-License-Identifier: Apache-2.0
#include "daemon/checks.h"

#include <optional>

namespace penstock::daemon {
namespace {

flow::Health flow_health(check::State state) {
  switch (state) {
    case check::State::unknown:
      return flow::Health::unknown;
    case check::State::up:
      return flow::Health::up;
    case check::State::down:
      return flow::Health::down;
  }
  return flow::Health::unknown;
}

double unix_s(std::chrono::system_clock::time_point t) {
  return std::chrono::duration<double>(t.time_since_epoch()).count();
}

Json certificate_json(const check::Certificate& c) {
  return {{"subject", c.subject},
          {"issuer", c.issuer},
          {"not_after", unix_s(c.not_after)},
          {"days_left", c.days_left(std::chrono::system_clock::now())},
          {"self_signed", c.self_signed}};
}

Json dial_json(const check::Dial& d) {
  const check::Outcome& o = d.outcome;
  Json j = {{"proxy_protocol", check::text(d.header)},
            {"local", d.local},
            {"address", o.address.text()},
            {"ok", o.ok},
            {"stage", check::text(o.stage)},
            {"took_ms", o.took.count()}};
  if (!o.ok) j.update({{"failure", check::text(o.failure)}, {"reason", o.reason}});
  if (!o.said.empty()) j["said"] = o.said;
  if (o.local) j["source"] = o.local->text();
  if (o.certificate) j["certificate"] = certificate_json(*o.certificate);
  return j;
}

Json examination_json(const check::Examination& e) {
  Json dials = Json::array();
  for (const check::Dial& d : e.dials) dials.push_back(dial_json(d));
  Json j = {{"upstream", e.patient.upstream},
            {"server", e.patient.server},
            {"port", e.patient.port},
            {"type", check::text(e.patient.type)},
            {"configured", check::text(e.patient.proxy_protocol)},
            {"dials", dials},
            {"verdict", check::text(e.verdict)},
            {"says", e.says},
            {"advice", e.advice}};
  if (e.expects) j["expects"] = check::text(*e.expects);
  if (e.trusted) j["trusted"] = e.trusted->text();
  return j;
}

// Those whose upstream says on_marked_down = "close". By name: a flow may be older than a server that a
// configuration in between did not have.
void close_flows_of(const flow::Shared& shared, const flow::Server& server) {
  for (const auto& worker : shared.workers) {
    worker->post([upstream = server.upstream(), text = server.what().text](flow::Worker& w) {
      w.for_each_flow([&](flow::Flow& f) {
        if (f.server && f.server->upstream() == upstream && f.server->what().text == text &&
            f.plan->upstream(f.record->upstream).on_marked_down == config::OnMarkedDown::close)
          w.kill_here(f, flow::CloseReason::server_down);
      });
    });
  }
}

// With the servers that `srv` names now.
config::Config config_of(const flow::Plan& plan) {
  config::Config config = plan.config();
  for (size_t i = 0; i < config.upstreams.size(); i++) {
    config::Upstream& u = config.upstreams[i];
    if (u.srv.empty()) continue;
    plan.servers_at(i).for_each_server([&](const flow::Server& s) { u.servers.push_back(s.what()); });
  }
  return config;
}

}  // namespace

void tell_flows(const flow::Shared& shared, const std::string& key, const check::Health& health) {
  const auto plan = shared.plan();
  for (size_t i = 0; i < plan->config().upstreams.size(); i++) {
    plan->servers_at(i).for_each_server([&](flow::Server& s) {
      if (check::Target::key_of(s.upstream(), s.what().text) != key) return;
      s.health = flow_health(health.state);
      if (s.health == flow::Health::down) close_flows_of(shared, s);
    });
  }
}

void check_servers_of(const flow::Plan& plan, check::Checker& checker) {
  checker.set(check::targets_of(config_of(plan)));
  for (size_t i = 0; i < plan.config().upstreams.size(); i++) {
    plan.servers_at(i).for_each_server([&](flow::Server& s) {
      const auto health = checker.health(check::Target::key_of(s.upstream(), s.what().text));
      if (!health) s.health = flow::Health::unknown;
      // It has come back before the checker knew that it had gone. What tell_flows() says meanwhile is newer.
      auto unknown = flow::Health::unknown;
      if (health) s.health.compare_exchange_strong(unknown, flow_health(health->state));
    });
  }
}

Json health_json(config::CheckType type, const check::Health& h) {
  Json j = {{"type", check::text(type)}, {"state", check::text(h.state)},
            {"since", unix_s(h.since)},  {"checks", h.checks},
            {"failed", h.failed},        {"failed_in_a_row", h.failed_in_a_row},
            {"changes", h.changes}};
  if (!h.reason.empty()) j.update({{"failure", check::text(h.failure)}, {"reason", h.reason}});
  if (h.checked) j.update({{"checked", unix_s(*h.checked)}, {"took_ms", h.took.count()}});
  if (h.address) j["address"] = h.address->text();
  if (h.certificate) j["certificate"] = certificate_json(*h.certificate);
  return j;
}

void examine(check::Doctor& doctor, const flow::Plan& plan, const Json& request, const Admin::Reply& reply) {
  std::optional<uint16_t> port;
  if (request.contains("port")) {
    const auto number = request.at("port").get<int64_t>();
    if (number < 1 || number > 65535) return reply({{"error", "port: 1 to 65535"}});
    port = static_cast<uint16_t>(number);
  }
  auto patient = check::find_patient(config_of(plan), request.at("upstream").get<std::string>(),
                                     request.value("server", ""), port);
  if (!patient) return reply({{"error", patient.error().message}});
  auto begun = doctor.examine(std::move(*patient),
                              [reply](const check::Examination& e) { reply(examination_json(e)); });
  if (!begun) reply({{"error", begun.error().message}});
}

}  // namespace penstock::daemon
