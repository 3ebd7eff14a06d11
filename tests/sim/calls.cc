// SPDX-License-Identifier: Apache-2.0
// The system calls of userspace/flow (and of sockmap.cc), by the linker's --wrap: a simulated descriptor goes
// to the simulated kernel, any other to the real one. Which error a call may give stands at the call: what
// Linux cannot say there is not injected.
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/sock_diag.h>
#include <linux/sockios.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstring>
#include <utility>

#include "sim/kernel.h"
#include "sim/tcp_info.h"

using namespace penstock::sim;  // NOLINT: what follows has C names
using penstock::Endpoint;

namespace {

bool simulated(int fd) {
  return g_kernel && fd >= kFirstFd;
}

template <typename T = int>
T failed(int error) {
  errno = error;
  return -1;
}

// As sock_error(): once.
int take_error(Socket* s) {
  return std::exchange(s->error, 0);
}

Socket* socket_of(int fd) {
  return g_kernel->file(fd)->socket;
}

uint32_t shortened(uint32_t n) {
  Kernel& k = *g_kernel;
  if (n > 1 && k.weather.short_in && k.random.chance(1, k.weather.short_in))
    return static_cast<uint32_t>(k.random.between(1, n - 1));
  return n;
}

// How many bytes a reader gets in one go: not beyond the urgent one.
uint32_t in_reach(const Socket* s) {
  if (!s->urgent) return s->readable();
  return std::min(s->readable(), s->urgent_seq - s->copied_seq);
}

// tcp_recvmsg() and tcp_splice_read() with nothing to give.
ssize_t nothing_to_read(Socket* s) {
  if (s->done) return 0;
  if (s->error) return failed<ssize_t>(take_error(s));
  if (s->shut & kReceiveShut) return 0;
  if (s->state == TCP_CLOSE || s->state == TCP_SYN_SENT) return failed<ssize_t>(ENOTCONN);
  return failed<ssize_t>(EAGAIN);
}

// tcp_sendmsg() before the first byte. 0 or an errno.
int cannot_send(Socket* s) {
  if (s->error) return take_error(s);
  if (s->shut & kSendShut) return EPIPE;
  if (s->state != TCP_ESTABLISHED && s->state != TCP_CLOSE_WAIT) return EPIPE;
  return 0;
}

int put(const Endpoint& e, sockaddr* a, socklen_t* size) {
  sockaddr_storage all{};
  const socklen_t n = e.to_sockaddr(&all);
  memcpy(a, &all, std::min(*size, n));
  *size = n;
  return 0;
}

template <typename T>
int give(const T& value, void* out, socklen_t* size) {
  const auto n = std::min<socklen_t>(*size, sizeof value);
  memcpy(out, &value, n);
  *size = n;
  return 0;
}

int get_error(Socket* s, void* value, socklen_t* size) {
  return give(take_error(s), value, size);
}

// splice(2) from a socket into a pipe: a segment takes a slot, however small.
ssize_t splice_in(Socket* s, PipeBuffer& pipe, size_t length) {
  Kernel& k = *g_kernel;
  if (pipe.full()) return failed<ssize_t>(EAGAIN);
  uint32_t most = in_reach(s);
  if (most == 0) {
    if (s->urgent && s->readable() > 0) return failed<ssize_t>(EAGAIN);
    return nothing_to_read(s);
  }
  most = shortened(static_cast<uint32_t>(std::min<size_t>(most, length)));
  if (int error = k.fault("splice(in)", {ENOMEM, EINTR, kShort})) {
    if (error != kShort) return failed<ssize_t>(error);
    most = 1;
  }
  ssize_t n = 0;
  while (most > 0 && !pipe.full() && !s->queue.empty()) {
    const Segment& first = s->queue.front();
    const uint32_t left = first.bytes.size() - (s->copied_seq - first.seq);
    Bytes part = k.read(s, std::min({left, most, pipe.capacity - pipe.size}));
    if (part.size() == 0) break;
    most -= part.size();
    n += part.size();
    pipe.size += part.size();
    pipe.slots.push_back(std::move(part));
  }
  return n > 0 ? n : failed<ssize_t>(EAGAIN);
}

ssize_t splice_out(PipeBuffer& pipe, Socket* s, size_t length) {
  Kernel& k = *g_kernel;
  if (pipe.size == 0) return failed<ssize_t>(EAGAIN);
  if (int error = cannot_send(s)) return failed<ssize_t>(error);
  if (int error = k.fault("splice(out)", {EAGAIN, EINTR, kShort})) {
    if (error != kShort) return failed<ssize_t>(error);
    length = 1;
  }
  ssize_t n = 0;
  while (length > 0 && pipe.size > 0 && s->room() > 0) {
    Bytes& first = pipe.slots.front();
    const uint32_t offered = shortened(static_cast<uint32_t>(std::min<size_t>(first.size(), length)));
    const uint32_t taken = k.write(s, first.slice(0, offered));
    pipe.size -= taken;
    length -= taken;
    n += taken;
    if (taken == first.size())
      pipe.slots.pop_front();
    else {
      first = first.slice(taken, first.size());
      break;
    }
  }
  return n > 0 ? n : failed<ssize_t>(EAGAIN);
}

}  // namespace

