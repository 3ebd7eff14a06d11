// SPDX-License-Identifier: Apache-2.0
// base/log.h: the only door to spdlog. Lines go to stderr. Thread-safe; never blocks a worker: when the
// reader of stderr is slow, the oldest lines are dropped and counted. Between write() and stderr they stand
// in a ring (base/log_ring.h), which may outlive the process.
#pragma once
#include <fmt/core.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace penstock::log {

enum class Level { debug, info, warn, error };
enum class Format { text, json };

// Before any thread; again after a fork is not supported. `ring`: where lines wait, as LogRing wants it; what
// a process that died has left there is written first. Without it, in memory of our own, zeroed at each
// start.
void start(Level level, Format format, std::span<std::byte> ring = {});
void set_level(Level level);  // at any time
void stop();  // writes what is queued; what stderr has not taken after 1 s is dropped and counted
void write(Level level, std::string_view message);  // what is beyond LogLine::kBytesMax is cut
bool enabled(Level level);
// Whether a line that begins so is in the ring, put out or not: one that died may have written it and not
// have noted that it did. It looks at each line.
bool was_written(std::string_view beginning);
uint64_t dropped();  // lines lost since the ring was begun

// Bytes from outside, made printable: anything but printable ASCII (and '"', '\\') becomes \xNN. At most
// `max` input bytes.
std::string escaped(std::string_view bytes, size_t max = 255);

template <typename... A>
void debug(fmt::format_string<A...> f, A&&... a) {
  if (enabled(Level::debug)) write(Level::debug, fmt::format(f, std::forward<A>(a)...));
}
template <typename... A>
void info(fmt::format_string<A...> f, A&&... a) {
  write(Level::info, fmt::format(f, std::forward<A>(a)...));
}
template <typename... A>
void warn(fmt::format_string<A...> f, A&&... a) {
  write(Level::warn, fmt::format(f, std::forward<A>(a)...));
}
template <typename... A>
void error(fmt::format_string<A...> f, A&&... a) {
  write(Level::error, fmt::format(f, std::forward<A>(a)...));
}

}  // namespace penstock::log
