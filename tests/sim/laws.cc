// SPDX-License-Identifier: Apache-2.0
// What must hold: of each byte when it arrives, of the counters after every step, of each life when it is
// over.
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

#include "proxy_protocol/proxy_protocol.h"
#include "sim/life.h"
#include "sim/sockmap.h"

namespace penstock::sim {

using flow::CloseReason;

namespace {

CloseReason reason_of(const std::string& word) {
  for (size_t i = 0; i < flow::kCloseReasons; i++)
    if (word == flow::kCloseReasonNames[i]) return static_cast<CloseReason>(i);
  g_kernel->violated("the log has a reason that does not exist: " + word);
}

}  // namespace

// ---- bytes ----

void Life::on_client_bytes(Client& client, const Extent& e) {
  if (!client.server)
    for (Upstream& u : servers_)
      if (e.stream == &u.peer->out) client.server = &u;
  const std::string& me = client.peer->out.name;
  if (!client.server || e.stream != &client.server->peer->out)
    kernel_.violated(fmt::format("{} hears {}, byte {}", me, e.stream->name, e.offset));
  if (e.offset != client.peer->heard && !kernel_.weather.broken())
    kernel_.violated(fmt::format("{} hears byte {} of {}, and has heard {}", me, e.offset, e.stream->name,
                                 client.peer->heard));
}

void Life::on_server_bytes(Upstream& server, const Extent& e) {
  const std::string& me = server.peer->out.name;
  if (!server.client)
    for (Client& c : clients_)
      if (e.stream == &c.peer->out) server.client = &c;
  if (!server.client || e.stream != &server.client->peer->out) {
    if (server.client || server.peer->heard != server.header.size() || e.stream->first.empty())
      kernel_.violated(fmt::format("{} hears {}, byte {}", me, e.stream->name, e.offset));
    server.header += e.stream->first.substr(e.offset, e.length);
    return;
  }
  const uint64_t wanted = server.client->shape->header_bytes + server.peer->heard - server.header.size();
  if (e.offset != wanted && !kernel_.weather.broken())
    kernel_.violated(fmt::format("{} hears byte {} of {}, not {}", me, e.offset, e.stream->name, wanted));
}

void Life::on_client_eof(Client& client) {
  if (client.reason == "client_closed_early" || client.reason == "proxy_probe" ||
      client.reason == "no_server")
    return;
  look_at_records();
  if (!client.server)
    for (Upstream& u : servers_)
      if (client_of_.count(u.peer->socket->other->cookie) &&
          client_of_[u.peer->socket->other->cookie] == client.ours->cookie)
        client.server = &u;
  const std::string& me = client.peer->out.name;
  if (!client.server) {  // then its line will say why
    if (client.peer->heard) kernel_.violated(me + " hears FIN, and bytes of nobody");
    return;
  }
  const Peer& server = *client.server->peer;
  if (!server.said_fin || server.said != client.peer->heard)
    kernel_.violated(fmt::format("{} hears FIN after {} bytes; the server said {}{}", me, client.peer->heard,
                                 server.said, server.said_fin ? "" : " and no FIN"));
}

void Life::on_server_eof(Upstream& server) {
  look_at_records();
  const uint64_t cookie = server.peer->socket->other->cookie;
  if (!server.client)
    for (Client& c : clients_)
      if (client_of_.count(cookie) && client_of_[cookie] == c.ours->cookie) server.client = &c;
  const std::string& me = server.peer->out.name;
  if (!server.client && server.peer->heard == 0) return;  // dialled beside another address that was faster
  if (!server.client) kernel_.violated(me + " hears FIN and belongs to nobody");
  const Peer& client = *server.client->peer;
  const uint64_t from_client = server.peer->heard - server.header.size() + server.client->shape->header_bytes;
  if (!client.said_fin || client.said != from_client)
    kernel_.violated(fmt::format("{} hears FIN after {} bytes; the client said {}{}", me, from_client,
                                 client.said, client.said_fin ? "" : " and no FIN"));
}

// ---- after every step ----

void Life::look_at_records() {
  uint64_t charged = 0;
  for (uint32_t slot = 0; slot < table_->used(); slot++) {
    flow::FlowRecord& r = (*table_)[slot];
    if (r.fd[flow::kUpstream] >= 0 && r.phase != flow::Phase::free)
      client_of_[r.cookie[flow::kUpstream]] = r.cookie[flow::kClient];
    if (!shape_.sockmap) continue;
    for (uint32_t d : {2 * slot, 2 * slot + 1}) {
      charged += shared_->sockmap->direction(d).charged;
      const uint64_t waits = kernel_.waiting_bytes(d);
      const uint64_t most = shape_.config.flow.buffer_bytes + (1 << 20);
      if (waits > most && !kernel_.weather.broken())  // what is written twice counts as written
        kernel_.violated(
            fmt::format("direction {}: {} bytes wait for the target, more than {}", d, waits, most));
    }
  }
  penstock_totals& t = *shared_->statistics.totals;
  uint64_t closed = 0;
  for (size_t i = 0; i < flow::kCloseReasons; i++)
    closed += shared_->statistics.closed(static_cast<CloseReason>(i));
  if (t.updates_begun == t.updates_done && t.accepted != t.active + closed)
    kernel_.violated(fmt::format("accepted {} is not active {} + closed {}", t.accepted, t.active, closed));
  if (shape_.sockmap && charged != shared_->sockmap->globals().held_bytes)
    kernel_.violated(fmt::format("held_bytes {} is not the sum of what is charged, {}",
                                 shared_->sockmap->globals().held_bytes, charged));
}

// ---- when it is over ----

// What the line says was passed on: no less than was heard, no more than was said.
void Life::check_bytes(const Client& c, std::string_view line) {
  if (!c.server || kernel_.weather.broken()) return;
  const Peer &client = *c.peer, &server = *c.server->peer;
  const auto check = [&](std::string_view word, uint64_t heard, uint64_t said) {
    const size_t at = line.find(word);
    if (at == line.npos) return;
    const uint64_t bytes = strtoull(line.data() + at + word.size(), nullptr, 10);
    if (bytes < heard || bytes > said)
      kernel_.violated(fmt::format("{}: the line says{}{}; heard were {}, said {}", client.out.name, word,
                                   bytes, heard, said));
  };
  check(" up=", server.heard - c.server->header.size(),
        client.said - std::min(client.said, c.shape->header_bytes));
  check(" down=", client.heard, server.said);
}

void Life::on_line(std::string_view line) {
  const size_t at = line.find("flow cookie="), reason = line.find(" reason=");
  if (at != 0 || reason == line.npos) return;
  const uint64_t cookie = strtoull(line.data() + 12, nullptr, 10);
  lines_++;
  for (Client& c : clients_) {
    if (c.ours->cookie != cookie) continue;
    if (c.lines++) kernel_.violated("two lines of one flow");
    c.reason = line.substr(reason + 8);
    const CloseReason r = reason_of(c.reason);
    check_bytes(c, line);
    summary_.closed[r]++;
    expect_delivery(c, r);
    if (!may_.count(r))
      kernel_.violated(
          fmt::format("{} ends with {}, and nothing happened that allows it", c.peer->out.name, c.reason));
    return;
  }
  kernel_.violated("a line of a flow that never came: " + std::string(line));
}

// Behind both FINs a flow is `completed` when all is acknowledged, but for a FIN on its way; and one side
// that fails takes nothing from the other.
void Life::expect_delivery(const Client& c, CloseReason r) {
  const auto has_more = [](const Socket* ours) {
    return ours->fd >= 0 && ours->state != TCP_CLOSE && ours->queued() > (ours->in_flight() ? 1 : 0);
  };
  if (!c.server) return;
  const Socket* const upstream = c.server->peer->socket->other;
  if (r == CloseReason::completed && (has_more(c.ours) || has_more(upstream)))
    kernel_.violated(c.peer->out.name + " is completed with bytes that a peer has not acknowledged");
  const bool failed = r == CloseReason::client_reset || r == CloseReason::upstream_reset;
  if (!failed || !c.ours->fin_queued || !upstream->fin_queued) return;
  const std::pair<const Socket*, const Peer*> sides[] = {{c.ours, c.peer.get()},
                                                         {upstream, c.server->peer.get()}};
  for (const auto& [ours, peer] : sides)
    if (ours->state != TCP_CLOSE && !peer->did_reset && peer->talk.end != Talk::close) owed_.insert(peer);
}

void Life::check_end(const Client& c) {
  const Peer& p = *c.peer;
  if (c.lines == 0 && (p.heard || c.server)) kernel_.violated(p.out.name + " was served and left no line");
  const bool network_failed = std::any_of(shape_.commands.begin(), shape_.commands.end(),
                                          [](const Command& x) { return x.what == Command::fail_socket; });
  if (!network_failed)
    for (const Peer* peer : owed_)
      if (!peer->heard_eof && !peer->did_reset)
        kernel_.violated(peer->out.name + " was owed bytes behind both FINs, and heard no FIN");
  const bool ended_by_us = c.reason == "completed" && !network_failed;  // it may fail after our last look
  if (ended_by_us && !p.did_reset && p.talk.end != Talk::close && !p.heard_eof)
    kernel_.violated(fmt::format("{} is completed and heard no FIN", p.out.name));
  if (ended_by_us && c.server) {
    const Peer& s = *c.server->peer;
    if (!s.did_reset && s.talk.end != Talk::close && !s.heard_eof)
      kernel_.violated(fmt::format("{} is completed and heard no FIN", s.out.name));
  }
}

void Life::check_totals() {
  flow::Statistics& st = shared_->statistics;
  penstock_totals& t = *st.totals;
  const auto zero = [&](const char* what, uint64_t n) {
    if (n) kernel_.violated(fmt::format("{}: {} at the end", what, n));
  };
  zero("active", t.active);
  zero("pipes in use", t.pipes);
  zero("memory of pipes", t.pipe_bytes);
  if (t.accepted != lines_) kernel_.violated(fmt::format("accepted {}, lines {}", t.accepted, lines_));
  for (const auto& [reason, n] : summary_.closed)
    if (st.closed(reason) != n)
      kernel_.violated(fmt::format("{} counted {} times, happened {}", text(reason), st.closed(reason), n));
  for (uint32_t i = 0; i < 8; i++) {
    zero("active of a listener", st.listeners[i].active);
    zero("active of an upstream", st.upstreams[i].active);
    if (st.listeners[i].accepted != st.listeners[i].closed) kernel_.violated("a listener's accounts differ");
  }
  if (shared_->free_slots.size() != shape_.flows_max) kernel_.violated("a slot is lost");
  for (const auto& plan : plans_)
    for (size_t i = 0; i < shape_.config.upstreams.size(); i++)
      plan->servers_at(i).for_each_server([&](flow::Server& s) { zero("flows of a server", s.flows); });
  if (shape_.sockmap) {
    zero("held_bytes", shared_->sockmap->globals().held_bytes);
    const MapsLeft left = maps_left();
    zero("cookies known to the programs", left.cookies);
    zero("entries of `flows`", left.flows);
    zero("sources", left.sources);
    zero("targets", left.targets);
  }
  for (size_t i = 0; i < flow::kLaneChanges; i++) {
    const auto why = static_cast<flow::LaneChange>(i);
    if (st.lane_changes(why)) summary_.lane_changes[why] += st.lane_changes(why);
  }
  summary_.flows = t.accepted;
  summary_.spliced_bytes = t.spliced_bytes;
  summary_.relayed_bytes = t.relayed_bytes;
}

// Which ends are possible, given what is going to happen. In a life where nothing does, `completed` alone.
void Life::expect(const Shape& shape) {
  using R = CloseReason;
  may({R::completed});
  const bool faults = shape.weather.fault_in || kernel_.fail_nth != UINT64_MAX;
  if (faults)
    may({R::client_reset, R::upstream_reset, R::client_timeout, R::upstream_timeout, R::resolve_failed,
         R::connect_refused, R::connect_unreachable, R::connect_timeout, R::connect_failed, R::fd_limit,
         R::internal_error, R::client_closed_early, R::proxy_probe});
  if (shape.weather.broken()) {
    may({R::account_mismatch, R::client_reset, R::upstream_reset});  // a byte twice looks like a FIN less
    if (static_cast<uint64_t>(shape.config.timeouts.idle->count()) * kMillisecond <=
        60 * kSecond)  // before it is sure
      may({R::idle_timeout, R::half_closed_timeout});
  }
  bool silent = false;
  for (const ClientShape& c : shape.clients) {
    if (c.talk.end == Talk::reset || c.talk.end == Talk::close || c.talk.reset_at_ns) {
      may({R::client_reset, R::client_closed_early, R::proxy_probe});
    }
    silent |= !c.talk.ends_by_itself();
    if (c.talk.begin_ns + c.talk.linger_ns + (c.talk.pause_ns + shape.weather.delay_max_ns) * 50 >
        4 * kSecond)
      may({R::client_hello_timeout, R::proxy_header_timeout, R::proxy_not_trusted});
    if (c.talk.urgent_at != UINT64_MAX)
      may({R::urgent_data, R::client_hello_timeout, R::proxy_header_timeout});
  }
  for (const ServerShape& s : shape.servers) {
    if (s.talk.end == Talk::reset || s.talk.end == Talk::close || s.talk.reset_at_ns) {
      may({R::upstream_reset});
    }
    silent |= !s.talk.ends_by_itself();
    if (s.talk.urgent_at != UINT64_MAX) may({R::urgent_data});
    if (s.what == Remote::resetting) may({R::upstream_reset});
    if (s.what == Remote::refusing) may({R::connect_refused});
    if (s.what == Remote::unreachable) may({R::connect_unreachable});
    if (s.what == Remote::silent || s.delay_ns > kSecond) may({R::connect_timeout});
  }
  for (const NameShape& n : shape.names)
    if ((n.addresses.empty() && n.targets.empty()) || n.changes || n.delay_ns > kSecond)
      may({R::resolve_failed, R::connect_timeout});
  if (silent)
    may({R::idle_timeout, R::half_closed_timeout, R::client_hello_timeout, R::proxy_header_timeout});
  if (shape.flows_max < shape.clients.size() || shape.config.limits.max_flows) may({R::max_flows});
  if (shape.memory_limit < (64u << 20)) may({R::memory_limit});
  if (shape.weather.descriptors_max < 100) may({R::fd_limit});
  for (const config::Listener& l : shape.config.listeners) {
    if (!l.accept_proxy.from.empty())
      may({R::proxy_header_malformed, R::proxy_not_trusted, R::proxy_probe, R::client_closed_early});
    for (const config::Route& r : l.routes)
      if (r.reject) may({R::route_rejected});
    if (!l.routes.empty()) may({R::client_hello_malformed, R::client_closed_early});
    if (!l.deny.empty()) may({R::denied});
    if (l.limits.max_flows) may({R::max_flows});
    if (l.limits.max_flows_per_client) may({R::max_flows_per_client});
    if (l.limits.new_flows_per_client) may({R::new_flows_per_client});
  }
  for (const Command& c : shape.commands) {
    if (c.what == Command::kill) may({R::killed});
    if (c.what == Command::stop || c.what == Command::stop_accepting) may({R::shutdown});
    if (c.what == Command::drain) may({R::no_server});
    if (c.what == Command::fail_socket)
      may({R::client_timeout, R::upstream_timeout, R::client_reset, R::upstream_reset});
  }
}

}  // namespace penstock::sim
