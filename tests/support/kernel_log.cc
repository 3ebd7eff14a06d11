// SPDX-License-Identifier: Apache-2.0
#include "support/kernel_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <string_view>

namespace penstock::test {

KernelLog::KernelLog() : fd_(::open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC)) {
  if (fd_.valid()) ::lseek(fd_.get(), 0, SEEK_END);
}

std::string KernelLog::complaints() const {
  std::string out;
  char record[8192];
  while (fd_.valid()) {
    const ssize_t n = ::read(fd_.get(), record, sizeof record);  // one record at a time
    if (n < 0 && errno == EPIPE) continue;                       // overwritten meanwhile: the next one
    if (n <= 0) break;
    const std::string_view text(record, static_cast<size_t>(n));
    for (const std::string_view word : {"WARNING:", "BUG:", "Oops:", "general protection fault"}) {
      if (text.find(word) != std::string_view::npos) {
        out += text;
        break;
      }
    }
  }
  return out;
}

}  // namespace penstock::test