extern "C" {

#define REAL(result, name, ...) result __real_##name(__VA_ARGS__)

REAL(ssize_t, recv, int, void*, size_t, int);
ssize_t __wrap_recv(int fd, void* buffer, size_t size, int flags) {
  if (!simulated(fd)) return __real_recv(fd, buffer, size, flags);
  Kernel& k = *g_kernel;
  const Call call("recv");
  Socket* s = socket_of(fd);
  if (s->urgent && s->urgent_seq == s->copied_seq && !(flags & MSG_PEEK)) {
    k.read(s, 1);
    s->urgent = false;
  }
  const auto n = static_cast<uint32_t>(std::min<size_t>(size, in_reach(s)));
  if (n == 0) return nothing_to_read(s);
  if (!(flags & MSG_PEEK)) {
    if (!(flags & MSG_TRUNC)) k.violated("recv() copies bytes");
    k.read(s, n);
    return n;
  }
  if (!(flags & MSG_TRUNC)) {
    Bytes all;
    for (const Segment& segment : s->queue) {
      if (all.size() >= n) break;
      all.append(segment.bytes.slice(s->copied_seq + all.size() - segment.seq, segment.bytes.size()));
    }
    const std::string text = all.text(n);
    memcpy(buffer, text.data(), n);
  }
  return n;
}

REAL(ssize_t, send, int, const void*, size_t, int);
ssize_t __wrap_send(int fd, const void* buffer, size_t size, int flags) {
  if (!simulated(fd)) return __real_send(fd, buffer, size, flags);
  Kernel& k = *g_kernel;
  const Call call("send");
  Socket* s = socket_of(fd);
  if (size == 0) {  // asks the programs to close the valve
    if (s->state != TCP_ESTABLISHED && s->state != TCP_CLOSE_WAIT) return failed<ssize_t>(cannot_send(s));
    sim_socket_ops(s, 1);
    if (int error = cannot_send(s)) return failed<ssize_t>(error);
    return 0;
  }
  if (int error = cannot_send(s)) return failed<ssize_t>(error);
  if (int error = k.fault("send", {EAGAIN, ECONNRESET, EPIPE, kShort})) {
    if (error != kShort) return failed<ssize_t>(error);
    size = 1;
  }
  Stream& stream = k.streams.emplace_back();
  stream.name = "what penstock says itself";
  stream.first.assign(static_cast<const char*>(buffer), size);
  const uint32_t n = k.write(s, Bytes(&stream, 0, shortened(static_cast<uint32_t>(size))));
  return n ? n : failed<ssize_t>(EAGAIN);
}

REAL(ssize_t, splice, int, off64_t*, int, off64_t*, size_t, unsigned);
ssize_t __wrap_splice(int in, off64_t* in_at, int out, off64_t* out_at, size_t length, unsigned flags) {
  if (!simulated(in)) return __real_splice(in, in_at, out, out_at, length, flags);
  Kernel& k = *g_kernel;
  const Call call("splice");
  File *from = k.file(in), *to = k.file(out);
  if (length == 0) return 0;
  const ssize_t n = from->kind == Kind::tcp ? splice_in(from->socket, *to->pipe, length)
                                            : splice_out(*from->pipe, to->socket, length);
  if (k.tracing) {
    const int error = errno;
    k.trace(
        fmt::format("  {} -> {}: {} ({})", in - kFirstFd, out - kFirstFd, n, n < 0 ? strerror(error) : ""));
    errno = error;
  }
  return n;
}

REAL(int, getsockopt, int, int, int, void*, socklen_t*);
int __wrap_getsockopt(int fd, int level, int name, void* value, socklen_t* size) {
  if (!simulated(fd)) return __real_getsockopt(fd, level, name, value, size);
  const Call call("getsockopt");
  if (name == SO_COOKIE && !g_kernel->maybe_file(fd)) return failed(EBADF);  // of a record: is it there?
  Socket* s = socket_of(fd);
  if (level == IPPROTO_TCP && name == TCP_INFO)
    return fill_tcp_info(s->state, s->received, s->acked, s->in_flight(), value, size);
  switch (name) {
    case SO_ERROR:
      return get_error(s, value, size);
    case SO_COOKIE:
      return give(s->cookie, value, size);
    case SO_MEMINFO: {
      uint32_t memory[SK_MEMINFO_VARS] = {};
      memory[SK_MEMINFO_RMEM_ALLOC] = static_cast<uint32_t>(s->memory());
      return give(memory, value, size);
    }
    case SO_PEERNAME: {
      sockaddr_storage a{};
      const socklen_t n = s->remote.to_sockaddr(&a);
      if (n < *size) return failed(EINVAL);
      *size = n;
      memcpy(value, &a, n);
      return 0;
    }
    default:
      g_kernel->violated(fmt::format("getsockopt {} is not simulated", name));
  }
}

REAL(int, setsockopt, int, int, int, const void*, socklen_t);
int __wrap_setsockopt(int fd, int level, int name, const void* value, socklen_t size) {
  if (!simulated(fd)) return __real_setsockopt(fd, level, name, value, size);
  Kernel& k = *g_kernel;
  const Call call("setsockopt");
  Socket* s = socket_of(fd);
  if (level != SOL_SOCKET) return 0;
  if (name == SO_RCVLOWAT) {
    s->low_water = std::min(static_cast<uint32_t>(*static_cast<const int*>(value)), s->receive_buffer / 2);
    k.kick(s);
    k.changed(s);
  } else if (name == SO_ATTACH_BPF) {
    if (int error = k.fault("setsockopt(SO_ATTACH_BPF)", {ENOMEM})) return failed(error);
    s->trim = true;
  } else if (name == SO_LINGER) {
    k.file(fd)->counter = static_cast<const linger*>(value)->l_onoff;
  } else if (name == SO_ATTACH_FILTER || name == SO_DETACH_FILTER) {
    s->trim = false;
  }
  return 0;
}

REAL(int, shutdown, int, int);
int __wrap_shutdown(int fd, int how) {
  if (!simulated(fd)) return __real_shutdown(fd, how);
  Kernel& k = *g_kernel;
  const Call call("shutdown");
  Socket* s = socket_of(fd);
  if (s->state == TCP_LISTEN) {
    s->shut |= kReceiveShut;
    for (Socket* waiting : s->accepted) k.reset(waiting);
    s->accepted.clear();
    k.changed(s);
    return 0;
  }
  if (s->state == TCP_CLOSE) {
    s->shut |= kSendShut;
    return failed(ENOTCONN);
  }
  k.shutdown_write(s);
  return 0;
}

REAL(int, close, int);
int __wrap_close(int fd) {
  if (!simulated(fd)) {
    if (g_kernel && fd >= kFirstFd - 1000) return 0;  // an event ring
    return __real_close(fd);
  }
  Kernel& k = *g_kernel;
  const Call call("close");
  File f = *k.file(fd);
  if (k.tracing && f.socket)
    k.trace(fmt::format("  close {} with {} to read{}", fd - kFirstFd, f.socket->readable(),
                        f.counter ? ", RST" : ""));
  k.close(fd);
  if (f.kind == Kind::tcp && f.socket) k.close_socket(f.socket, f.counter != 0);
  return 0;
}

REAL(int, accept4, int, sockaddr*, socklen_t*, int);
int __wrap_accept4(int fd, sockaddr* a, socklen_t* size, int flags) {
  if (!simulated(fd)) return __real_accept4(fd, a, size, flags);
  Kernel& k = *g_kernel;
  const Call call("accept4");
  Socket* listener = socket_of(fd);
  if (listener->state != TCP_LISTEN || (listener->shut & kReceiveShut)) return failed(EINVAL);
  if (listener->accepted.empty()) return failed(EAGAIN);
  if (int error = k.fault("accept4", {EMFILE, ENFILE, ENOMEM, ENOBUFS, EPERM})) return failed(error);
  const int accepted = k.open(Kind::tcp);
  if (accepted < 0) return failed(EMFILE);
  Socket* s = k.maybe_file(fd)->socket->accepted.front();
  k.maybe_file(fd)->socket->accepted.pop_front();
  s->fd = accepted;
  k.file(accepted)->socket = s;
  return accepted;
}

REAL(int, socket, int, int, int);
int __wrap_socket(int family, int type, int protocol) {
  if (!g_kernel) return __real_socket(family, type, protocol);
  Kernel& k = *g_kernel;
  const Call call("socket");
  const bool tcp = (type & 0xf) == SOCK_STREAM;
  if (tcp)
    if (int error = k.fault("socket", {EMFILE, ENFILE, ENOBUFS, ENOMEM})) return failed(error);
  const int fd = k.open(tcp ? Kind::tcp : Kind::udp);
  if (fd < 0) return failed(EMFILE);
  if (tcp) {
    Socket* s = k.make_socket(true);
    s->fd = fd;
    k.file(fd)->socket = s;
  }
  return fd;
}

REAL(int, bind, int, const sockaddr*, socklen_t);
int __wrap_bind(int fd, const sockaddr* a, socklen_t size) {
  if (!simulated(fd)) return __real_bind(fd, a, size);
  const Call call("bind");
  if (int error = g_kernel->fault("bind", {EADDRNOTAVAIL, EADDRINUSE})) return failed(error);
  return 0;
}

// Of a datagram socket: base/source_address.cc asks which address we would have.
REAL(int, connect, int, const sockaddr*, socklen_t);
int __wrap_connect(int fd, const sockaddr* a, socklen_t size) {
  if (!simulated(fd)) return __real_connect(fd, a, size);
  const Call call("connect");
  return g_kernel->random.chance(1, 2) ? failed(EADDRNOTAVAIL) : 0;
}

REAL(int, getpeername, int, sockaddr*, socklen_t*);
int __wrap_getpeername(int fd, sockaddr* a, socklen_t* size) {
  if (!simulated(fd)) return __real_getpeername(fd, a, size);
  const Call call("getpeername");
  Socket* s = socket_of(fd);
  if (s->state == TCP_CLOSE) return failed(ENOTCONN);
  return put(s->remote, a, size);
}

REAL(int, getsockname, int, sockaddr*, socklen_t*);
int __wrap_getsockname(int fd, sockaddr* a, socklen_t* size) {
  if (!simulated(fd)) return __real_getsockname(fd, a, size);
  const Call call("getsockname");
  return put(socket_of(fd)->local, a, size);
}

REAL(int, ioctl, int, unsigned long, ...);
int __wrap_ioctl(int fd, unsigned long request, ...) {
  va_list arguments;
  va_start(arguments, request);
  int* out = va_arg(arguments, int*);
  va_end(arguments);
  if (!simulated(fd)) return __real_ioctl(fd, request, out);
  const Call call("ioctl");
  if (const auto& pipe = g_kernel->file(fd)->pipe; pipe && request == FIONREAD) {
    *out = static_cast<int>(pipe->size);
    return 0;
  }
  const Socket* s = socket_of(fd);
  if (request == SIOCOUTQ)
    *out = s->state == TCP_SYN_SENT ? 0 : static_cast<int>(s->queued());
  else if (request == SIOCATMARK)
    *out = s->urgent && s->urgent_seq == s->copied_seq;
  else if (request == SIOCINQ)  // tcp_inq()
    *out = static_cast<int>((s->urgent ? s->urgent_seq : s->next_seq) - s->copied_seq);
  else
    g_kernel->violated("an ioctl is not simulated");
  return 0;
}

REAL(int, pipe2, int[2], int);
int __wrap_pipe2(int fds[2], int flags) {
  if (!g_kernel) return __real_pipe2(fds, flags);
  Kernel& k = *g_kernel;
  const Call call("pipe2");
  if (int error = k.fault("pipe2", {EMFILE, ENFILE})) return failed(error);
  fds[0] = k.open(Kind::pipe_out);
  if (fds[0] < 0) return failed(EMFILE);
  fds[1] = k.open(Kind::pipe_in);
  if (fds[1] < 0) {
    k.close(fds[0]);
    return failed(EMFILE);
  }
  auto pipe = std::make_shared<PipeBuffer>();
  if (k.random.chance(1, 16)) pipe->capacity = 8 << 10;  // the user has used up his pages
  k.file(fds[0])->pipe = k.file(fds[1])->pipe = pipe;
  return 0;
}

REAL(int, fstat, int, struct stat*);
int __wrap_fstat(int fd, struct stat* out) {
  if (!simulated(fd)) return __real_fstat(fd, out);
  const Call call("fstat");
  const auto& pipe = g_kernel->file(fd)->pipe;
  *out = {};
  out->st_mode = pipe ? S_IFIFO : S_IFSOCK;
  out->st_ino = pipe ? reinterpret_cast<ino_t>(pipe.get()) : static_cast<ino_t>(fd);
  return 0;
}

REAL(int, fcntl, int, int, ...);
int __wrap_fcntl(int fd, int command, ...) {
  va_list arguments;
  va_start(arguments, command);
  const long value = va_arg(arguments, long);
  va_end(arguments);
  if (!simulated(fd)) return __real_fcntl(fd, command, value);
  Kernel& k = *g_kernel;
  const Call call("fcntl");
  PipeBuffer& pipe = *k.file(fd)->pipe;
  if (command == F_SETPIPE_SZ) {
    if (int error = k.fault("fcntl(F_SETPIPE_SZ)", {EPERM, ENOMEM, EBUSY})) return failed(error);
    if (static_cast<uint32_t>(value) < pipe.size) return failed(EBUSY);
    pipe.capacity = static_cast<uint32_t>(value);
  }
  return static_cast<int>(pipe.capacity);
}

REAL(int, eventfd, unsigned, int);
int __wrap_eventfd(unsigned value, int flags) {
  if (!g_kernel) return __real_eventfd(value, flags);
  return g_kernel->open(Kind::event);
}

REAL(int, eventfd_read, int, eventfd_t*);
int __wrap_eventfd_read(int fd, eventfd_t* value) {
  if (!simulated(fd)) return __real_eventfd_read(fd, value);
  const Call call("eventfd_read");
  *value = std::exchange(g_kernel->file(fd)->counter, 0);
  return *value ? 0 : failed(EAGAIN);
}

REAL(ssize_t, write, int, const void*, size_t);
ssize_t __wrap_write(int fd, const void* bytes, size_t size) {
  if (!simulated(fd)) return __real_write(fd, bytes, size);
  g_kernel->file(fd)->counter++;
  g_kernel->wake(fd);
  return static_cast<ssize_t>(size);
}

REAL(ssize_t, getrandom, void*, size_t, unsigned);
ssize_t __wrap_getrandom(void* out, size_t size, unsigned flags) {
  if (!g_kernel) return __real_getrandom(out, size, flags);
  auto* bytes = static_cast<uint8_t*>(out);
  for (size_t i = 0; i < size; i++) bytes[i] = static_cast<uint8_t>(g_kernel->random.next());
  return static_cast<ssize_t>(size);
}

// std::this_thread::get_id(): what a resolver or an operator does is done on a thread of theirs.
REAL(pthread_t, pthread_self, void);
pthread_t __wrap_pthread_self() {
  return g_kernel && g_kernel->foreign ? 1 : __real_pthread_self();
}
}
