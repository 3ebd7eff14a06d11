// SPDX-License-Identifier: Apache-2.0
#include "sockmap/kernel_release.h"

#include <gtest/gtest.h>

namespace penstock::sockmap {
namespace {

TEST(KernelRelease, of_a_series_that_never_got_the_fix_is_not_tried) {
  for (const char* release : {"6.5.0-45-generic", "6.2.16", "6.4.0-150600.23-default", "5.19.0-50-generic"}) {
    EXPECT_NE(panics(release, "#45-Ubuntu SMP").find(release), std::string::npos) << release;
  }
}

TEST(KernelRelease, of_a_stable_series_is_judged_by_its_patch_level) {
  EXPECT_NE(panics("6.1.79", ""), "");
  EXPECT_EQ(panics("6.1.80", ""), "");
  EXPECT_NE(panics("6.6.18-1-lts", ""), "");
  EXPECT_EQ(panics("6.6.19-1-lts", ""), "");
}

TEST(KernelRelease, with_a_patch_level_of_the_distribution_is_judged_by_its_version) {
  EXPECT_NE(panics("6.1.0-18-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.76-1 (2024-02-01)"), "");
  EXPECT_EQ(panics("6.1.0-56-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-09-01)"), "");
  EXPECT_EQ(panics("6.1.0-56-amd64", "#1 SMP"), "");
}

TEST(KernelRelease, that_has_the_fix_or_that_nobody_can_read_is_tried) {
  for (const char* release : {"6.8.0-31-generic", "6.18.44", "7.3.4", "10.0.1", "5.14.0-427.el9.x86_64", "",
                              "6", "6.", "6.x.y", "99999999999.5.0", ".5.0"})
    EXPECT_EQ(panics(release, "#1 SMP"), "") << release;
}

}  // namespace
}  // namespace penstock::sockmap
