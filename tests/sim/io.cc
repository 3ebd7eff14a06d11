// SPDX-License-Identifier: Apache-2.0
#include "io/io.h"

#include <fmt/format.h>

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <vector>

#include "sim/io.h"
#include "sim/kernel.h"

extern "C" int __wrap_accept4(int, sockaddr*, socklen_t*, int);
extern "C" int __wrap_close(int);

namespace penstock::sim {
namespace {

class SimIo;

constexpr int kMain = -1;
struct Turns {
  std::mutex mutex;
  std::condition_variable changed;
  int turn = kMain;
  int opened = 0, parked = 0;
  bool dead = false;
  std::vector<SimIo*> ios;
  const std::function<void()>* each_step = nullptr;

  void pass(int to) {
    std::lock_guard lock(mutex);
    turn = to;
    changed.notify_all();
  }
  void wait_for(int who) {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return turn == who || dead; });
    if (turn == who) return;
    lock.unlock();
    vanish();
  }
  // As a thread of a process that is killed: nothing of it runs any more, no destructor, no handler.
  [[noreturn]] static void vanish() {
    syscall(SYS_exit, 0);
    __builtin_unreachable();
  }
};
Turns g_turns;
thread_local bool t_worker = false;

class SimIo : public io::Io {
 public:
  SimIo() {
    std::lock_guard lock(g_turns.mutex);
    index_ = g_turns.opened++;
    g_turns.ios.push_back(this);
    description_ = "simulated";
    t_worker = true;
  }
  ~SimIo() override;

  void accept(int fd, io::Token token) override { begin({token, What::accept, fd, POLLIN}); }
  void poll(int fd, uint32_t events, io::Token token) override { begin({token, What::once, fd, events}); }
  void poll_each(int fd, uint32_t events, io::Token token) override {
    begin({token, What::each, fd, events});
  }
  void connect(int fd, const Endpoint& to, io::Token token) override {
    begin({token, What::connect, fd, POLLOUT});
    Kernel& k = *g_kernel;
    if (int error = k.fault("connect", {ECONNREFUSED, ETIMEDOUT, EHOSTUNREACH, ENETUNREACH, EADDRNOTAVAIL,
                                        EPERM, EACCES, ENOBUFS, ECONNRESET}))
      operations_.back().error = error;
    else
      k.connect(k.file(fd)->socket, to);
  }
  void cancel(io::Token token) override {
    for (Operation& op : operations_)
      if (op.token == token) op.cancelled = true;
  }
  void run(uint64_t until_ns, const std::function<void(const io::Completion&)>& on_completion) override;

  bool due() {
    collect();
    return !ready_.empty() || until_ns_ <= g_kernel->now;
  }
  int index() const { return index_; }
  uint64_t until_ns() const { return until_ns_; }

 private:
  enum class What { accept, once, each, connect };
  struct Operation {
    io::Token token;
    What what;
    int fd;
    uint32_t events;
    bool fresh = true, cancelled = false, over = false;
    int error = 0;
    uint32_t seen = 0;  // of File::wakes
    uint32_t told = 0;
  };

  void park();
  void begin(const Operation& op);
  void collect();
  void look(Operation& op);
  void end(Operation& op, int result) {
    op.over = true;
    ready_.push_back({op.token, result, false});
    ending_.push_back({op.token, op.fd});
  }
  uint32_t wakes(int fd) const {
    const File* f = g_kernel->maybe_file(fd);
    return f ? f->wakes : ++ring_looks_;
  }

  int index_ = 0;
  bool begun_ = false;
  uint64_t until_ns_ = 0;
  std::vector<Operation> operations_;
  std::vector<io::Completion> ready_;
  std::vector<std::pair<io::Token, int>>
      ending_;  // told as over, not yet delivered: descriptors still in use
  mutable uint32_t ring_looks_ = 0;
};

// Until its first turn, in the first operation it begins.
void SimIo::park() {
  {
    std::lock_guard lock(g_turns.mutex);
    g_turns.parked++;
    g_turns.changed.notify_all();
  }
  g_turns.wait_for(index_);
}

void SimIo::begin(const Operation& op) {
  if (!std::exchange(begun_, true)) park();
  const auto same = [&](const auto& o) { return o.token == op.token; };
  if (std::any_of(operations_.begin(), operations_.end(), same) ||
      std::any_of(ending_.begin(), ending_.end(), [&](const auto& o) { return o.first == op.token; }))
    g_kernel->violated(fmt::format("operation {:#x} is begun while it is in flight", op.token));
  if (File* f = g_kernel->maybe_file(op.fd)) f->operations++;
  for (Operation& other : operations_)  // epoll's registration is looked at anew
    if (other.fd == op.fd && g_kernel->random.chance(1, 8)) other.fresh = true;
  operations_.push_back(op);
  const File* f = g_kernel->maybe_file(op.fd);
  if (f && f->kind == Kind::tcp && op.what != What::accept && op.what != What::connect)
    operations_.back().error = g_kernel->fault("poll", {ENOMEM});
}

