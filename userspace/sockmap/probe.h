// SPDX-License-Identifier: Apache-2.0
// sockmap/probe.h: the self-test: what this kernel and these privileges really do, found by doing it on
// loopback. No capability is inferred from a kernel version, but one that would panic is not tried
// (kernel_release.h). Each check is one way in which some kernel loses, doubles or hoards bytes
// (probe_checks.h, bpf/README.md). tests/bpf/probe_test.cc.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "sockmap/sockmap.h"

namespace penstock::sockmap {

struct Capability {
  std::string name;  // one word: the same in `penstock probe`, logs and tests
  bool ok = false;
  bool promise = true;  // without it nothing enters the sockmap
  std::string detail;   // the reason when not ok, else what is worth knowing; one line
};

struct ProbeReport {
  std::vector<Capability> capabilities;  // those that were tried, in a fixed order
  std::string first_failure;             // "name: reason" of the first broken promise; empty when usable
  uint32_t elapsed_ms = 0;

  bool sockmap_usable() const { return !capabilities.empty() && first_failure.empty(); }
  // For what carries no promise ("pull"): false when it was not tried.
  bool has(const std::string& name) const;
};

// Loads the programs, attaches them and passes a few MiB through, in the calling thread's network namespace;
// takes under a second, 4 s and more where something hangs. REQUIRES: no other Sockmap of this process is
// open. `planted`: switch off `cut` or `pull` to see it noticed.
ProbeReport probe(const Options& planted = {});

// The verdict outlives a restart: it holds for one boot of the machine and one build of the daemon. Only a
// usable report is remembered: privileges may have been what was missing. remember() fails quietly: the next
// start probes.
std::optional<ProbeReport> remembered(const std::string& path, const std::string& build);
void remember(const std::string& path, const std::string& build, const ProbeReport& report);

}  // namespace penstock::sockmap
