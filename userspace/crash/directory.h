// SPDX-License-Identifier: Apache-2.0
// crash/directory.h: where reports stand: crash-YYYYmmddTHHMMSSZ-PID.txt, in UTC, by a descriptor of their
// directory that was opened with O_RDONLY | O_DIRECTORY. tests/unit/crash_test.cc.
#pragma once
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace penstock::crash {

struct FileName {
  static constexpr size_t kBytes = sizeof "crash-20251122T053107Z-2147483647.txt";
  char text[kBytes];  // ends with 0
};
FileName file_name(int64_t unix_s, pid_t process);  // async-signal-safe; of the years 0 to 9999
bool is_file_name(std::string_view name);           // one that file_name() may have made

// Removes the oldest reports until `count` are left; nothing but regular files with such a name. What cannot
// be removed or listed stays. Not two at a time: the position of `directory` is everybody's who shares it.
void keep_newest(int directory, size_t count);

}  // namespace penstock::crash
