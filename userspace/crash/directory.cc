// SPDX-License-Identifier: Apache-2.0
#include "crash/directory.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <string>
#include <vector>

#include "crash/text.h"

namespace penstock::crash {
namespace {

constexpr std::string_view kBefore = "crash-", kAfter = ".txt";
constexpr size_t kTimeBytes = sizeof "20251122T053107Z-" - 1;

// "20251122T053107Z-"
void put_time(int64_t unix_s, char* out) {
  const Date d = date_of(unix_s);
  auto put = [&](unsigned number, int digits) {
    for (int i = digits; i-- > 0; number /= 10) out[i] = static_cast<char>('0' + number % 10);
    out += digits;
  };
  put(static_cast<unsigned>(std::clamp<int64_t>(d.year, 0, 9999)), 4);
  put(d.month, 2);
  put(d.day, 2);
  *out++ = 'T';
  put(d.hour, 2);
  put(d.minute, 2);
  put(d.second, 2);
  *out++ = 'Z';
  *out++ = '-';
}

}  // namespace

FileName file_name(int64_t unix_s, pid_t process) {
  FileName name;
  char* at = name.text + kBefore.copy(name.text, kBefore.size());
  put_time(unix_s, at);
  at = std::to_chars(at + kTimeBytes, name.text + sizeof name.text, process).ptr;
  at += kAfter.copy(at, kAfter.size());
  *at = 0;
  return name;
}

bool is_file_name(std::string_view name) {
  if (!name.starts_with(kBefore) || !name.ends_with(kAfter) ||
      name.size() <= kBefore.size() + kTimeBytes + kAfter.size())
    return false;
  const std::string_view time = name.substr(kBefore.size(), kTimeBytes);
  auto number = [&](size_t at, size_t digits) {
    int value = -1;
    const char* end = time.data() + at + digits;
    return time[at] != '-' && std::from_chars(time.data() + at, end, value).ptr == end ? value : -1;
  };
  const int month = number(4, 2), day = number(6, 2), hour = number(9, 2), minute = number(11, 2);
  if (number(0, 4) < 0 || month < 1 || month > 12 || day < 1 || day > 31 || hour < 0 || hour > 23 ||
      minute < 0 || minute > 59 || number(13, 2) < 0 || number(13, 2) > 59)
    return false;
  if (time[8] != 'T' || time.substr(15) != "Z-") return false;
  name.remove_prefix(kBefore.size() + kTimeBytes);
  name.remove_suffix(kAfter.size());
  pid_t process = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), process);
  return error == std::errc() && end == name.data() + name.size() && process > 0 && name[0] != '0';
}

void keep_newest(int directory, size_t count) {
  std::vector<std::string> names;
  alignas(dirent64) char entries[8192];
  if (lseek(directory, 0, SEEK_SET) != 0) return;
  // Not readdir(3): it needs a descriptor of its own, and a table that outlives us would keep it.
  for (ssize_t n; (n = getdents64(directory, entries, sizeof entries)) > 0;)
    for (ssize_t at = 0; at < n;) {
      const auto* entry = reinterpret_cast<const dirent64*>(entries + at);
      at += entry->d_reclen;
      struct stat file {};
      if (is_file_name(entry->d_name) && fstatat(directory, entry->d_name, &file, AT_SYMLINK_NOFOLLOW) == 0 &&
          S_ISREG(file.st_mode))
        names.emplace_back(entry->d_name);
    }
  if (names.size() <= count) return;
  std::sort(names.begin(), names.end());
  for (size_t i = 0; i < names.size() - count; i++) unlinkat(directory, names[i].c_str(), 0);
}

}  // namespace penstock::crash
