// SPDX-License-Identifier: Apache-2.0
#include "base/log.h"

#include <fmt/chrono.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spdlog/async_logger.h>
#include <spdlog/details/null_mutex.h>
#include <spdlog/details/thread_pool.h>
#include <spdlog/sinks/base_sink.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <memory>
#include <mutex>

// Of the two that libstdc++ 12 and later have, the one that GCC 11's has too: EL 9.
asm(".symver _ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE, "
    "_ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE@GLIBCXX_3.4.11");

namespace penstock::log {
namespace {

using spdlog::memory_buf_t;

constexpr size_t kQueueLines = 8192;                      // some 4 MiB, allocated at start
constexpr std::chrono::milliseconds kStopPatience{1000};  // with the reader of stderr

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

using Clock = std::chrono::steady_clock;
using TimePoint = Clock::time_point;

// False when stderr is gone, or its reader has not taken the line by `*deadline`, which another thread may
// set meanwhile. After POLLOUT, a pipe and a socket take PIPE_BUF bytes without blocking; O_NONBLOCK would be
// everybody's who shares our stderr.
bool write_stderr(std::string_view line, const std::atomic<TimePoint>& deadline) {
  constexpr std::chrono::milliseconds kLook{100};  // at `deadline`
  while (!line.empty()) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline.load() - Clock::now());
    if (left.count() <= 0) return false;
    pollfd out{STDERR_FILENO, POLLOUT, 0};
    if (::poll(&out, 1, static_cast<int>(std::min(left, kLook).count())) <= 0) continue;
    const ssize_t n = ::write(STDERR_FILENO, line.data(), std::min<size_t>(line.size(), PIPE_BUF));
    if (n < 0 && errno != EINTR && errno != EAGAIN) return false;
    if (n > 0) line.remove_prefix(static_cast<size_t>(n));
  }
  return true;
}

// Only the pool's thread writes, so no lock.
class StderrSink final : public spdlog::sinks::base_sink<spdlog::details::null_mutex> {
 public:
  void give_up_at(TimePoint deadline) { deadline_ = deadline; }
  uint64_t lost() const { return lost_; }

 protected:
  void sink_it_(const spdlog::details::log_msg& line) override {
    memory_buf_t out;
    formatter_->format(line, out);
    if (!write_stderr({out.data(), out.size()}, deadline_)) ++lost_;
  }
  void flush_() override {}

 private:
  std::atomic<TimePoint> deadline_ = TimePoint::max();
  std::atomic<uint64_t> lost_ = 0;
};

// Between start() and stop() all are set. `logger` only refers to `pool`, whose thread is the one that
// writes.
struct Running {
  std::shared_ptr<spdlog::details::thread_pool> pool;
  std::shared_ptr<StderrSink> sink;
  std::shared_ptr<spdlog::async_logger> logger;
  uint64_t dropped() const { return pool->overrun_counter() + sink->lost(); }
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
  write_stderr({out.data(), out.size()}, Clock::now() + kStopPatience);
}

}  // namespace

void start(Level level, Format format) {
  stop();
  Running next;
  next.pool = start_pool();
  next.sink = std::make_shared<StderrSink>();
  next.logger = std::make_shared<spdlog::async_logger>("", next.sink, next.pool,
                                                       spdlog::async_overflow_policy::overrun_oldest);
  next.logger->set_formatter(std::make_unique<LineFormatter>(format));
  next.logger->set_level(spdlog::level::trace);
  least_level = level;
  dropped_before_stop = 0;
  const std::lock_guard lock(mutex);
  running = std::move(next);
}

void set_level(Level level) {
  least_level = level;
}

void stop() {
  Running last;
  {
    const std::lock_guard lock(mutex);
    std::swap(last, running);
  }
  if (!last.pool) return;
  last.sink->give_up_at(Clock::now() + kStopPatience);
  const uint64_t overrun = last.pool->overrun_counter();
  last.pool.reset();  // writes what is queued, joins
  dropped_before_stop = overrun + last.sink->lost();
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
  return running.pool ? running.dropped() : dropped_before_stop.load();
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
