// SPDX-License-Identifier: Apache-2.0
#include "crash/text.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace penstock::crash {
namespace {

bool is_printable(char c) {
  return c >= 0x20 && c < 0x7f;
}

}  // namespace

Text& Text::operator<<(std::string_view trusted) {
  trusted = trusted.substr(0, left_);
  left_ -= trusted.size();
  while (!trusted.empty()) {
    const size_t n = std::min(trusted.size(), sizeof buffer_ - used_);
    memcpy(buffer_ + used_, trusted.data(), n);
    used_ += n;
    trusted.remove_prefix(n);
    if (used_ == sizeof buffer_) flush();
  }
  return *this;
}

Text& Text::operator<<(int64_t number) {
  char digits[20];
  char* at = digits + sizeof digits;
  uint64_t rest = number < 0 ? 0 - static_cast<uint64_t>(number) : static_cast<uint64_t>(number);
  do *--at = static_cast<char>('0' + rest % 10);
  while (rest /= 10);
  if (number < 0) *--at = '-';
  return *this << std::string_view(at, static_cast<size_t>(digits + sizeof digits - at));
}

Text& Text::hex(uint64_t number, int digits_min) {
  char digits[18];
  char* const end = digits + sizeof digits;
  char* at = end;
  do *--at = "0123456789abcdef"[number % 16];
  while ((number /= 16) || end - at < digits_min);
  *--at = 'x';
  *--at = '0';
  return *this << std::string_view(at, static_cast<size_t>(end - at));
}

Text& Text::printable(std::string_view bytes, size_t bytes_max) {
  for (const char c : bytes) {
    const size_t size = is_printable(c) ? 1 : 4;
    if (size > bytes_max) break;
    bytes_max -= size;
    if (size == 1) {
      *this << std::string_view(&c, 1);
      continue;
    }
    const auto byte = static_cast<unsigned char>(c);
    const char escape[] = {'\\', 'x', "0123456789abcdef"[byte / 16], "0123456789abcdef"[byte % 16]};
    *this << std::string_view(escape, sizeof escape);
  }
  return *this;
}

size_t printable_size(std::string_view bytes) {
  size_t size = 0;
  for (const char c : bytes) size += is_printable(c) ? 1 : 4;
  return size;
}

Text& Text::time(int64_t unix_s) {
  const Date d = date_of(unix_s);
  auto two = [&](unsigned number, std::string_view after) {
    const char digits[] = {static_cast<char>('0' + number / 10), static_cast<char>('0' + number % 10)};
    *this << std::string_view(digits, 2) << after;
  };
  *this << d.year << "-";
  two(d.month, "-");
  two(d.day, "T");
  two(d.hour, ":");
  two(d.minute, ":");
  two(d.second, "Z");
  return *this;
}

void Text::flush() {
  for (size_t at = 0; at < used_ && error_ == 0;) {
    const ssize_t n = ::write(fd_, buffer_ + at, used_ - at);
    if (n >= 0) at += static_cast<size_t>(n);
    if (n < 0 && errno != EINTR) error_ = errno;
  }
  used_ = 0;
}

// Days to a date of the Gregorian calendar, in eras of 400 years that begin with March
// (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
Date date_of(int64_t unix_s) {
  const int64_t days = unix_s / 86400 - (unix_s % 86400 < 0);
  const auto second = static_cast<unsigned>(unix_s - days * 86400);
  const int64_t z = days + 719468;
  const int64_t era = (z >= 0 ? z : z - 146096) / 146097;
  const auto day_of_era = static_cast<unsigned>(z - era * 146097);
  const unsigned year_of_era =
      (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146096) / 365;
  const unsigned day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
  const unsigned month_from_march = (5 * day_of_year + 2) / 153;
  const unsigned day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
  const unsigned month = month_from_march < 10 ? month_from_march + 3 : month_from_march - 9;
  return {year_of_era + era * 400 + (month <= 2), month, day, second / 3600, second / 60 % 60, second % 60};
}

}  // namespace penstock::crash
