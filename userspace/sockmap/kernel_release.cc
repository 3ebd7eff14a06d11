// SPDX-License-Identifier: Apache-2.0
#include "sockmap/kernel_release.h"

#include <fmt/format.h>
#include <sys/utsname.h>

#include <charconv>

namespace penstock::sockmap {
namespace {

struct Number {
  uint32_t series[2] = {0, 0};
  uint32_t patch = 0;  // 0: the distribution counts in its own way
};

// All 0 where there is no series.
Number parse(std::string_view text) {
  Number n;
  uint32_t* const parts[] = {&n.series[0], &n.series[1], &n.patch};
  const char *at = text.data(), *const end = at + text.size();
  for (uint32_t* part : parts) {
    const auto [next, error] = std::from_chars(at, end, *part);
    if (error != std::errc()) return part == &n.patch ? n : Number{};
    if (next == end || *next != '.') return part == &n.series[0] ? Number{} : n;
    at = next + 1;
  }
  return n;
}

// The patch level in words like "#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-09-01)".
uint32_t patch_in(std::string_view version, const Number& of) {
  const std::string series = fmt::format(" {}.{}.", of.series[0], of.series[1]);
  const size_t at = version.find(series);
  return at == version.npos ? 0 : parse(version.substr(at + 1)).patch;
}

constexpr struct {
  uint32_t series[2];
  uint32_t patch;  // the first with the fix; 0: none of this series
} kSeries[] = {{{5, 16}, 0}, {{5, 17}, 0}, {{5, 18}, 0}, {{5, 19}, 0}, {{6, 0}, 0},  {{6, 1}, 80},
               {{6, 2}, 0},  {{6, 3}, 0},  {{6, 4}, 0},  {{6, 5}, 0},  {{6, 6}, 19}, {{6, 7}, 7}};

}  // namespace

std::string panics(std::string_view release, std::string_view version) {
  Number n = parse(release);
  if (n.patch == 0) n.patch = patch_in(version, n);
  for (const auto& known : kSeries) {
    if (known.series[0] != n.series[0] || known.series[1] != n.series[1]) continue;
    if (known.patch && (n.patch == 0 || n.patch >= known.patch)) return {};
    return fmt::format("Linux {} lacks 4cd12c6065df (2024) and may panic when a source leaves a sockmap",
                       release);
  }
  return {};
}

std::string this_kernel_panics() {
  utsname kernel{};
  uname(&kernel);
  return panics(kernel.release, kernel.version);
}

}  // namespace penstock::sockmap
