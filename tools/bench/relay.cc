// SPDX-License-Identifier: Apache-2.0
// penstock-bench-relay METHOD --listen ADDRESS:PORT --to ADDRESS:PORT: moves bytes in one of three ways, and
// does nothing else that a proxy does. A measuring instrument: what relay by splice(2), by IORING_OP_SPLICE
// and by recv()/send() cost by themselves. Errors end the flow; memory is one pipe or buffer a direction.
#include <fcntl.h>
#include <fmt/format.h>
#include <liburing.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <CLI/CLI.hpp>
#include <array>
#include <cerrno>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/assert.h"
#include "base/endpoint.h"
#include "base/fd.h"

namespace {

using namespace penstock;

constexpr size_t kPipeBytes = 1 << 20;
constexpr size_t kCopyBytes = 256 << 10;
constexpr unsigned kRingEntries = 4096;

void set_options(int fd) {
  int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

struct Pipe {
  Fd read, write;
  Pipe() {
    int ends[2];
    PENSTOCK_ASSERT(pipe2(ends, O_CLOEXEC) == 0);
    read = Fd(ends[0]);
    write = Fd(ends[1]);
    fcntl(ends[1], F_SETPIPE_SZ, kPipeBytes);
  }
};

// splice(2) and recv()/send(): an epoll a thread, edge-triggered, both sockets of a flow in it.
class Pump {  // one direction
 public:
  Pump(int from, int to, bool copies) : from_(from), to_(to) {
    if (copies)
      buffer_ = std::make_unique<std::array<char, kCopyBytes>>();
    else
      pipe_ = std::make_unique<Pipe>();
  }
  // Until neither end can go on. False: the flow is broken.
  bool run() {
    for (bool moved = true; moved && !shut_;) {
      moved = false;
      if (!ended_ && in_ - out_ < room()) {
        const ssize_t n = take();
        if (n < 0 && errno != EAGAIN) return false;
        if (n > 0) in_ += static_cast<uint64_t>(n);
        ended_ = n == 0;
        moved = n > 0;
      }
      if (in_ > out_) {
        const ssize_t n = give();
        if (n < 0 && errno != EAGAIN) return false;
        if (n > 0) out_ += static_cast<uint64_t>(n);
        moved |= n > 0;
      }
      if (ended_ && in_ == out_) {
        shutdown(to_, SHUT_WR);
        shut_ = true;
      }
    }
    return true;
  }
  bool shut() const { return shut_; }

 private:
  size_t room() const { return buffer_ ? 1 : kPipeBytes; }  // the buffer is filled when it is empty
  ssize_t take() {
    if (!buffer_)
      return splice(from_, nullptr, pipe_->write.get(), nullptr, kPipeBytes,
                    SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    in_ = out_ = 0;
    return recv(from_, buffer_->data(), kCopyBytes, 0);
  }
  ssize_t give() {
    if (!buffer_)
      return splice(pipe_->read.get(), nullptr, to_, nullptr, in_ - out_, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    return send(to_, buffer_->data() + out_, in_ - out_, MSG_NOSIGNAL);
  }

  int from_, to_;
  std::unique_ptr<Pipe> pipe_;
  std::unique_ptr<std::array<char, kCopyBytes>> buffer_;
  uint64_t in_ = 0, out_ = 0;
  bool ended_ = false, shut_ = false;
};

struct PumpedFlow {
  Fd client, server;
  Pump up, down;
  PumpedFlow(Fd c, Fd s, bool copies)
      : client(std::move(c)),
        server(std::move(s)),
        up(client.get(), server.get(), copies),
        down(server.get(), client.get(), copies) {}
};

void pump_flows(int epoll) {
  epoll_event ready[64];
  while (true) {
    const int n = epoll_wait(epoll, ready, 64, -1);
    std::vector<PumpedFlow*> over;
    for (int i = 0; i < n; ++i) {
      auto* flow = static_cast<PumpedFlow*>(ready[i].data.ptr);
      if (std::find(over.begin(), over.end(), flow) != over.end()) continue;
      const bool whole = flow->up.run() && flow->down.run();
      if (!whole || (flow->up.shut() && flow->down.shut())) over.push_back(flow);
    }
    for (PumpedFlow* flow : over) delete flow;
  }
}

// IORING_OP_SPLICE: what arrives is polled for, then spliced into the pipe by one of the kernel's threads,
// while another splices out of it. The splice in must not block: it would hold the pipe's lock, and what is
// in the pipe would stay.
struct RingFlow;

struct RingOp {
  RingFlow* flow;
  int direction;  // 0: from sockets[0] to sockets[1]
  bool out;
  bool outstanding = false;
};

struct RingFlow {
  Fd sockets[2];
  Pipe pipes[2];
  uint64_t in_pipe[2] = {};
  bool ended[2] = {}, shut[2] = {};
  bool broken = false;
  RingOp ops[2][2] = {{{this, 0, false}, {this, 0, true}}, {{this, 1, false}, {this, 1, true}}};
  bool outstanding() const {
    return ops[0][0].outstanding || ops[0][1].outstanding || ops[1][0].outstanding || ops[1][1].outstanding;
  }
};

void submit(io_uring* ring, RingOp& op) {
  if (io_uring_sq_space_left(ring) < 2) io_uring_submit(ring);
  RingFlow& flow = *op.flow;
  const Pipe& pipe = flow.pipes[op.direction];
  op.outstanding = true;
  if (!op.out) {
    io_uring_sqe* poll = io_uring_get_sqe(ring);
    io_uring_prep_poll_add(poll, flow.sockets[op.direction].get(), POLLIN | POLLRDHUP);
    io_uring_sqe_set_flags(poll, IOSQE_IO_LINK | IOSQE_CQE_SKIP_SUCCESS);
    io_uring_sqe_set_data(poll, nullptr);
  }
  io_uring_sqe* sqe = io_uring_get_sqe(ring);
  if (op.out)
    io_uring_prep_splice(sqe, pipe.read.get(), -1, flow.sockets[1 - op.direction].get(), -1,
                         static_cast<unsigned>(flow.in_pipe[op.direction]), SPLICE_F_MOVE);
  else
    io_uring_prep_splice(sqe, flow.sockets[op.direction].get(), -1, pipe.write.get(), -1, kPipeBytes,
                         SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
  io_uring_sqe_set_data(sqe, &op);
}

// What this direction can do next. The pipe may be full: then the splice in waits for one out.
void go_on(io_uring* ring, RingFlow& flow, int direction, bool may_take) {
  auto& [in, out] = flow.ops[direction];
  if (flow.in_pipe[direction] > 0 && !out.outstanding) submit(ring, out);
  if (!flow.ended[direction] && !in.outstanding && may_take) submit(ring, in);
  if (flow.ended[direction] && flow.in_pipe[direction] == 0 && !flow.shut[direction]) {
    shutdown(flow.sockets[1 - direction].get(), SHUT_WR);
    flow.shut[direction] = true;
  }
}

void on_spliced(io_uring* ring, RingOp& op, int result) {
  RingFlow& flow = *op.flow;
  op.outstanding = false;
  const bool again = result == -EAGAIN || result == -EINTR || result == -ECANCELED;
  if ((result < 0 && !again) || (op.out && result == 0)) {
    flow.broken = true;
    for (const Fd& socket : flow.sockets) shutdown(socket.get(), SHUT_RDWR);
  } else if (result > 0) {
    flow.in_pipe[op.direction] += static_cast<uint64_t>(op.out ? -result : result);
  } else if (result == 0) {
    flow.ended[op.direction] = true;
  }
  if (!flow.broken) go_on(ring, flow, op.direction, op.out || !again || flow.in_pipe[op.direction] == 0);
  if (!flow.outstanding()) delete &flow;
}

class RingThread {
 public:
  RingThread() : added_(eventfd(0, EFD_CLOEXEC)) {}
  void add(Fd client, Fd server) {
    auto* flow = new RingFlow;
    for (const Fd* socket : {&client, &server})  // the splices out block
      fcntl(socket->get(), F_SETFL, fcntl(socket->get(), F_GETFL) & ~O_NONBLOCK);
    flow->sockets[0] = std::move(client);
    flow->sockets[1] = std::move(server);
    const std::lock_guard lock(mutex_);
    new_.push_back(flow);
    eventfd_write(added_.get(), 1);
  }
  void run() {
    io_uring ring{};
    PENSTOCK_ASSERT(io_uring_queue_init(kRingEntries, &ring, 0) == 0);
    await_new(&ring);
    while (true) {
      io_uring_submit_and_wait(&ring, 1);
      io_uring_cqe* cqe = nullptr;
      while (io_uring_peek_cqe(&ring, &cqe) == 0) {
        auto* op = static_cast<RingOp*>(io_uring_cqe_get_data(cqe));
        const int result = cqe->res;
        io_uring_cqe_seen(&ring, cqe);
        if (op)
          on_spliced(&ring, *op, result);
        else if (result >
                 0)  // of the eventfd: a flow's poll is silent unless it fails, and then its splice says so
          begin_new(&ring);
      }
    }
  }

 private:
  void await_new(io_uring* ring) {
    io_uring_sqe* sqe = io_uring_get_sqe(ring);
    io_uring_prep_poll_add(sqe, added_.get(), POLLIN);
    io_uring_sqe_set_data(sqe, nullptr);
  }
  void begin_new(io_uring* ring) {
    eventfd_t count = 0;
    eventfd_read(added_.get(), &count);
    const std::lock_guard lock(mutex_);
    for (RingFlow* flow : new_)
      for (int direction : {0, 1}) go_on(ring, *flow, direction, true);
    new_.clear();
    await_new(ring);
  }

  Fd added_;
  std::mutex mutex_;
  std::vector<RingFlow*> new_;
};

Endpoint parse(const std::string& text) {
  const size_t colon = text.rfind(':');
  const auto address = IpAddress::parse(text.substr(0, colon));
  if (!address || colon == std::string::npos) throw CLI::ValidationError(text, "not ADDRESS:PORT");
  return {.address = *address, .port = static_cast<uint16_t>(std::atoi(text.c_str() + colon + 1))};
}

int bound(const Endpoint& at) {
  sockaddr_storage address{};
  const socklen_t length = at.to_sockaddr(&address);
  const int fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  int one = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  PENSTOCK_ASSERT(bind(fd, reinterpret_cast<sockaddr*>(&address), length) == 0 && listen(fd, 4096) == 0);
  return fd;
}

// Flows go to the threads in turn.
void accept_flows(int listener, const Endpoint& to, const std::function<void(size_t, Fd, Fd)>& give) {
  sockaddr_storage address{};
  const socklen_t length = to.to_sockaddr(&address);
  for (size_t number = 0;; ++number) {
    Fd client(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
    Fd server(socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!client.valid() || connect(server.get(), reinterpret_cast<sockaddr*>(&address), length) < 0) continue;
    set_options(client.get());
    set_options(server.get());
    give(number, std::move(client), std::move(server));
  }
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"A relay that moves bytes in one way, for tools/bench"};
  std::string method, listen_text, to_text;
  size_t threads = 2;
  app.add_option("method", method)->required()->check(CLI::IsMember({"splice", "ring-splice", "copy"}));
  app.add_option("--listen", listen_text)->required();
  app.add_option("--to", to_text)->required();
  app.add_option("--threads", threads)->check(CLI::Range(1, 1024));
  CLI11_PARSE(app, argc, argv);
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  signal(SIGPIPE, SIG_IGN);  // splice() has no MSG_NOSIGNAL

  const Endpoint to = parse(to_text);
  const int listener = bound(parse(listen_text));
  fmt::print("ready\n");
  std::fflush(stdout);
  std::vector<std::jthread> running;
  if (method == "ring-splice") {
    std::vector<std::unique_ptr<RingThread>> rings;
    for (size_t i = 0; i < threads; ++i) {
      rings.push_back(std::make_unique<RingThread>());
      running.emplace_back([ring = rings.back().get()] { ring->run(); });
    }
    accept_flows(listener, to, [&](size_t number, Fd client, Fd server) {
      rings[number % threads]->add(std::move(client), std::move(server));
    });
  }
  std::vector<int> epolls;
  for (size_t i = 0; i < threads; ++i) {
    epolls.push_back(epoll_create1(EPOLL_CLOEXEC));
    running.emplace_back([epoll = epolls.back()] { pump_flows(epoll); });
  }
  accept_flows(listener, to, [&](size_t number, Fd client, Fd server) {
    const int epoll = epolls[number % threads], fds[] = {client.get(), server.get()};
    auto* flow = new PumpedFlow(std::move(client), std::move(server), method == "copy");
    for (const int fd : fds) {
      epoll_event event{.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data = {.ptr = flow}};
      epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    }
  });
}
