// SPDX-License-Identifier: Apache-2.0
// flow/resolve.cc: choose a server of the upstream, and its addresses.
#include <arpa/inet.h>

#include "base/log.h"
#include "flow/worker.h"

namespace penstock::flow {

void Worker::begin_resolve(Flow& f) {
  FlowRecord& r = *f.record;
  const config::Upstream& u = shared_.config->upstreams[r.upstream];
  count(shared_.statistics.upstreams[r.upstream].active);
  r.upstream_counted = 1;
  r.server = shared_.next_server[r.upstream].fetch_add(1, std::memory_order_relaxed) %
             static_cast<uint32_t>(u.servers.size());
  const config::Server& s = u.servers[r.server];
  // One deadline from here to the first byte: a name that takes its time takes it from the dial.
  set_phase_deadline(f, now_ns_ + timeout_ns(f, &config::Timeouts::connect));
  if (s.address) {
    dns::Answer literal;
    literal.addresses.push_back(*s.address);
    return on_resolved(f, literal);
  }
  auto family = static_cast<dns::Family>(u.family);
  shared_.resolver->resolve(s.host, family,
                            [this, slot = f.slot, generation = r.generation.load(),
                             home = std::this_thread::get_id()](const dns::Answer& a) {
                              auto task = [slot, generation, a](Worker& w) {
                                Flow* flow = w.find(slot, generation);
                                if (flow && flow->record->phase == Phase::resolving) w.on_resolved(*flow, a);
                              };
                              if (std::this_thread::get_id() == home)
                                local_posts_.push_back(task);  // answered from the cache
                              else
                                post(task);
                            });
}

void Worker::on_resolved(Flow& f, const dns::Answer& answer) {
  FlowRecord& r = *f.record;
  if (!shared_.config->upstreams[r.upstream].servers[r.server].address) {
    std::lock_guard lock(shared_.answers_mutex);
    shared_.answers[r.upstream][r.server] = answer;
  }
  if (answer.addresses.empty()) {
    count(shared_.statistics.upstreams[r.upstream].resolve_failed);
    log::warn("upstream {}: {}: {}", shared_.config->upstreams[r.upstream].name,
              shared_.config->upstreams[r.upstream].servers[r.server].host, answer.error);
    return begin_close(f, CloseReason::resolve_failed);
  }
  f.addresses = new std::vector<IpAddress>(answer.addresses);
  r.address_index = 0;
  advance(f, Event::resolved);
  begin_dial(f);
}

}  // namespace penstock::flow
