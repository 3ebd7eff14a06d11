// SPDX-License-Identifier: Apache-2.0
// The log's lines go to the life, which holds them against what happened.
#include "base/log.h"

#include "sim/life.h"

namespace penstock::log {

void write(Level level, std::string_view message) {
  if (sim::g_kernel && sim::g_kernel->tracing) sim::g_kernel->trace("log: " + std::string(message));
  if (sim::g_life && level != Level::error) sim::g_life->on_line(message);
}
bool enabled(Level) {
  return sim::g_kernel && sim::g_kernel->tracing;
}
bool was_written(std::string_view) {
  return false;  // a line and what notes it lie between two moments of a life
}
std::string escaped(std::string_view bytes, size_t) {
  return std::string(bytes);
}

}  // namespace penstock::log
