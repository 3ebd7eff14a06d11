// SPDX-License-Identifier: Apache-2.0
// support/pattern.h: streams whose every byte is known from a seed and its offset, and the two threads that
// send and check them. A lost, doubled or swapped byte is reported with its offset.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
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
    // Called before each send with the stream's offset; a place to disturb the connection from the sender's
    // thread.
    std::function<void(uint64_t offset)> before_send;
  };
  PatternSender(const TcpStream& stream, uint64_t seed, Options options);
  PatternSender(const TcpStream& stream, uint64_t seed) : PatternSender(stream, seed, Options{}) {}
  ~PatternSender();
  void stop() { stop_ = true; }
  // Waits for the thread. Returns how many bytes were sent. Throws what ended the thread early.
  uint64_t finish();
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
  // Waits for the end of the stream. Throws when the read timed out.
  Result finish();

 private:
  void run(const TcpStream& stream, uint64_t seed);
  std::atomic<bool> paused_ = false;
  std::atomic<uint64_t> received_ = 0;
  Result result_;
  std::exception_ptr failure_;
  std::thread thread_;
};

}  // namespace penstock::test
