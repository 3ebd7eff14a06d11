// SPDX-License-Identifier: Apache-2.0
// daemon/metrics.h: what admin.http shows: /metrics in Prometheus' text format (version 0.0.4), /healthz,
// /readyz. Labels are names of the configuration and words of the code, never anything a client sent.
#pragma once
#include <atomic>
#include <string>

#include "daemon/http.h"
#include "daemon/status.h"

namespace penstock::daemon {

enum class Readiness { starting, ready, draining };

// Thread-safe; asks no worker. Until it is past `starting`, nothing but `readiness` is looked at.
Page page(const std::string& path, const std::atomic<Readiness>& readiness, const flow::Shared& shared,
          const Facts& facts);

}  // namespace penstock::daemon
