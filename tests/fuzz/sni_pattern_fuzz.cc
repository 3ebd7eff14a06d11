// SPDX-License-Identifier: Apache-2.0
// A line each: two patterns of `sni`, then names. What matches is what a matcher says that goes label by
// label and was written here, and one pattern covers another exactly when no name shows the contrary.
#include "config/sni_pattern.h"

#include <string>
#include <vector>

#include "base/assert.h"
#include "support/fuzz_text.h"

namespace {

using namespace penstock;
using test::labels_of, test::lines_of;

bool naive_match(const std::string& pattern, const std::string& name) {
  const std::vector<std::string> want = labels_of(pattern), have = labels_of(name);
  if (name.empty()) return false;
  if (pattern == "*") return true;
  if (want.front() == "*") {
    if (have.size() < want.size()) return false;
    return std::equal(want.begin() + 1, want.end(), have.end() - static_cast<ptrdiff_t>(want.size() - 1));
  }
  if (want.back() == "*") return have.size() >= 2 && have.front() == want.front();
  return want == have;
}

// Names that tell any pattern from one that does not cover it: "zz9" is in no pattern, or it is skipped.
std::vector<std::string> names_of(const std::string& pattern) {
  if (pattern == "*") return {"zz9", "zz9.yy8", "yy8.zz9"};
  std::vector<std::string> out;
  if (pattern.starts_with("*.")) {
    for (const char* below : {"zz9", "yy8.zz9"}) out.push_back(below + pattern.substr(1));
  } else if (pattern.ends_with(".*")) {
    for (const char* above : {"zz9", "zz9.yy8"}) out.push_back(pattern.substr(0, pattern.size() - 1) + above);
  } else {
    out.push_back(pattern);
  }
  return out;
}

void check_covers(const std::string& a, const std::string& b) {
  bool all = true;
  for (const std::string& name : names_of(b)) {
    PENSTOCK_ASSERT(naive_match(b, name));
    all &= naive_match(a, name);
  }
  PENSTOCK_ASSERT(config::sni_covers(a, b) == all);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::vector<std::string> lines = lines_of(data, size, 16);
  std::vector<std::string> patterns;
  for (size_t i = 0; i < lines.size() && i < 2; ++i) {
    const Result<std::string> pattern = config::parse_sni_pattern(lines[i]);
    if (!pattern) {
      test::check_printable(pattern.error().message);
      continue;
    }
    PENSTOCK_ASSERT(config::parse_sni_pattern(pattern.value()).value() == pattern.value());
    patterns.push_back(pattern.value());
  }
  for (const std::string& pattern : patterns) {
    for (size_t i = 2; i < lines.size(); ++i) {
      if (!test::is_name(lines[i])) continue;
      PENSTOCK_ASSERT(config::sni_covers(pattern, lines[i]) == naive_match(pattern, lines[i]));
    }
    PENSTOCK_ASSERT(!config::sni_covers(pattern, ""));
    const bool has_witness = pattern.find("zz9") != pattern.npos || pattern.find("yy8") != pattern.npos;
    if (has_witness) return 0;
  }
  for (const std::string& a : patterns)
    for (const std::string& b : patterns) check_covers(a, b);
  return 0;
}
