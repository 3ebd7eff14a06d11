// SPDX-License-Identifier: Apache-2.0
// sockmap/loopback_stream.h: load for the self-test: bytes that are known from their offset, sent and checked
// by a thread each, so that a lost, doubled or swapped byte is noticed.
#pragma once
#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <thread>

namespace penstock::sockmap {

// The thread reads and checks up to the end of the stream.
class StreamReader {
 public:
  explicit StreamReader(int fd);
  ~StreamReader();
  uint64_t received() const { return received_; }
  bool failed() const { return failed_; }  // finish() says how
  uint64_t finish();  // waits; the bytes before the FIN. Throws CheckFailed at the first wrong byte.

 private:
  void run(int fd);
  void fail(std::string why);
  std::atomic<bool> stop_ = false;
  std::atomic<uint64_t> received_ = 0;
  std::atomic<bool> failed_ = false;
  std::string failure_;  // valid when failed_
  std::thread thread_;
};

// The thread sends until `bytes_max` or stop(), never more than 256 KiB ahead of `pace` when there is one, so
// that nothing but the checker is waited for. No FIN.
class StreamSender {
 public:
  StreamSender(int fd, uint64_t bytes_max, const StreamReader* pace = nullptr);
  ~StreamSender();
  void stop() { stop_ = true; }
  uint64_t finish();  // waits; the bytes sent. Throws CheckFailed.

 private:
  void run(int fd, uint64_t bytes_max, const StreamReader* pace);
  std::atomic<bool> stop_ = false;
  uint64_t sent_ = 0;
  std::optional<std::string> failure_;
  std::thread thread_;
};

}  // namespace penstock::sockmap
