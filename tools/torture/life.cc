// SPDX-License-Identifier: Apache-2.0
#include "life.h"

#include <fmt/format.h>

#include <iterator>

#include "shapes.h"

namespace penstock::torture {
namespace {

uint64_t life_seed(uint64_t run_seed, uint64_t index) {
  return Dice(run_seed ^ Dice(index).next()).next();
}

void open_politely(Dice& dice, LifePlan& plan, uint64_t index, Manners manners) {
  if (manners.client_hello) begin_with_hello(dice, plan, make_client_hello(dice));
  if (!manners.proxy_header) return;
  plan.proxied = draw_proxied(dice, index);
  begin_with_header(dice, plan, make_proxy_header(dice, *plan.proxied));
}

std::string bytes_text(const EndPlan& end) {
  return end.send_bytes == kWithoutEnd ? "no end of" : std::to_string(end.send_bytes);
}

}  // namespace

LifePlan plan_life(uint64_t run_seed, uint64_t index, const Recipe& recipe, Manners manners) {
  LifePlan plan;
  plan.seed = life_seed(run_seed, index);
  Dice dice(plan.seed);
  switch (recipe.mix) {
    case Mix::mixed:
      plan_mixed(dice, plan, recipe.bytes_max);
      break;
    case Mix::brief:
      plan_brief(dice, plan, recipe.bytes_max);
      break;
    case Mix::bulk:
      plan_bulk(dice, plan, recipe.bytes_max);
      break;
    case Mix::pingpong:
      plan_pingpong(dice, plan);
      break;
    case Mix::mail:
      plan_mail(dice, plan);
      break;
    case Mix::paced:
      plan_paced(plan, recipe);
      break;
    case Mix::stall:
      plan_stall(plan, recipe);
      break;
    case Mix::never_read:
      plan_never_read(plan, recipe);
      break;
  }
  open_politely(dice, plan, index, manners);
  if (recipe.mix == Mix::mixed) draw_rudeness(dice, plan, recipe.stall_ms_max);
  if (recipe.mix == Mix::brief && dice.chance(1)) draw_reset(dice, plan);
  return plan;
}

LifePlan plan_probe(uint64_t run_seed, uint64_t index, Manners manners) {
  LifePlan plan;
  plan.seed = life_seed(~run_seed, index);
  plan.shape = "probe";
  send_in_turn(plan, Side::client, 100);
  send_in_turn(plan, Side::server, 1000);
  wait_for_fin(plan, Side::server, 1000);
  Dice dice(plan.seed);
  open_politely(dice, plan, index | uint64_t{1} << 31, manners);
  return plan;
}

std::string describe(const LifePlan& plan) {
  std::string out(plan.shape);
  for (Side side : {Side::client, Side::server}) {
    const EndPlan& end = plan.end(side);
    auto to = std::back_inserter(out);
    if (!end.header.empty()) fmt::format_to(to, "; header of {} bytes", end.header.size());
    if (!end.opening.empty()) fmt::format_to(to, "; ClientHello of {} bytes", end.opening.size());
    fmt::format_to(to, "; {} sends {} bytes in writes of {}-{}", name_of(side), bytes_text(end),
                   end.write_bytes_min, end.write_bytes_max);
    if (!end.gates.empty()) fmt::format_to(to, ", {} gates", end.gates.size());
    if (!end.send_pauses.empty()) fmt::format_to(to, ", {} pauses", end.send_pauses.size());
    if (!end.read_pauses.empty()) fmt::format_to(to, ", {} read stalls", end.read_pauses.size());
    if (end.read_gap_ms > 0) {
      fmt::format_to(to, ", reads {} per {} ms", end.read_bytes_max, end.read_gap_ms);
    }
    if (end.receive_buffer_bytes > 0) fmt::format_to(to, ", rcvbuf {}", end.receive_buffer_bytes);
    if (end.send_buffer_bytes > 0) fmt::format_to(to, ", sndbuf {}", end.send_buffer_bytes);
    if (end.reset) {
      constexpr std::string_view kWhen[] = {"bytes of its header", "bytes sent", "bytes received", "ms",
                                            "ms after its FIN"};
      fmt::format_to(to, ", RST at {} {}", end.reset->at, kWhen[static_cast<int>(end.reset->when)]);
    }
  }
  return out;
}

}  // namespace penstock::torture
