// SPDX-License-Identifier: Apache-2.0
// torture/log_reader.h: reads penstockd's log as it grows, in a thread of its own, for the ledger. Warnings
// and errors among it go to stderr.
#pragma once
#include <atomic>
#include <string>
#include <thread>

#include "base/fd.h"
#include "ledger.h"

namespace penstock::torture {

class LogReader {
 public:
  LogReader(Fd log, Ledger& ledger) : log_(std::move(log)), ledger_(ledger), thread_([this] { run(); }) {}
  ~LogReader() { finish(); }
  // Reads what is there (of a pipe: until its writers are gone), then ends.
  void finish();

 private:
  void run();
  void take(std::string_view line);

  const Fd log_;
  Ledger& ledger_;
  std::atomic<bool> finishing_ = false;
  std::thread thread_;
};

}  // namespace penstock::torture
