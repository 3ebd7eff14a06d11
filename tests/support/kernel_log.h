// SPDX-License-Identifier: Apache-2.0
// support/kernel_log.h: what the kernel complains about while a test runs. sockmap bugs that lose or double
// bytes often show first as a WARN in tcp_cleanup_rbuf.
#pragma once
#include <string>

#include "base/fd.h"

namespace penstock::test {

class KernelLog {
 public:
  KernelLog();  // from here on
  // The records since that name a WARNING, BUG or Oops; empty when all is well or the log may not be read.
  std::string complaints() const;

 private:
  Fd fd_;
};

}  // namespace penstock::test
