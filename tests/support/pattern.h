// SPDX-License-Identifier: Apache-2.0
// support/pattern.h: streams whose every byte is known from a seed and its offset, and the two threads that
// send and check them. A lost, doubled or swapped byte is reported with its offset.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "support/tcp.h"

namespace penstock::test {

void fill_pattern(uint64_t seed, uint64_t offset, char* out, size_t bytes);
std::string pattern(uint64_t seed, size_t bytes, uint64_t offset = 0);
// The first offset at which `bytes` are not what `seed` has there.
std::optional<uint64_t> first_wrong(uint64_t seed, uint64_t offset, const char* bytes, size_t size);

// Sends the pattern on a thread of its own until `bytes_max` or stop(), then ends the stream with a FIN.
class PatternSender {
 public:
  struct Options {
    uint64_t bytes_max = UINT64_MAX;
    size_t chunk_bytes_max = 64 << 10;  // sizes vary up to it
    bool fin = true;
    // Instead of stream.send_all(bytes), on the sender's thread: another way to send these bytes, the
    // stream's next.
    std::function<void(uint64_t offset, std::string_view bytes)> send;
  };
  PatternSender(const TcpStream& stream, uint64_t seed, Options options);
  PatternSender(const TcpStream& stream, uint64_t seed) : PatternSender(stream, seed, Options{}) {}
  ~PatternSender();
  void stop() { stop_ = true; }
  // Waits for the thread. Returns how many bytes were sent. Throws what ended the thread early.
  uint64_t finish();
  // Waits for the thread. The errno that ended it, 0 when it sent everything. A RST is told once per socket,
  // to whoever asks first: a thread that sends may hear of it (ECONNRESET) and the one that reads then sees a
  // plain end.
  int finish_errno();
  uint64_t sent() const { return sent_; }

 private:
  void run(const TcpStream& stream, uint64_t seed);
  Options options_;
  std::atomic<bool> stop_ = false;
  std::atomic<uint64_t> sent_ = 0;
  std::exception_ptr failure_;
  std::thread thread_;
};

// Reads and checks on a thread of its own until the stream ends.
class PatternReader {
 public:
  struct Result {
    uint64_t bytes = 0;
    End end = End::fin;
    std::optional<uint64_t> wrong_at;
  };
  PatternReader(const TcpStream& stream, uint64_t seed);
  ~PatternReader();
  void pause() { paused_ = true; }  // at most one more read happens
  void resume() {
    paused_ = false;
    paused_.notify_all();
  }
  uint64_t received() const { return received_; }
  // Returns once so many bytes have come, or the stream has ended.
  void wait_received(uint64_t bytes) const;
  // Waits for the end of the stream. Throws when the read timed out.
  Result finish();

 private:
  void run(const TcpStream& stream, uint64_t seed);
  std::atomic<bool> paused_ = false;
  std::atomic<uint64_t> received_ = 0;
  bool ended_ = false;  // guarded by mutex_
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  Result result_;
  std::exception_ptr failure_;
  std::thread thread_;
};

}  // namespace penstock::test
