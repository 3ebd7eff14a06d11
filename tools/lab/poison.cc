// SPDX-License-Identifier: Apache-2.0
// lab-poison: LD_PRELOAD it into penstockd, and a thread that reads or peeks the bytes "lab-poison" crashes
// on them: not by a signal that is sent, but as a bug of ours would. A program whose file is called
// dies-in-adoption crashes as its workers first look at a socket, and not before all else has begun.
#include <dlfcn.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string_view>

namespace {

bool dies_in_adoption() {
  char thread[16] = "", program[256] = "";
  prctl(PR_GET_NAME, thread);
  const ssize_t bytes = readlink("/proc/self/exe", program, sizeof program);
  return std::string_view(thread).starts_with("worker-") && bytes > 0 &&
         std::string_view(program, static_cast<size_t>(bytes)).ends_with("/dies-in-adoption");
}

}  // namespace

extern "C" int getsockopt(int fd, int level, int name, void* value, socklen_t* size) noexcept {
  static auto* const next = reinterpret_cast<decltype(&getsockopt)>(dlsym(RTLD_NEXT, "getsockopt"));
  static thread_local const bool t_dies = dies_in_adoption();
  if (t_dies) {
    usleep(300'000);
    *static_cast<volatile char*>(nullptr) = 0;
  }
  return next(fd, level, name, value, size);
}

extern "C" ssize_t recv(int fd, void* buffer, size_t size, int flags) {
  static auto* const next = reinterpret_cast<decltype(&recv)>(dlsym(RTLD_NEXT, "recv"));
  const ssize_t n = next(fd, buffer, size, flags);
  constexpr char kPoison[] = "lab-poison";
  if (buffer && n > 0 && memmem(buffer, std::min(static_cast<size_t>(n), size), kPoison, sizeof kPoison - 1))
    *static_cast<volatile char*>(nullptr) = 0;
  return n;
}
