// SPDX-License-Identifier: Apache-2.0
#include "base/log.h"

#include <fmt/chrono.h>
#include <pthread.h>
#include <signal.h>
#include <spdlog/async_logger.h>
#include <spdlog/details/thread_pool.h>
#include <spdlog/sinks/stdout_sinks.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <memory>
#include <mutex>

namespace penstock::log {
namespace {

using spdlog::memory_buf_t;

constexpr size_t kQueueLines = 8192;  // some 4 MiB, allocated at start

std::string_view name_of(spdlog::level::level_enum level) {
  if (level == spdlog::level::debug) return "debug";
  if (level == spdlog::level::info) return "info";
  if (level == spdlog::level::warn) return "warn";
  return "error";
}

spdlog::level::level_enum spdlog_level(Level level) {
  switch (level) {
    case Level::debug:
      return spdlog::level::debug;
    case Level::info:
      return spdlog::level::info;
    case Level::warn:
      return spdlog::level::warn;
    case Level::error:
      return spdlog::level::err;
  }
  return spdlog::level::err;
}

void append_json_string(std::string_view text, memory_buf_t& out) {
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out.push_back('\\');
      out.push_back(c);
    } else if (byte < 0x20 || byte >= 0x7f) {
      fmt::format_to(fmt::appender(out), "\\u{:04x}", byte);
    } else {
      out.push_back(c);
    }
  }
}

class LineFormatter final : public spdlog::formatter {
 public:
  explicit LineFormatter(Format format) : format_(format) {}

  void format(const spdlog::details::log_msg& line, memory_buf_t& out) override {
    const auto ms =
        std::chrono::duration_cast<std::chrono::milliseconds>(line.time.time_since_epoch()).count();
    const std::string time = fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:03}Z",
                                         fmt::gmtime(static_cast<std::time_t>(ms / 1000)), ms % 1000);
    const std::string_view message(line.payload.data(), line.payload.size());
    if (format_ == Format::text) {
      fmt::format_to(fmt::appender(out), "{} {:<5} {}\n", time, name_of(line.level), message);
      return;
    }
    fmt::format_to(fmt::appender(out), R"({{"time":"{}","level":"{}","message":")", time,
                   name_of(line.level));
    append_json_string(message, out);
    fmt::format_to(fmt::appender(out), "\"}}\n");
  }

  std::unique_ptr<spdlog::formatter> clone() const override {
    return std::make_unique<LineFormatter>(format_);
  }

 private:
  Format format_;
};

// Between start() and stop() both are set. `logger` only refers to `pool`, whose thread is the one that
// writes.
struct Running {
  std::shared_ptr<spdlog::details::thread_pool> pool;
  std::shared_ptr<spdlog::async_logger> logger;
};

std::mutex mutex;  // over `running`; never held while anything is written to stderr
Running running;
std::atomic<Level> least_level = Level::info;
std::atomic<uint64_t> dropped_before_stop = 0;

std::shared_ptr<spdlog::details::thread_pool> start_pool() {
  // The daemon's signals must not be delivered to this thread; it inherits the mask.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  auto pool = std::make_shared<spdlog::details::thread_pool>(kQueueLines, 1);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return pool;
}

void write_now(Level level, std::string_view message) {
  memory_buf_t out;
  LineFormatter(Format::text).format({"", spdlog_level(level), {message.data(), message.size()}}, out);
  std::fwrite(out.data(), 1, out.size(), stderr);
}

}  // namespace

void start(Level level, Format format) {
  stop();
  Running next;
  next.pool = start_pool();
  next.logger =
      std::make_shared<spdlog::async_logger>("", std::make_shared<spdlog::sinks::stderr_sink_mt>(), next.pool,
                                             spdlog::async_overflow_policy::overrun_oldest);
  next.logger->set_formatter(std::make_unique<LineFormatter>(format));
  next.logger->set_level(spdlog::level::trace);
  least_level = level;
  dropped_before_stop = 0;
  const std::lock_guard lock(mutex);
  running = std::move(next);
}

void stop() {
  Running last;
  {
    const std::lock_guard lock(mutex);
    std::swap(last, running);
  }
  if (!last.pool) return;
  dropped_before_stop = last.pool->overrun_counter();
  last.pool.reset();  // writes what is queued, joins
}

void write(Level level, std::string_view message) {
  if (!enabled(level)) return;
  {
    const std::lock_guard lock(mutex);
    if (running.logger) {
      running.logger->log(spdlog_level(level), spdlog::string_view_t(message.data(), message.size()));
      return;
    }
  }
  write_now(level, message);
}

bool enabled(Level level) {
  return level >= least_level.load(std::memory_order_relaxed);
}

uint64_t dropped() {
  const std::lock_guard lock(mutex);
  return running.pool ? running.pool->overrun_counter() : dropped_before_stop.load();
}

std::string escaped(std::string_view bytes, size_t max) {
  std::string out;
  for (const char c : bytes.substr(0, max)) {
    if (c >= 0x20 && c < 0x7f && c != '"' && c != '\\') {
      out.push_back(c);
    } else {
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    }
  }
  return out;
}

}  // namespace penstock::log
