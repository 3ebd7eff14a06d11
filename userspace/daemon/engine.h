// SPDX-License-Identifier: Apache-2.0
// daemon/engine.h: who moves the bytes, decided by trying, and why.
#pragma once
#include <string>
#include <vector>

#include "config/config.h"
#include "sockmap/probe.h"

namespace penstock::daemon {

struct EngineChoice {
  bool splice = false;
  std::string reason;           // one line, for status and the log
  sockmap::ProbeReport report;  // empty when nothing was tried
};

// `remembered`: use the verdict of an earlier start of this build since this boot.
EngineChoice choose_engine(config::Engine wanted, bool remembered);

// `penstock probe`: tries everything, prints one line per capability. Returns the exit code: 0 when the
// engine is sockmap.
int print_probe(bool json);

}  // namespace penstock::daemon
