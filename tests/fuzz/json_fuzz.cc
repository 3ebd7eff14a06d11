// SPDX-License-Identifier: Apache-2.0
// Any bytes as a line of the admin socket, either way: what is understood is no deeper than allowed, and is
// said again as one printable line that means the same.
#include "daemon/json.h"

#include <algorithm>

#include "support/fuzz_text.h"

namespace {

using penstock::Json;

int depth_of(const Json& value) {
  if (!value.is_structured()) return 0;
  int deepest = 0;
  for (const Json& member : value) deepest = std::max(deepest, depth_of(member));
  return deepest + 1;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const std::optional<Json> value = penstock::parse_json(text);
  if (!value) return 0;
  PENSTOCK_ASSERT(depth_of(*value) <= penstock::kJsonDepthMax);
  const std::string line = penstock::json_line(*value);
  penstock::test::check_printable(line);
  PENSTOCK_ASSERT(line.size() <= 24 + 6 * size);  // a number may grow: 1e9 is said 1000000000.0
  const std::optional<Json> again = penstock::parse_json(line);
  PENSTOCK_ASSERT(again && *again == *value && penstock::json_line(*again) == line);
  return 0;
}
