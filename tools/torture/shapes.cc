// SPDX-License-Identifier: Apache-2.0
#include "shapes.h"

#include <utility>

namespace penstock::torture {
namespace {

constexpr uint64_t kKiB = 1 << 10;
constexpr uint64_t kMiB = 1 << 20, kGiB = 1 << 30;
constexpr uint64_t kLarge = 64 * kMiB;
// Of one end, about: 64 MiB are not written byte by byte, and few of the many small lives are.
constexpr uint64_t kWritesUsual = 12, kWritesMax = 4000;

// 99 % up to 64 KiB (some of them empty), 0.9 % up to 16 MiB, 0.1 % up to 64 MiB, one of 100,000 1 GiB.
uint64_t draw_bytes(Dice& dice, uint64_t bytes_max) {
  const uint64_t giant = dice.below(200'000), sort = dice.below(1000);  // a life has two directions
  uint64_t bytes = 0;
  if (giant == 0) {
    bytes = kGiB;
  } else if (sort == 0) {
    bytes = dice.log_uniform(16 * kMiB, kLarge);
  } else if (sort < 10) {
    bytes = dice.log_uniform(64 * kKiB, 16 * kMiB);
  } else if (!dice.chance(5)) {
    bytes = dice.log_uniform(1, 64 * kKiB);
  }
  return std::min(bytes, bytes_max);
}

// 1 B to 1 MiB; all of them in one life where that makes not too many.
void draw_write_sizes(Dice& dice, EndPlan& end) {
  const uint64_t least = std::max<uint64_t>(1, end.send_bytes / (dice.chance(2) ? kWritesMax : kWritesUsual));
  const uint64_t most = std::max(least, std::min(end.send_bytes, kMiB));
  end.write_bytes_max = static_cast<uint32_t>(dice.log_uniform(least, most));
  end.write_bytes_min = static_cast<uint32_t>(dice.chance(50) ? 1 : dice.log_uniform(1, end.write_bytes_max));
}

void draw_fin_order(Dice& dice, LifePlan& plan) {
  EndPlan& client = plan.end(Side::client);
  EndPlan& server = plan.end(Side::server);
  switch (dice.below(4)) {
    case 0:
      return wait_for_fin(plan, Side::client, client.send_bytes);
    case 1:
      return wait_for_fin(plan, Side::server, server.send_bytes);
    case 2:  // each when it has said all
      return;
    case 3:  // both when all has been said: simultaneous close
      client.gates.push_back({client.send_bytes, server.send_bytes});
      server.gates.push_back({server.send_bytes, client.send_bytes});
      return;
  }
}

void make_ping_pong(Dice& dice, LifePlan& plan, uint64_t rounds_max, uint64_t message_max) {
  Side side = dice.chance(50) ? Side::client : Side::server;
  for (uint64_t turn = 2 * dice.log_uniform(2, rounds_max); turn > 0; --turn, side = other(side)) {
    send_in_turn(plan, side, dice.log_uniform(1, message_max));
  }
  draw_fin_order(dice, plan);
}

// Full speed, then quiet: what pushes a direction out of its lane and lets it come back (penstockd: from the
// relay after half a second).
void make_bursts(Dice& dice, LifePlan& plan, Side side, uint64_t bytes_max) {
  constexpr uint64_t kQuietMs = 1000;
  EndPlan& end = plan.end(side);
  EndPlan& reader = plan.end(other(side));
  const bool stalls = dice.chance(50);
  for (uint64_t burst = dice.between(2, 6); burst > 0; --burst) {
    const uint64_t bytes = dice.log_uniform(256 * kKiB, 4 * kMiB);
    if (end.send_bytes + bytes > bytes_max) break;
    if (end.send_bytes > 0) {
      end.send_pauses.push_back({end.send_bytes, static_cast<uint32_t>(dice.log_uniform(30, kQuietMs))});
    }
    if (stalls) {
      reader.read_pauses.push_back(
          {end.send_bytes + bytes / 3, static_cast<uint32_t>(dice.between(20, 120))});
    }
    end.send_bytes += bytes;
  }
  end.write_bytes_min = 16 * kKiB;
  end.write_bytes_max = kMiB;
}

void draw_both(Dice& dice, LifePlan& plan, uint64_t bytes_max) {
  for (EndPlan& end : plan.ends) {
    end.send_bytes = draw_bytes(dice, bytes_max);
  }
  EndPlan& client = plan.end(Side::client);
  if (client.send_bytes > kLarge && plan.end(Side::server).send_bytes > kLarge) client.send_bytes = 64 * kKiB;
  for (EndPlan& end : plan.ends) draw_write_sizes(dice, end);
}

void insert_pause(std::vector<Pause>& pauses, Pause pause) {
  const auto at = std::upper_bound(pauses.begin(), pauses.end(), pause,
                                   [](const Pause& a, const Pause& b) { return a.at < b.at; });
  pauses.insert(at, pause);
}

// Where writes end early, some with a pause.
std::vector<Pause> draw_cuts(Dice& dice, uint64_t bytes) {
  std::vector<Pause> cuts;
  if (dice.chance(40)) return cuts;
  for (uint64_t left = dice.log_uniform(1, 8); left > 0; --left) {
    const uint32_t ms = dice.chance(50) ? 0 : static_cast<uint32_t>(dice.log_uniform(1, 20));
    insert_pause(cuts, {dice.between(1, bytes), ms});
  }
  return cuts;
}

}  // namespace

void send_in_turn(LifePlan& plan, Side side, uint64_t bytes) {
  EndPlan& end = plan.end(side);
  const uint64_t heard = plan.end(other(side)).send_bytes;
  if (heard > 0) end.gates.push_back({end.send_bytes, heard});
  end.send_bytes += bytes;
}

void wait_for_fin(LifePlan& plan, Side side, uint64_t at) {
  plan.end(side).gates.push_back({at, kUntilFin});
}

// SMTP's pace: greeting, EHLO, MAIL, RCPT, DATA, …, the message, QUIT.
void plan_mail(Dice& dice, LifePlan& plan) {
  plan.shape = "mail";
  send_in_turn(plan, Side::server, dice.between(20, 80));
  for (int exchange = 0; exchange < 5; ++exchange) {
    send_in_turn(plan, Side::client, dice.between(6, 60));
    send_in_turn(plan, Side::server, dice.between(8, 80));
  }
  send_in_turn(plan, Side::client, dice.between(2 * kKiB, 40 * kKiB));
  send_in_turn(plan, Side::server, dice.between(8, 80));
  send_in_turn(plan, Side::client, 6);
  send_in_turn(plan, Side::server, 20);
  wait_for_fin(plan, Side::client, plan.end(Side::client).send_bytes);
}

void plan_mixed(Dice& dice, LifePlan& plan, uint64_t bytes_max) {
  EndPlan& client = plan.end(Side::client);
  EndPlan& server = plan.end(Side::server);
  const uint64_t sort = dice.below(100);
  if (sort < 26) {
    plan.shape = "both_at_once";
    draw_both(dice, plan, bytes_max);
  } else if (sort < 40) {
    plan.shape = "client_shuts_first";
    draw_both(dice, plan, bytes_max);
    wait_for_fin(plan, Side::server, 0);
  } else if (sort < 48) {
    plan.shape = "server_shuts_first";
    draw_both(dice, plan, bytes_max);
    wait_for_fin(plan, Side::client, 0);
  } else if (sort < 62) {
    plan.shape = "fin_in_order";
    draw_both(dice, plan, bytes_max);
    draw_fin_order(dice, plan);
  } else if (sort < 69) {
    plan.shape = "server_speaks_first";
    draw_both(dice, plan, bytes_max);
    if (server.send_bytes > 0) client.gates.push_back({0, dice.between(1, server.send_bytes)});
    draw_fin_order(dice, plan);
  } else if (sort < 81) {
    plan.shape = "ping_pong";
    make_ping_pong(dice, plan, 50, 4 * kKiB);
  } else if (sort < 87) {
    plan_mail(dice, plan);
  } else if (sort < 93) {
    plan.shape = "server_shuts_at_accept";
    draw_both(dice, plan, bytes_max);
    server.send_bytes = 0;
    if (dice.chance(50)) wait_for_fin(plan, Side::client, 0);
  } else if (sort < 96) {
    plan.shape = "nothing_said";
    draw_fin_order(dice, plan);
  } else if (sort < 99) {
    plan.shape = "client_sends_alone";
    draw_both(dice, plan, bytes_max);
    server.send_bytes = 0;
    wait_for_fin(plan, Side::server, 0);
  } else {
    plan.shape = "bursts";
    const uint64_t sides = dice.between(1, 3);
    if (sides & 1) make_bursts(dice, plan, Side::client, bytes_max);
    if (sides & 2) make_bursts(dice, plan, Side::server, bytes_max);
    draw_fin_order(dice, plan);
  }
}

void plan_brief(Dice& dice, LifePlan& plan, uint64_t bytes_max) {
  plan.shape = "brief";
  for (EndPlan& end : plan.ends) end.send_bytes = std::min(bytes_max, dice.log_uniform(1, 4 * kKiB));
  if (dice.chance(50)) {
    wait_for_fin(plan, Side::server, 0);
  } else {
    draw_fin_order(dice, plan);
  }
}

void plan_pingpong(Dice& dice, LifePlan& plan) {
  plan.shape = "ping_pong";
  make_ping_pong(dice, plan, 200, 16 * kKiB);
}

void plan_bulk(Dice& dice, LifePlan& plan, uint64_t bytes_max) {
  plan.shape = "bulk";
  const uint64_t sort = dice.below(5);  // up, up, down, down, both
  for (Side side : {Side::client, Side::server}) {
    if (sort != 4 && (sort < 2) != (side == Side::client)) continue;
    EndPlan& end = plan.end(side);
    end.send_bytes = std::min(bytes_max, dice.log_uniform(kMiB, std::clamp(bytes_max, kMiB, kLarge)));
    end.write_bytes_min = 16 * kKiB;
    end.write_bytes_max = kMiB;
  }
  draw_fin_order(dice, plan);
}

namespace {

bool sends(Side side, Towards towards) {
  switch (towards) {
    case Towards::both:
      return true;
    case Towards::up:
      return side == Side::client;
    case Towards::down:
      return side == Side::server;
  }
  return false;
}

}  // namespace

void plan_paced(LifePlan& plan, const Recipe& recipe) {
  plan.shape = "paced";
  const uint64_t directions = recipe.flows * (recipe.towards == Towards::both ? 2ull : 1ull);
  for (Side side : {Side::client, Side::server}) {
    EndPlan& end = plan.end(side);
    if (!sends(side, recipe.towards)) {
      wait_for_fin(plan, side, 0);
      continue;
    }
    end.send_bytes = kWithoutEnd;
    end.send_for_ms = recipe.duration_ms;
    if (recipe.rate_bps > 0) end.pace_bytes_per_s = std::max<uint64_t>(1, recipe.rate_bps / 8 / directions);
    end.write_bytes_min = end.write_bytes_max = 64 * kKiB;
  }
}

void plan_stall(LifePlan& plan, const Recipe& recipe) {
  constexpr uint32_t kGoesOnMs = 3000;  // the sender is still saturating when the reader comes back
  plan.shape = "stall";
  for (Side side : {Side::client, Side::server}) {
    EndPlan& end = plan.end(side);
    if (!sends(side, recipe.towards)) {
      wait_for_fin(plan, side, 0);
      continue;
    }
    end.send_bytes = kWithoutEnd;
    end.send_for_ms = recipe.stall_ms + kGoesOnMs;
    end.write_bytes_min = end.write_bytes_max = 256 * kKiB;
    plan.end(other(side)).read_pauses.push_back({0, recipe.stall_ms});
  }
}

void plan_never_read(LifePlan& plan, const Recipe& recipe) {
  plan.shape = "never_read";
  plan.starved = true;
  EndPlan& client = plan.end(Side::client);
  client.never_read = true;
  wait_for_fin(plan, Side::client, 0);
  client.reset = {Reset::When::elapsed, recipe.duration_ms};
  EndPlan& server = plan.end(Side::server);
  server.send_bytes = kWithoutEnd;
  server.send_for_ms = UINT32_MAX;
  server.write_bytes_min = server.write_bytes_max = 256 * kKiB;
}

void begin_with_hello(Dice& dice, LifePlan& plan, std::string hello) {
  EndPlan& client = plan.end(Side::client);
  EndPlan& server = plan.end(Side::server);
  const uint64_t bytes = hello.size();
  client.opening = std::move(hello);
  client.send_bytes += bytes;
  for (Gate& gate : client.gates) gate.at += bytes;
  for (Pause& pause : client.send_pauses) pause.at += bytes;
  for (Gate& gate : server.gates) {
    if (gate.until != kUntilFin) gate.until += bytes;
  }
  for (Pause& pause : server.read_pauses) pause.at += bytes;
  if (!dice.chance(2)) {  // a stream of few bytes has small writes: too many for a hello
    const auto least = static_cast<uint32_t>(bytes / kWritesUsual);
    client.write_bytes_min = std::max(client.write_bytes_min, least);
    client.write_bytes_max = std::max(client.write_bytes_max, least);
  }
  for (const Pause& cut : draw_cuts(dice, bytes)) insert_pause(client.send_pauses, cut);
}

void begin_with_header(Dice& dice, LifePlan& plan, std::string header) {
  EndPlan& client = plan.end(Side::client);
  client.header = std::move(header);
  client.header_pauses = draw_cuts(dice, client.header.size());
}

void draw_reset(Dice& dice, LifePlan& plan) {
  const Side side = dice.chance(50) ? Side::client : Side::server;
  EndPlan& end = plan.end(side);
  const uint64_t peer_bytes = plan.end(other(side)).send_bytes;
  if (!end.header.empty() && dice.chance(25)) {
    end.reset = {Reset::When::header, dice.below(end.header.size())};
    return;
  }
  if (!end.opening.empty() && dice.chance(25)) {
    end.reset = {Reset::When::sent, dice.below(end.opening.size())};
    return;
  }
  switch (dice.below(5)) {
    case 0:
      end.reset = {Reset::When::sent, dice.between(0, end.send_bytes)};
      return;
    case 1:
      end.reset = {Reset::When::received, dice.between(0, peer_bytes)};
      return;
    case 2:
      end.reset = {Reset::When::elapsed, dice.below(50)};
      return;
    case 3:
      end.reset = {Reset::When::sent, 0};
      return;
    case 4:
      end.reset = {Reset::When::shut, dice.chance(50) ? 0 : dice.log_uniform(1, 50)};
      return;
  }
}

void draw_rudeness(Dice& dice, LifePlan& plan, uint32_t stall_ms_max) {
  const bool resets = dice.chance(12);
  if (resets) draw_reset(dice, plan);
  for (Side side : {Side::client, Side::server}) {
    EndPlan& end = plan.end(side);
    const uint64_t peer_bytes = plan.end(other(side)).send_bytes;
    end.no_delay = dice.chance(90);
    if (dice.chance(40)) {
      for (uint64_t left = dice.log_uniform(1, 5); left > 0; --left) {
        insert_pause(end.send_pauses,
                     {dice.between(0, end.send_bytes), static_cast<uint32_t>(dice.between(1, 10))});
      }
    }
    if (dice.chance(1)) {
      insert_pause(end.send_pauses,
                   {dice.between(0, end.send_bytes), static_cast<uint32_t>(dice.between(100, 400))});
    }
    if (dice.chance(1) && stall_ms_max > 0) {
      insert_pause(end.read_pauses,
                   {dice.between(0, peer_bytes),
                    static_cast<uint32_t>(dice.log_uniform(std::min(100u, stall_ms_max), stall_ms_max))});
    }
    if (dice.chance(1) && peer_bytes <= kLarge) {
      end.read_bytes_max = static_cast<uint32_t>(std::max<uint64_t>(256, peer_bytes / 200));
      end.read_gap_ms = static_cast<uint32_t>(dice.between(1, 10));
    }
    // A tiny window moves some 10 KB/s; and it makes TCP drop bytes that a RST then cannot overtake, so that
    // the peer hears of it only when it sends. Hence small directions, and none in lives with a RST.
    if (dice.chance(2) && !resets && peer_bytes <= 256 * kKiB) {
      end.receive_buffer_bytes = static_cast<int>(dice.log_uniform(2304, 64 * kKiB));
    }
    if (dice.chance(2) && end.send_bytes <= kMiB)
      end.send_buffer_bytes = static_cast<int>(dice.log_uniform(4608, 64 * kKiB));
  }
}

}  // namespace penstock::torture
