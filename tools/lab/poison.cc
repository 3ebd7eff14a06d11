// SPDX-License-Identifier: Apache-2.0
// lab-poison: LD_PRELOAD it into penstockd, and a thread that reads or peeks the bytes "lab-poison" crashes
// on them: not by a signal that is sent, but as a bug of ours would.
#include <dlfcn.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

extern "C" ssize_t recv(int fd, void* buffer, size_t size, int flags) {
  static auto* const next = reinterpret_cast<decltype(&recv)>(dlsym(RTLD_NEXT, "recv"));
  const ssize_t n = next(fd, buffer, size, flags);
  constexpr char kPoison[] = "lab-poison";
  if (buffer && n > 0 && memmem(buffer, std::min(static_cast<size_t>(n), size), kPoison, sizeof kPoison - 1))
    *static_cast<volatile char*>(nullptr) = 0;
  return n;
}
