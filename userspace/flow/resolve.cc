// SPDX-License-Identifier: Apache-2.0
// flow/resolve.cc: choose a server of the upstream, and ask for its addresses.
#include <algorithm>
#include <utility>

#include "base/log.h"
#include "flow/dial.h"
#include "flow/worker.h"

namespace penstock::flow {

void set_answer(Server& server, const dns::Answer& answer) {
  if (!server.set_answer(answer)) return;
  if (answer.stale)
    log::warn("upstream {}: server {}: what DNS said before serves: {}", server.upstream(),
              server.what().text, answer.error);
  else
    log::info("upstream {}: server {}: DNS answers again", server.upstream(), server.what().text);
}

void Worker::begin_resolve(Flow& f) {
  FlowRecord& r = *f.record;
  const config::Upstream& u = f.plan->upstream(r.upstream);
  count(shared_.statistics.upstreams[r.upstream].active);
  r.upstream_counted = 1;
  f.dial = new Dial;
  f.dial->retries_left = u.retries;
  // One deadline from here to the first byte: a name that takes its time takes it from the dial.
  f.dial->until_ns = now_ns_ + timeout_ns(f, &config::Timeouts::connect);
  if (u.srv.empty()) return begin_server(f);
  set_phase_deadline(f, f.dial->until_ns);
  shared_.resolver->resolve_srv(u.srv, answer_for(f, &Worker::on_targets));
}

void Worker::on_targets(Flow& f, const dns::Answer& answer) {
  const uint32_t slot = f.record->upstream;
  Upstream& upstream = f.plan->servers(slot);
  if (upstream.set_answer(answer)) shared_.on_servers_changed(f.plan->upstream(slot), upstream);
  if (upstream.size() > 0) return begin_server(f);
  targets_failed(f, answer.error);
}

void Worker::targets_failed(Flow& f, const std::string& why) {
  const config::Upstream& u = f.plan->upstream(f.record->upstream);
  count(shared_.statistics.upstreams[f.record->upstream].resolve_failed);
  log::debug("upstream {}: {}: {}", u.name, u.srv, why);  // each flow meets it; services.cc says it once
  begin_close(f, f.dial->tried.empty() ? CloseReason::resolve_failed : f.dial->failure);
}

// The next server. It has an equal share of the time that is left with those that may be tried after it.
void Worker::begin_server(Flow& f) {
  FlowRecord& r = *f.record;
  Dial& dial = *f.dial;
  const config::Upstream& u = f.plan->upstream(r.upstream);
  Upstream& upstream = f.plan->servers(r.upstream);
  f.server = upstream.choose(r.client.address, dial.tried, now_ns_);
  if (!f.server) {
    if (dial.tried.empty()) return begin_close(f, CloseReason::no_server);
    if (u.srv.empty() || std::exchange(dial.targets_renewed, true)) return begin_close(f, dial.failure);
    set_phase_deadline(f, dial.until_ns);
    return shared_.resolver->renew_srv(u.srv, answer_for(f, &Worker::on_targets));
  }
  r.server = f.server->id();
  const size_t servers = upstream.size(), others = servers - std::min(servers, dial.tried.size() + 1);
  const uint64_t left = dial.until_ns > now_ns_ ? dial.until_ns - now_ns_ : 0;
  dial.server_since_ns = now_ns_;
  dial.server_until_ns = now_ns_ + left / (1 + std::min<size_t>(others, dial.retries_left));
  dial.addresses.clear();
  dial.next = 0;
  dial.wants_room = dial.renewing = dial.renewed = false;
  set_phase_deadline(f, dial.server_until_ns);
  const config::Server& s = f.server->what();
  if (!s.address) {
    const auto family = static_cast<dns::Family>(u.family);
    return shared_.resolver->resolve(s.host, family, answer_for(f, &Worker::on_resolved));
  }
  dns::Answer literal;
  literal.addresses.push_back(*s.address);
  on_resolved(f, literal);
}

// Runs `then` on this thread, unless the flow has gone on meanwhile: it asked anew, or ended.
dns::Resolver::Done Worker::answer_for(Flow& f, void (Worker::*then)(Flow&, const dns::Answer&)) {
  return [this, slot = f.slot, generation = f.record->generation.load(), question = ++f.dial->question, then,
          home = std::this_thread::get_id()](const dns::Answer& answer) {
    auto task = [=](Worker& w) {
      Flow* flow = w.find(slot, generation);
      if (!flow || !flow->dial || flow->dial->question != question) return;
      const Holding holding(w, *flow, kAnswer);
      (w.*then)(*flow, answer);
    };
    if (std::this_thread::get_id() == home)
      local_posts_.push_back(task);  // answered from the cache
    else
      post(task);
  };
}

void Worker::on_resolved(Flow& f, const dns::Answer& answer) {
  const FlowRecord& r = *f.record;
  if (!f.server->what().address) set_answer(*f.server, answer);
  if (answer.addresses.empty()) {
    count(shared_.statistics.upstreams[r.upstream].resolve_failed);
    return server_failed(f, CloseReason::resolve_failed, answer.error);
  }
  f.dial->addresses = answer.addresses;
  f.server->order(&f.dial->addresses, now_ns_);
  advance(f, Event::resolved);
  begin_attempt(f);
}

void Worker::on_resolve_deadline(Flow& f) {
  const char* const why = "no answer from DNS in time";
  if (!f.server) return targets_failed(f, why);
  count(shared_.statistics.upstreams[f.record->upstream].resolve_failed);
  server_failed(f, CloseReason::resolve_failed, why);
}

}  // namespace penstock::flow
