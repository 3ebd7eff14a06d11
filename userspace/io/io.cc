// SPDX-License-Identifier: Apache-2.0
#include "io/io.h"

#include <fmt/format.h>
#include <time.h>

#include "io/twins.h"

namespace penstock::io {

uint64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(t.tv_nsec);
}

Result<std::unique_ptr<Io>> Io::open(unsigned entries) {
  auto ring = open_io_uring(entries);
  if (ring) return ring;
  auto epoll = open_epoll(ring.error().message);
  if (!epoll) return Error{fmt::format("{}; {}", ring.error().message, epoll.error().message)};
  return epoll;
}

}  // namespace penstock::io
