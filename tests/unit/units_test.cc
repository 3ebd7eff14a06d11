// SPDX-License-Identifier: Apache-2.0
#include "base/units.h"

#include <gtest/gtest.h>

namespace penstock {
namespace {

using std::chrono::milliseconds;

TEST(Units, DurationsWithAUnit) {
  EXPECT_EQ(parse_duration("250ms"), milliseconds(250));
  EXPECT_EQ(parse_duration("5s"), milliseconds(5'000));
  EXPECT_EQ(parse_duration("5m"), milliseconds(300'000));
  EXPECT_EQ(parse_duration("1h"), milliseconds(3'600'000));
  EXPECT_EQ(parse_duration("30d"), milliseconds(2'592'000'000));
  EXPECT_EQ(parse_duration("0s"), milliseconds(0));
}

TEST(Units, DurationsRefused) {
  for (const char* text : {"", "5", "0", "s", "-5s", "+5s", " 5s", "5s ", "5 s", "1.5s", "1h30m", "5S",
                           "5sec", "9223372036854775808ms", "99999999999999999999s", "213503982335d"}) {
    EXPECT_FALSE(parse_duration(text)) << text;
  }
}

TEST(Units, SizesWithAUnit) {
  EXPECT_EQ(parse_size("0B"), 0u);
  EXPECT_EQ(parse_size("4KB"), 4'000u);
  EXPECT_EQ(parse_size("64KiB"), 65'536u);
  EXPECT_EQ(parse_size("1MB"), 1'000'000u);
  EXPECT_EQ(parse_size("1MiB"), 1u << 20);
  EXPECT_EQ(parse_size("2GiB"), 2ULL << 30);
  EXPECT_EQ(parse_size("2GB"), 2'000'000'000u);
  EXPECT_EQ(parse_size("3TiB"), 3ULL << 40);
  EXPECT_EQ(parse_size("3TB"), 3'000'000'000'000u);
}

TEST(Units, SizesRefused) {
  for (const char* text : {"", "65536", "KiB", "-1KiB", "1 MiB", "1kib", "1M", "0x10B", "16777216TiB"}) {
    EXPECT_FALSE(parse_size(text)) << text;
  }
}

TEST(Units, PrintsTheLargestUnitThatDivides) {
  EXPECT_EQ(duration_text(milliseconds(0)), "0ms");
  EXPECT_EQ(duration_text(milliseconds(1'500)), "1500ms");
  EXPECT_EQ(duration_text(milliseconds(75'000)), "75s");
  EXPECT_EQ(duration_text(milliseconds(3'600'000)), "1h");
  EXPECT_EQ(duration_text(milliseconds(172'800'000)), "2d");
  EXPECT_EQ(size_text(0), "0B");
  EXPECT_EQ(size_text(4'001), "4001B");
  EXPECT_EQ(size_text(4'000), "4KB");
  EXPECT_EQ(size_text(65'536), "64KiB");
  EXPECT_EQ(size_text(1u << 20), "1MiB");
}

TEST(Units, WhatIsPrintedParsesBack) {
  for (const uint64_t n : {1ULL, 999ULL, 1'000ULL, 1'024ULL, 60'000ULL, 90'061'000ULL, (1ULL << 40) + 1}) {
    EXPECT_EQ(parse_size(size_text(n)), n);
    EXPECT_EQ(parse_duration(duration_text(milliseconds(n))), milliseconds(n));
  }
}

}  // namespace
}  // namespace penstock
