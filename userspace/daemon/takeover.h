// SPDX-License-Identifier: Apache-2.0
// daemon/takeover.h: what a worker that died has left, and how the next one goes on with it.
#pragma once
#include <string>
#include <vector>

#include "crash/report.h"
#include "daemon/audit.h"
#include "daemon/parts.h"
#include "daemon/plans.h"
#include "flow/adopt.h"

namespace penstock::daemon {

struct Estate {
  flow::Stock stock;
  Found found;
  std::vector<Plans::Kept> plans;  // the oldest first; empty: it died before there was one
  std::string death;               // in words, for the log; empty: it has put everything down for an upgrade
};

crash::Options report_options(Kept& kept);
// Writes its report, blames the flow it died of, counts, closes what is nobody's. REQUIRES: build(), and
// nothing that has descriptors since.
Estate inspect(Parts& p, Kept& kept, const keeper::State& state);
// REQUIRES: make_workers(), and their threads do not run yet.
Status take_over(Parts& p, Kept& kept, const Arguments& arguments, const Estate& estate);

}  // namespace penstock::daemon
