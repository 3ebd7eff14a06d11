// SPDX-License-Identifier: Apache-2.0
#include "verdict.h"

#include <fmt/format.h>

#include <cstring>

namespace penstock::torture {
namespace {

uint64_t promised(const EndPlan& plan, const EndReport& report) {
  return plan.send_bytes == kWithoutEnd ? report.sent : plan.send_bytes;
}

// What one end may hold against the other, and what lies between them.
Failure judge_end(const EndPlan& peer_plan, const EndReport& self, const EndReport& peer) {
  const uint64_t expected = promised(peer_plan, peer);
  if (self.wrong_at) return Failure::corrupt;
  if (self.received > expected) return Failure::surplus;
  if (self.fin_seen && (self.received < expected || !peer.fin_sent)) {
    return peer.reset_sent ? Failure::rst_became_fin : Failure::truncated;
  }
  return Failure::none;
}

Failure judge_ending(const EndPlan& self_plan, const EndReport& self, const EndReport& peer) {
  if (self.reset_sent) return Failure::none;  // it left first and cannot complain
  if (self.reset_seen) return peer.reset_sent ? Failure::none : Failure::unasked_rst;
  const bool complete = self.fin_seen && self.fin_sent && self.sent == promised(self_plan, self);
  if (complete) return Failure::none;
  return peer.reset_sent ? Failure::rst_not_passed : Failure::hang;
}

Failure sort_out(const LifePlan& plan, const EndReport& client, const EndReport& server, bool hung) {
  const EndPlan& client_plan = plan.end(Side::client);
  const EndPlan& server_plan = plan.end(Side::server);
  const Failure by_server = judge_end(client_plan, server, client);
  if (by_server == Failure::corrupt || by_server == Failure::surplus) return by_server;
  const Failure by_client = judge_end(server_plan, client, server);
  if (by_client == Failure::corrupt || by_client == Failure::surplus) return by_client;

  if (!client.arrived) return Failure::connect_failed;
  if (server.wrong_header) return Failure::wrong_header;
  if (by_server != Failure::none) return by_server;
  if (!server.arrived) {
    if (client.reset_sent || plan.starved) return Failure::none;
    return hung ? Failure::hang : Failure::never_arrived;
  }
  if (by_client != Failure::none) return by_client;
  if (hung) return client.reset_sent || server.reset_sent ? Failure::rst_not_passed : Failure::hang;
  if (plan.starved) return Failure::none;
  const Failure client_ending = judge_ending(client_plan, client, server);
  return client_ending != Failure::none ? client_ending : judge_ending(server_plan, server, client);
}

}  // namespace

std::string_view name_of(Failure f) {
  constexpr std::string_view kNames[kFailures] = {
      "none",        "corrupt",    "surplus",        "truncated",     "rst_became_fin", "rst_not_passed",
      "unasked_rst", "hang",       "connect_failed", "never_arrived", "wrong_header",   "dialled_twice",
      "stranger",    "headerless", "wrong_reason",   "wrong_account", "unlogged"};
  return kNames[static_cast<size_t>(f)];
}

std::string describe(const EndReport& r) {
  if (!r.arrived)
    return r.error != 0 ? fmt::format("not connected ({})", strerrorname_np(r.error)) : "absent";
  std::string out = fmt::format("sent {}{}{}, received {}", r.sent, r.fin_sent ? "+FIN" : "",
                                r.reset_sent ? "+RST" : "", r.received);
  if (r.fin_seen) out += "+FIN";
  if (r.reset_seen) out += fmt::format("+RST({})", strerrorname_np(r.error));
  if (r.wrong_at) out += fmt::format(", wrong at {}", *r.wrong_at);
  if (!r.remark.empty()) out += " (" + r.remark + ")";
  return out;
}

Verdict judge(const LifePlan& plan, const EndReport& client, const EndReport& server, bool hung) {
  const Failure failure = sort_out(plan, client, server, hung);
  if (failure == Failure::none) return {};
  return {failure, fmt::format("client {}; server {}", describe(client), describe(server))};
}

}  // namespace penstock::torture
