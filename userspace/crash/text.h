// SPDX-License-Identifier: Apache-2.0
// crash/text.h: a bounded text into a descriptor, printable whatever goes into it. Every function here may be
// called in a signal handler (signal-safety(7)): no allocation, no lock, no locale.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace penstock::crash {

class Text {
 public:
  Text() = default;
  Text(int fd, size_t bytes_max) : fd_(fd), left_(bytes_max) {}

  Text& operator<<(std::string_view trusted);
  Text& operator<<(int64_t number);
  Text& hex(uint64_t number, int digits_min = 1);  // with 0x
  // Anything but printable ASCII as \xNN, at most `bytes_max` of it.
  Text& printable(std::string_view bytes, size_t bytes_max);
  Text& time(int64_t unix_s);  // 2025-11-22T05:31:07Z
  void flush();

  int error() const {
    return error_;
  }  // errno of the first write(2) that failed; nothing is written after it

 private:
  int fd_ = -1;
  size_t left_ = 0, used_ = 0;
  int error_ = 0;
  char buffer_[2048] = {};
};

// How many bytes printable() would write.
size_t printable_size(std::string_view bytes);

struct Date {  // in UTC
  int64_t year;
  unsigned month, day, hour, minute, second;
};
Date date_of(int64_t unix_s);  // gmtime_r(3) may take a lock

}  // namespace penstock::crash
