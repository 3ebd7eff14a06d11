// SPDX-License-Identifier: Apache-2.0
#include "log_reader.h"

#include <fmt/format.h>

#include <chrono>

namespace penstock::torture {

void LogReader::finish() {
  finishing_ = true;
  if (thread_.joinable()) thread_.join();
}

void LogReader::run() {
  constexpr std::chrono::milliseconds kLookEvery{20};  // at a file's end; a pipe makes read(2) wait
  std::string text;
  char chunk[64 << 10];
  for (;;) {
    const bool last = finishing_;
    const ssize_t n = read(log_.get(), chunk, sizeof chunk);
    if (n <= 0) {
      if (n < 0 || last) return;
      std::this_thread::sleep_for(kLookEvery);
      continue;
    }
    text.append(chunk, static_cast<size_t>(n));
    size_t begin = 0;
    for (size_t end; (end = text.find('\n', begin)) != text.npos; begin = end + 1) {
      take(std::string_view(text).substr(begin, end - begin));
    }
    text.erase(0, begin);
  }
}

void LogReader::take(std::string_view line) {
  if (line.find(" warn  ") != line.npos || line.find(" error ") != line.npos) {
    fmt::print(stderr, "penstockd: {}\n", line);
  }
  ledger_.add_line(line);
}

}  // namespace penstock::torture
