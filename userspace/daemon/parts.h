// SPDX-License-Identifier: Apache-2.0
// daemon/parts.h: everything a worker has of its own, and how it is put together above what is kept.
#pragma once
#include <memory>
#include <optional>

#include "check/checker.h"
#include "check/doctor.h"
#include "daemon/kept.h"
#include "daemon/listen.h"
#include "daemon/services.h"
#include "daemon/status.h"
#include "dns/resolver.h"
#include "flow/worker.h"

namespace penstock::daemon {

// In the order it is torn down from the bottom up.
struct Parts {
  std::unique_ptr<dns::Resolver> resolver;
  std::unique_ptr<check::Checker> checker;
  std::unique_ptr<Services> services;
  std::optional<check::Doctor> doctor;
  std::optional<flow::Clients> clients;
  std::optional<flow::Names> listener_names, upstream_names;
  flow::Flow* flows = nullptr;
  size_t flows_bytes = 0;
  flow::Shared shared;
  std::optional<Listeners> listeners;
  ~Parts();
};

// All but the threads. Facts: those that are known by then.
Status build(Parts& p, Kept& kept, Facts& facts);
// They have descriptors of their own: after the audit.
void make_workers(Parts& p, Kept& kept, Facts& facts);
// The first configuration of a daemon.
Status begin(Parts& p, Kept& kept, const config::Config& c, const config::Source& source);

}  // namespace penstock::daemon
