// SPDX-License-Identifier: Apache-2.0
#include "base/log.h"

#include <fmt/chrono.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <spdlog/details/log_msg.h>
#include <spdlog/details/null_mutex.h>
#include <spdlog/sinks/base_sink.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/log_ring.h"
#include "base/signals.h"

namespace penstock::log {
namespace {

using spdlog::memory_buf_t;

constexpr size_t kOwnRingBytes = 4 << 20;                 // some 8192 lines
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

// Only the ring's thread writes, so no lock.
class StderrSink final : public spdlog::sinks::base_sink<spdlog::details::null_mutex> {
 public:
  explicit StderrSink(Format format) { set_formatter(std::make_unique<LineFormatter>(format)); }
  void give_up_at(TimePoint deadline) { deadline_ = deadline; }
  bool has_put_out() const { return has_put_out_; }  // the last line

 protected:
  void sink_it_(const spdlog::details::log_msg& line) override {
    memory_buf_t out;
    formatter_->format(line, out);
    has_put_out_ = write_stderr({out.data(), out.size()}, deadline_);
  }
  void flush_() override {}

 private:
  std::atomic<TimePoint> deadline_ = TimePoint::max();
  bool has_put_out_ = false;
};

class Running {
 public:
  Running(Format format, std::span<std::byte> shared)
      : own_(shared.empty() ? kOwnRingBytes / sizeof(uint64_t) : 0),
        memory_(shared.empty() ? std::as_writable_bytes(std::span(own_)) : shared),
        ring_(memory_),
        sink_(format) {
    sigset_t before;
    block_daemons_signals(&before);  // the thread inherits it
    thread_ = std::thread([this] { put_out(); });
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }
  ~Running() { stop(); }
  void stop() {  // puts out what waits, for kStopPatience
    if (!thread_.joinable()) return;
    sink_.give_up_at(Clock::now() + kStopPatience);
    ring_.end();
    thread_.join();
  }

  void write(Level level, std::string_view message) {
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    ring_.write(static_cast<uint32_t>(level), std::chrono::nanoseconds(now).count(), message);
  }
  const LogRing& ring() const { return ring_; }
  bool was_written(std::string_view beginning) const {
    const LogTail tail(memory_);
    std::vector<uint64_t> positions(memory_.size() / 64);  // a line with its head takes more
    positions.resize(tail.last(positions));
    LogLine line;
    return std::any_of(positions.begin(), positions.end(),
                       [&](uint64_t p) { return tail.read(p, line) && line.text().starts_with(beginning); });
  }

 private:
  void put_out() {
    for (LogLine line; ring_.wait(line);) {
      const Level level = static_cast<Level>(std::min(line.level, static_cast<uint32_t>(Level::error)));
      const spdlog::log_clock::time_point time(
          std::chrono::duration_cast<spdlog::log_clock::duration>(std::chrono::nanoseconds(line.time_ns)));
      sink_.log({time, {}, "", spdlog_level(level), {line.bytes, line.size}});
      ring_.done(line, sink_.has_put_out());
    }
  }

  std::vector<uint64_t> own_;
  const std::span<std::byte> memory_;
  LogRing ring_;
  StderrSink sink_;
  std::thread thread_;
};

std::mutex mutex;  // over `running`; never held while anything is written to stderr
std::unique_ptr<Running> running;
std::atomic<Level> least_level = Level::info;
uint64_t dropped_before_stop = 0;

void write_now(Level level, std::string_view message) {
  memory_buf_t out;
  LineFormatter(Format::text).format({"", spdlog_level(level), {message.data(), message.size()}}, out);
  write_stderr({out.data(), out.size()}, Clock::now() + kStopPatience);
}

}  // namespace

void start(Level level, Format format, std::span<std::byte> ring) {
  stop();
  auto next = std::make_unique<Running>(format, ring);
  if (next->ring().found() == LogRing::Found::garbage)
    next->write(Level::warn, "the log of the process before was unreadable: lines may be lost");
  least_level = level;
  const std::lock_guard lock(mutex);
  running = std::move(next);
}

void set_level(Level level) {
  least_level = level;
}

void stop() {
  std::unique_ptr<Running> last;
  {
    const std::lock_guard lock(mutex);
    std::swap(last, running);
  }
  if (!last) return;
  last->stop();
  const std::lock_guard lock(mutex);
  dropped_before_stop = last->ring().dropped();
}

void write(Level level, std::string_view message) {
  if (!enabled(level)) return;
  {
    const std::lock_guard lock(mutex);
    if (running) return running->write(level, message);
  }
  write_now(level, message);
}

bool enabled(Level level) {
  return level >= least_level.load(std::memory_order_relaxed);
}

bool was_written(std::string_view beginning) {
  const std::lock_guard lock(mutex);
  return running && running->was_written(beginning);
}

uint64_t dropped() {
  const std::lock_guard lock(mutex);
  return running ? running->ring().dropped() : dropped_before_stop;
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
