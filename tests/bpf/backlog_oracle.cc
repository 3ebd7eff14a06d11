// SPDX-License-Identifier: Apache-2.0
#include "backlog_oracle.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include <cerrno>
#include <system_error>

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpedantic"
#pragma GCC diagnostic ignored "-Wshadow"
#include "backlog_oracle.skel.h"
#pragma GCC diagnostic pop

namespace penstock::sockmap {
namespace {
[[noreturn]] void fail(const char* what) {
  throw std::system_error(errno, std::generic_category(), what);
}
}  // namespace

BacklogOracle::BacklogOracle(int target_fd) : skeleton_(backlog_oracle_bpf__open_and_load()) {
  if (!skeleton_) fail("load the backlog oracle");
  uint32_t key = 0;
  uint64_t value = static_cast<uint64_t>(target_fd);
  if (bpf_map_update_elem(bpf_map__fd(skeleton_->maps.watched), &key, &value, BPF_ANY))
    fail("watch the target");
}

BacklogOracle::~BacklogOracle() {
  backlog_oracle_bpf__destroy(skeleton_);
}

Backlog BacklogOracle::measure() const {
  char frame[64] = {};
  bpf_test_run_opts o{};
  o.sz = sizeof o;
  o.data_in = frame;
  o.data_size_in = sizeof frame;
  if (bpf_prog_test_run_opts(bpf_program__fd(skeleton_->progs.measure), &o)) fail("run the backlog oracle");
  const auto& b = skeleton_->bss->found;
  return {b.segments, b.bytes, b.truesize_bytes, b.linear_bytes, b.first_bytes};
}

}  // namespace penstock::sockmap
