// SPDX-License-Identifier: Apache-2.0
#include "sockmap/loopback_stream.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "sockmap/loopback_flow.h"

namespace penstock::sockmap {
namespace {

constexpr size_t kChunkBytes = 64 << 10;
constexpr uint64_t kAheadBytesMax = 256 << 10;
constexpr int kTickMs = 20;  // how soon a thread hears stop()

// The eight bytes at offset 8 * index (the finalizer of splitmix64: no two pieces of a stream look alike).
uint64_t word(uint64_t index) {
  uint64_t z = (index + 1) * 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  return z ^ (z >> 27);
}

// Fills `out` with the stream from `offset` on, from the word it lies in; returns where `offset` is in it.
const char* stream_at(uint64_t offset, size_t bytes, std::vector<uint64_t>& out) {
  out.resize(bytes / 8 + 2);
  for (size_t i = 0; i < out.size(); i++) out[i] = word(offset / 8 + i);
  return reinterpret_cast<const char*>(out.data()) + offset % 8;
}

bool ready(int fd, short events) {
  pollfd p{fd, events, 0};
  return ::poll(&p, 1, kTickMs) > 0;
}

}  // namespace

StreamSender::StreamSender(int fd, uint64_t bytes_max, const StreamReader* pace)
    : thread_([this, fd, bytes_max, pace] { run(fd, bytes_max, pace); }) {}

StreamSender::~StreamSender() {
  stop_ = true;
  if (thread_.joinable()) thread_.join();
}

void StreamSender::run(int fd, uint64_t bytes_max, const StreamReader* pace) {
  std::vector<uint64_t> words;
  while (!stop_ && sent_ < bytes_max) {
    if (pace && sent_ > pace->received() + kAheadBytesMax) {
      std::this_thread::sleep_for(std::chrono::microseconds(20));
      continue;
    }
    size_t want = static_cast<size_t>(std::min<uint64_t>(kChunkBytes, bytes_max - sent_));
    ssize_t n = ::send(fd, stream_at(sent_, want, words), want, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0) {
      sent_ += static_cast<uint64_t>(n);
    } else if (errno == EAGAIN) {
      ready(fd, POLLOUT);
    } else {
      failure_ = fmt::format("send: {}", strerror(errno));
      return;
    }
  }
}

uint64_t StreamSender::finish() {
  thread_.join();
  if (failure_) throw CheckFailed(*failure_);
  return sent_;
}

StreamReader::StreamReader(int fd) : thread_([this, fd] { run(fd); }) {}

StreamReader::~StreamReader() {
  stop_ = true;
  if (thread_.joinable()) thread_.join();
}

void StreamReader::fail(std::string why) {
  failure_ = std::move(why);
  failed_ = true;
}

void StreamReader::run(int fd) {
  std::vector<char> bytes(4 * kChunkBytes);
  std::vector<uint64_t> words;
  auto last = std::chrono::steady_clock::now();
  while (!stop_) {
    ssize_t n = ::recv(fd, bytes.data(), bytes.size(), MSG_DONTWAIT);
    if (n == 0) return;
    if (n < 0 && errno == EAGAIN) {
      ready(fd, POLLIN);
      if (std::chrono::steady_clock::now() - last < kProbePatience) continue;
      fail(fmt::format("no byte for {} ms after {} bytes", kProbePatience.count(), received_.load()));
      return;
    }
    if (n < 0) {
      fail(fmt::format("recv: {}", strerror(errno)));
      return;
    }
    last = std::chrono::steady_clock::now();
    size_t got = static_cast<size_t>(n);
    const char* expected = stream_at(received_, got, words);
    if (memcmp(expected, bytes.data(), got) != 0) {
      auto at = std::mismatch(bytes.data(), bytes.data() + got, expected).first - bytes.data();
      fail(fmt::format("wrong byte at offset {}", received_ + static_cast<uint64_t>(at)));
      return;
    }
    received_ += got;
  }
}

uint64_t StreamReader::finish() {
  thread_.join();
  if (failed_) throw CheckFailed(failure_);
  return received_;
}

}  // namespace penstock::sockmap