void SimIo::look(Operation& op) {
  Kernel& k = *g_kernel;
  if (op.cancelled && (op.what == What::each || op.what == What::accept || k.random.chance(3, 4)))
    return end(op, -ECANCELED);
  if (op.error) return end(op, -op.error);
  const uint32_t now = wakes(op.fd);
  if (!op.fresh && op.seen == now) {
    if (op.cancelled) end(op, -ECANCELED);
    return;
  }
  op.seen = now;
  if (op.what == What::connect) {
    Socket* s = k.file(op.fd)->socket;
    if (s->state == TCP_SYN_SENT) {
      if (op.cancelled) end(op, -ECANCELED);
      return;
    }
    return end(op, -std::exchange(s->error, 0));
  }
  const bool fresh = std::exchange(op.fresh, false);
  uint32_t wanted = op.events | POLLERR | POLLHUP;
  if (k.weather.told_hangup && op.what == What::once) wanted |= POLLRDHUP;
  const uint32_t events = k.poll(op.fd) & wanted;
  if (op.what == What::accept) {
    for (uint32_t n = 0; n < 4 && (k.poll(op.fd) & wanted); n++) {
      const int fd = __wrap_accept4(op.fd, nullptr, nullptr, 0);
      if (fd < 0 && errno == EAGAIN) break;
      if (fd < 0) return end(op, -errno);
      ready_.push_back({op.token, fd, true});
    }
    op.fresh = !k.maybe_file(op.fd)->socket->accepted.empty();
  } else if (events && op.what == What::once) {
    end(op, static_cast<int>(events));
  } else if (events && (fresh || (events & ~op.told) || op.events == POLLIN || k.random.chance(1, 8))) {
    op.told = events;
    ready_.push_back({op.token, static_cast<int>(events), true});
  } else if (op.cancelled) {
    end(op, -ECANCELED);
  }
}

void SimIo::collect() {
  for (size_t i = 0; i < operations_.size(); i++) look(operations_[i]);
  std::erase_if(operations_, [](const Operation& op) { return op.over; });
}

// Whose turn is next: the world goes on until somebody has a reason to wake.
SimIo* choose() {
  Kernel& k = *g_kernel;
  for (uint32_t waited = 0;;) {
    std::vector<SimIo*> due;
    uint64_t until = UINT64_MAX;
    for (SimIo* io : g_turns.ios) {
      if (io->due()) due.push_back(io);
      until = std::min(until, io->until_ns());
    }
    const bool late = waited < 64 && k.weather.late_in && k.next_event_ns() < k.now + 1'000'000 &&
                      !k.random.chance(1, k.weather.late_in);
    if (!due.empty() && !late) return due[k.random.below(due.size())];
    if (k.random.chance(1, 512)) return g_turns.ios[k.random.below(g_turns.ios.size())];
    waited += !due.empty();
    if (due.empty() && until == UINT64_MAX && k.next_event_ns() == UINT64_MAX)
      k.violated("nothing will ever happen again");
    k.step(due.empty() ? until : k.next_event_ns());
    (*g_turns.each_step)();
  }
}

void SimIo::run(uint64_t until_ns, const std::function<void(const io::Completion&)>& on_completion) {
  until_ns_ = until_ns;
  (*g_turns.each_step)();
  SimIo* next = choose();
  if (next != this) {
    g_turns.pass(next->index_);
    g_turns.wait_for(index_);
  }
  Kernel& k = *g_kernel;
  collect();
  for (size_t left = k.random.between(1, 1 + ready_.size()); left > 0 && !ready_.empty(); left--) {
    size_t at = k.random.below(ready_.size());
    for (size_t i = 0; i < at; i++)
      if (ready_[i].token == ready_[at].token) at = i;  // of one operation in order
    const io::Completion c = ready_[at];
    ready_.erase(ready_.begin() + static_cast<long>(at));
    if (!c.more) {
      const auto over =
          std::find_if(ending_.begin(), ending_.end(), [&](const auto& e) { return e.first == c.token; });
      if (File* f = k.maybe_file(over->second)) f->operations--;
      ending_.erase(over);
    }
    if (k.tracing)
      k.trace(fmt::format("worker {}: op {} slot {} gen {}: {}{}", index_, c.token & 0xff,
                          c.token >> 8 & 0xffffff, c.token >> 32, c.result, c.more ? "" : " (over)"));
    on_completion(c);
  }
  until_ns_ = 0;
}

SimIo::~SimIo() {
  Kernel& k = *g_kernel;
  for (const Operation& op : operations_)
    if (File* f = k.maybe_file(op.fd)) f->operations--;
  for (const auto& [token, fd] : ending_)
    if (File* f = k.maybe_file(fd)) f->operations--;
  for (const io::Completion& c : ready_)  // accepted, and the process ends before it looks
    if ((c.token & 0xff) == 1 && c.result >= 0) __wrap_close(c.result);
  std::erase(g_turns.ios, this);
  g_turns.pass(g_turns.ios.empty() ? kMain : choose()->index_);
}

}  // namespace

void die() {
  g_kernel->trace("the process dies");
  {
    std::lock_guard lock(g_turns.mutex);
    g_turns.dead = true;
    g_turns.turn = kMain;
    g_turns.changed.notify_all();
  }
  Turns::vanish();
}

Call::Call(const char* name) {
  g_kernel->between(name);
  if (t_worker && g_kernel->is_time_to_die()) die();
}
Call::~Call() {
  if (t_worker && g_kernel->is_time_to_die()) die();
}

bool run_workers(int workers, const std::function<void()>& each_step) {
  g_turns.each_step = &each_step;
  {
    std::unique_lock lock(g_turns.mutex);
    g_turns.changed.wait(lock, [&] { return g_turns.parked == workers; });
    g_turns.turn = 0;
    g_turns.changed.notify_all();
    g_turns.changed.wait(lock, [&] { return g_turns.turn == kMain; });
    g_turns.opened = g_turns.parked = 0;
  }
  return !g_turns.dead;
}

void bury_workers() {
  g_turns.dead = false;
  g_turns.ios.clear();
  g_kernel->forget_operations();
}

}  // namespace penstock::sim

namespace penstock::io {

uint64_t now_ns() {
  return sim::g_kernel->now;
}

Result<std::unique_ptr<Io>> Io::open(unsigned) {
  return std::unique_ptr<Io>(std::make_unique<sim::SimIo>());
}

}  // namespace penstock::io
