// SPDX-License-Identifier: Apache-2.0
// lab-kill: LD_PRELOAD it into penstockd, and each worker process is killed by SIGKILL right before or right
// after one of its threads' system calls, drawn anew for each process: the first ones as likely as all later
// ones (LAB_KILL_CALLS: of about so many; LAB_KILL_AT: of these calls alone, "splice,send"). Each death is a
// line of the file LAB_KILL_LOG: "before splice".
#include <dlfcn.h>
#include <fcntl.h>
#include <liburing.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

std::atomic<int> g_process = 0;
std::atomic<int64_t> g_left = 0;
std::atomic<bool> g_after = false;

uint64_t mixed(uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// Of a thread named worker-N; each process of the daemon draws when it makes its first call.
bool counts() {
  static thread_local int t_counts = -1;
  if (t_counts < 0) {
    char name[16] = "";
    prctl(PR_GET_NAME, name);
    t_counts = strncmp(name, "worker-", 7) == 0;
  }
  if (t_counts == 0) return false;
  const int process = getpid();
  if (g_process.exchange(process) != process) {
    const char* calls = getenv("LAB_KILL_CALLS");
    const char* seed = getenv("LAB_KILL_SEED");
    const uint64_t random =
        mixed(static_cast<uint64_t>(process) ^ (seed ? strtoull(seed, nullptr, 10) << 32 : 0));
    const double most = std::log2(calls ? atof(calls) : 1e5),
                 share = static_cast<double>(random >> 11) / (1ull << 53);
    g_after = random & 1;
    g_left = static_cast<int64_t>(std::exp2(most * share));
  }
  return true;
}

void die(const char* when, const char* call) {
  char line[64];
  const int bytes = snprintf(line, sizeof line, "%s %s\n", when, call);
  const char* file = getenv("LAB_KILL_LOG");
  const int fd = file ? open(file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : -1;
  if (fd >= 0) (void)!write(fd, line, static_cast<size_t>(bytes));
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

bool is_meant(const char* call) {
  const char* at = getenv("LAB_KILL_AT");
  if (!at || !*at) return true;
  const size_t length = strlen(call);
  for (const char* found = at; (found = strstr(found, call)); found += length)
    if ((found == at || found[-1] == ',') && (found[length] == ',' || !found[length])) return true;
  return false;
}

// A system call, from here to the end of its scope.
class Call {
 public:
  explicit Call(const char* name) : name_(counts() && is_meant(name) && --g_left == 0 ? name : nullptr) {
    if (name_ && !g_after) die("before", name_);
  }
  ~Call() {
    const int error = errno;
    if (name_) die("after", name_);
    errno = error;
  }

 private:
  const char* name_;
};

template <typename F>
F* real(const char* name) {
  return reinterpret_cast<F*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

#define WRAP(result, name, parameters, arguments)             \
  extern "C" result name parameters {                         \
    static auto* const next = real<result parameters>(#name); \
    const Call call(#name);                                   \
    return next arguments;                                    \
  }

WRAP(ssize_t, recv, (int fd, void* b, size_t n, int flags), (fd, b, n, flags))
WRAP(ssize_t, send, (int fd, const void* b, size_t n, int flags), (fd, b, n, flags))
WRAP(ssize_t, splice, (int in, off64_t* a, int out, off64_t* b, size_t n, unsigned flags),
     (in, a, out, b, n, flags))
WRAP(int, shutdown, (int fd, int how), (fd, how))
WRAP(int, close, (int fd), (fd))
WRAP(int, socket, (int a, int b, int c), (a, b, c))
WRAP(int, accept4, (int fd, sockaddr* a, socklen_t* n, int flags), (fd, a, n, flags))
WRAP(int, getsockopt, (int fd, int level, int name, void* value, socklen_t* n) noexcept,
     (fd, level, name, value, n))
WRAP(int, setsockopt, (int fd, int level, int name, const void* value, socklen_t n) noexcept,
     (fd, level, name, value, n))
WRAP(int, pipe2, (int* fds, int flags) noexcept, (fds, flags))
WRAP(int, bpf_map_update_elem, (int fd, const void* k, const void* v, unsigned long long flags),
     (fd, k, v, flags))
WRAP(int, bpf_map_delete_elem, (int fd, const void* k), (fd, k))
WRAP(int, bpf_prog_test_run_opts, (int fd, void* options), (fd, options))
WRAP(int, io_uring_submit_and_wait_timeout,
     (io_uring * ring, io_uring_cqe** cqe, unsigned n, __kernel_timespec* t, sigset_t* mask),
     (ring, cqe, n, t, mask))
