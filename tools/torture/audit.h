// SPDX-License-Identifier: Apache-2.0
// torture/audit.h: penstockd's own counters (`status` on its admin socket) before and after a run, against
// each other and against what both ends counted. It serves nobody else meanwhile.
#pragma once
#include <nlohmann/json.hpp>
#include <string>

#include "ledger.h"

namespace penstock::torture {

class Audit {
 public:
  // Throws std::runtime_error if nobody answers there.
  explicit Audit(const std::string& admin_socket);
  // When the last life is over: waits until penstockd has none either and until `ledger` (may be null) has
  // its lines, then adds failures to `tally`.
  void settle(const Options& options, Tally& tally, Ledger* ledger);
  const nlohmann::ordered_json& summary() const { return summary_; }

 private:
  nlohmann::json ask() const;  // "totals" of status

  const std::string socket_;
  std::string engine_;
  const nlohmann::json before_;
  nlohmann::ordered_json summary_;
};

}  // namespace penstock::torture
