// SPDX-License-Identifier: Apache-2.0
#include "support/pattern.h"

#include <sys/socket.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <vector>

namespace penstock::test {
namespace {

static_assert(std::endian::native == std::endian::little);

// splitmix64 (Steele, Lea, Flood 2014) as a function of the word's index.
uint64_t word(uint64_t seed, uint64_t index) {
  uint64_t z = seed * 0xd1342543de82ef95 + (index + 1) * 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

}  // namespace

void fill_pattern(uint64_t seed, uint64_t offset, char* out, size_t bytes) {
  while (bytes > 0) {
    const uint64_t w = word(seed, offset / 8);
    const size_t skip = offset % 8;
    const size_t n = std::min(bytes, 8 - skip);
    std::memcpy(out, reinterpret_cast<const char*>(&w) + skip, n);
    out += n;
    offset += n;
    bytes -= n;
  }
}

std::string pattern(uint64_t seed, size_t bytes, uint64_t offset) {
  std::string out(bytes, '\0');
  fill_pattern(seed, offset, out.data(), bytes);
  return out;
}

std::optional<uint64_t> first_wrong(uint64_t seed, uint64_t offset, const char* bytes, size_t size) {
  char expected[4096];
  for (size_t done = 0; done < size;) {
    const size_t n = std::min(size - done, sizeof expected);
    fill_pattern(seed, offset + done, expected, n);
    if (std::memcmp(expected, bytes + done, n) != 0) {
      const auto where = std::mismatch(expected, expected + n, bytes + done);
      return offset + done + static_cast<uint64_t>(where.first - expected);
    }
    done += n;
  }
  return {};
}

PatternSender::PatternSender(const TcpStream& stream, uint64_t seed, Options options)
    : options_(std::move(options)), thread_([this, &stream, seed] {
        try {
          run(stream, seed);
        } catch (...) {
          failure_ = std::current_exception();
        }
      }) {}

PatternSender::~PatternSender() {
  stop_ = true;
  if (thread_.joinable()) thread_.join();
}

void PatternSender::run(const TcpStream& stream, uint64_t seed) {
  std::vector<char> chunk(options_.chunk_bytes_max);
  for (uint64_t round = 0; !stop_ && sent_ < options_.bytes_max; ++round) {
    const uint64_t offset = sent_;
    const uint64_t wish = 1 + word(seed ^ 0x5eed, round) % options_.chunk_bytes_max;
    const size_t n = static_cast<size_t>(std::min(wish, options_.bytes_max - offset));
    fill_pattern(seed, offset, chunk.data(), n);
    if (options_.send)
      options_.send(offset, {chunk.data(), n});
    else
      stream.send_all({chunk.data(), n});
    sent_ = offset + n;
  }
  if (options_.fin) stream.half_close();
}

uint64_t PatternSender::finish() {
  thread_.join();
  if (failure_) std::rethrow_exception(failure_);
  return sent_;
}

int PatternSender::finish_errno() {
  try {
    finish();
  } catch (const std::system_error& ended) {
    return ended.code().value();
  }
  return 0;
}

PatternReader::PatternReader(const TcpStream& stream, uint64_t seed)
    : thread_([this, &stream, seed] {
        try {
          run(stream, seed);
        } catch (...) {
          failure_ = std::current_exception();
        }
        const std::lock_guard lock(mutex_);
        ended_ = true;
        changed_.notify_all();
      }) {}

PatternReader::~PatternReader() {
  resume();
  if (thread_.joinable()) thread_.join();
}

void PatternReader::run(const TcpStream& stream, uint64_t seed) {
  std::vector<char> bytes(256 << 10);
  for (;;) {
    paused_.wait(true);
    const ssize_t n = stream.recv_some(bytes.data(), bytes.size());
    if (n == -EINTR) continue;
    if (n == -EPERM) continue;  // for the moment in which RawSegments has TCP_REPAIR on
    if (n == 0 || n == -ECONNRESET) {
      result_.end = n == 0 ? End::fin : End::reset;
      return;
    }
    if (n < 0) throw std::system_error(static_cast<int>(-n), std::generic_category(), "recv of the pattern");
    if (!result_.wrong_at)
      result_.wrong_at = first_wrong(seed, received_, bytes.data(), static_cast<size_t>(n));
    const std::lock_guard lock(mutex_);
    received_ += static_cast<uint64_t>(n);
    changed_.notify_all();
  }
}

void PatternReader::wait_received(uint64_t bytes) const {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return received_ >= bytes || ended_; });
}

PatternReader::Result PatternReader::finish() {
  resume();
  thread_.join();
  if (failure_) std::rethrow_exception(failure_);
  result_.bytes = received_;
  return result_;
}

}  // namespace penstock::test
