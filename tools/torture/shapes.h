// SPDX-License-Identifier: Apache-2.0
// torture/shapes.h: what kinds of lives there are: who sends how much, who waits for whom (the shape), and
// how rudely (pauses, stalls, small buffers, RST). life.h puts them together. Pure.
#pragma once
#include "dice.h"
#include "life.h"

namespace penstock::torture {

void plan_mixed(Dice& dice, LifePlan& plan, uint64_t bytes_max);
void plan_brief(Dice& dice, LifePlan& plan, uint64_t bytes_max);
void plan_bulk(Dice& dice, LifePlan& plan, uint64_t bytes_max);
void plan_pingpong(Dice& dice, LifePlan& plan);
void plan_mail(Dice& dice, LifePlan& plan);
void plan_paced(LifePlan& plan, const Recipe& recipe);
void plan_stall(LifePlan& plan, const Recipe& recipe);
void plan_never_read(LifePlan& plan, const Recipe& recipe);

// One message after all that the other has said; a FIN after the other's.
void send_in_turn(LifePlan& plan, Side side, uint64_t bytes);
void wait_for_fin(LifePlan& plan, Side side, uint64_t at);

// The client's stream begins with `hello`, whatever else it waits for.
void begin_with_hello(Dice& dice, LifePlan& plan, std::string hello);
void begin_with_header(Dice& dice, LifePlan& plan, std::string header);

void draw_reset(Dice& dice, LifePlan& plan);
void draw_rudeness(Dice& dice, LifePlan& plan, uint32_t stall_ms_max);

}  // namespace penstock::torture
