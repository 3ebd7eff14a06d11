// SPDX-License-Identifier: Apache-2.0
#include "flow/worker.h"

#include <fmt/format.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/assert.h"
#include "base/log.h"

namespace penstock::flow {
namespace {

constexpr uint32_t kWatched = POLLRDHUP | POLLERR | POLLHUP;
constexpr uint32_t kRefusalLinesPerS = 10;

// io::Token: op in bits 0-7, slot or listener in 8-31, generation in 32-63.
io::Token make_token(Op op, uint32_t which, uint32_t generation) {
  return static_cast<uint64_t>(op) | static_cast<uint64_t>(which) << 8 |
         static_cast<uint64_t>(generation) << 32;
}

void copy_text(char* out, size_t size, std::string_view text) {
  size_t n = std::min(size - 1, text.size());
  memcpy(out, text.data(), n);
  out[n] = 0;
}

}  // namespace

uint64_t Shared::held_bytes() const {
  uint64_t held = read(statistics.totals->pipe_bytes);
  if (sockmap) held += read(sockmap->globals().held_bytes);
  return held;
}

std::shared_ptr<const Plan> Shared::plan() const {
  std::lock_guard lock(plan_mutex_);
  return plan_;
}

void Shared::set_plan(std::shared_ptr<const Plan> plan) {
  std::lock_guard lock(plan_mutex_);
  plan_.swap(plan);
}

Worker::Worker(Shared& shared, uint32_t index)
    : shared_(shared),
      index_(index),
      pipes_(&shared.statistics),
      peek_buffer_(tls::kPeekBytesMax),
      refusals_(kRefusalLinesPerS),
      inbox_event_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)),
      hand_(shared.hands ? shared.hands[index] : own_hand_) {}

Worker::Holding::Holding(Worker& w, const Flow& f, uint32_t event) : hand_(w.hand_) {
  hand_.take({f.slot, f.record->generation, static_cast<uint32_t>(f.record->phase.load()), event});
}

Worker::~Worker() {
  join();
  for (const Listening& l : listening_)
    if (l.socket.fd >= 0) close(l.socket.fd);
}

Status Worker::start() {
  std::atomic<int> ready{0};
  std::string error;
  thread_ = std::thread([&] {
    pthread_setname_np(pthread_self(), fmt::format("worker-{}", index_).c_str());
    if (shared_.prepare_thread) shared_.prepare_thread(index_);
    auto io = io::Io::open();
    if (!io) {
      error = io.error().message;
      ready.store(2);
      ready.notify_one();
      return;
    }
    io_ = std::move(*io);
    io_description_ = io_->description();
    io_refusal_ = io_->refusal();
    ready.store(1);
    ready.notify_one();
    run();
    io_.reset();
  });
  ready.wait(0);
  if (ready.load() == 1) return Nothing{};
  thread_.join();
  return Error{error};
}

void Worker::join() {
  if (thread_.joinable()) thread_.join();
}

void Worker::post(std::function<void(Worker&)> task) {
  {
    std::lock_guard lock(inbox_mutex_);
    inbox_.push_back(std::move(task));
  }
  wake();
}

void Worker::wake() {
  uint64_t one = 1;
  (void)!write(inbox_event_.get(), &one, sizeof one);
}

void Worker::stop(CloseReason reason) {
  post([reason](Worker& w) {
    w.stopping_ = true;
    w.for_each_flow([&](Flow& f) { w.begin_close(f, reason); });
  });
}

void Worker::kill(uint32_t slot, uint32_t generation, CloseReason reason) {
  post([=](Worker& w) {
    if (Flow* f = w.find(slot, generation)) w.begin_close(*f, reason);
  });
}

void Worker::for_each_flow(const std::function<void(Flow&)>& visit) {
  const uint32_t end = shared_.table->used();
  for (uint32_t slot = 0; slot < end; slot++) {
    const FlowRecord& r = (*shared_.table)[slot];
    if (owns(r) && r.phase != Phase::closing) visit(shared_.flows[slot]);
  }
}

bool Worker::order_lane_here(Flow& f, Direction d, Lane to) {
  return f.record->phase == Phase::open && follow_order(f, d, to);
}

FlowView Worker::view(Flow& f) {
  const FlowRecord& r = *f.record;
  FlowView v;
  v.cookie = r.cookie[kClient];
  v.thread = r.thread;
  v.listener = f.plan->listener(r.listener).name;
  if (r.upstream != UINT32_MAX) v.upstream = f.plan->upstream(r.upstream).name;
  v.client = r.client;
  v.destination = r.destination;
  v.proxy = r.proxy;
  v.server = r.server_endpoint;
  v.sni = r.sni();
  v.phase = r.phase;
  uint64_t last_ns = std::max(r.accepted_ns, r.opened_ns), now = io::now_ns();
  for (Direction d : {kUp, kDown}) {
    const DirectionRecord& dr = r.direction[d];
    DirectionView& out = v.direction[d];
    out.lane = dr.lane;
    out.lane_changes = dr.lane_changes;
    out.relayed_bytes = dr.relayed_out_bytes;
    last_ns = std::max(last_ns, f.direction[d].moved_ns);
    if (dr.pipe_in >= 0) out.held_bytes = dr.relayed_in_bytes - dr.relayed_out_bytes;
    if (!r.known) continue;
    const penstock_direction& k = shared_.sockmap->direction(socket_index(f, d));
    out.spliced_bytes = k.redirected;
    out.held_bytes += k.charged;
    last_ns = std::max<uint64_t>(last_ns, k.active_ns);
  }
  v.age_ms = (now - r.accepted_ns) / 1'000'000;
  v.idle_ms = now > last_ns ? (now - last_ns) / 1'000'000 : 0;
  return v;
}

const Plan* Worker::use_plan(const std::shared_ptr<const Plan>& plan) {
  auto used = std::find_if(plans_.begin(), plans_.end(), [&](const UsedPlan& u) { return u.plan == plan; });
  if (used == plans_.end()) used = plans_.insert(used, {plan});
  used->flows++;
  return plan.get();
}

void Worker::leave_plan(const Plan* plan) {
  const auto used =
      std::find_if(plans_.begin(), plans_.end(), [&](const UsedPlan& u) { return u.plan.get() == plan; });
  PENSTOCK_ASSERT(used != plans_.end());
  if (--used->flows == 0) plans_.erase(used);
}

// The phase first: of another thread's flow it shows that thread as well. What is ours stays ours as
// long as we look.
bool Worker::owns(const FlowRecord& r) const {
  return r.phase.load(std::memory_order_acquire) != Phase::free && r.thread == index_;
}

Flow* Worker::find(uint32_t slot, uint32_t generation) {
  if (slot >= shared_.table->size()) return nullptr;
  const FlowRecord& r = (*shared_.table)[slot];
  if (!owns(r) || r.phase == Phase::closing || r.generation != generation) return nullptr;
  return &shared_.flows[slot];
}

// ---- the loop ----

void Worker::run() {
  io_->poll_each(inbox_event_.get(), POLLIN, make_token(Op::inbox, 0, 0));
  if (shared_.sockmap)
    io_->poll_each(shared_.sockmap->event_fd(index_), POLLIN, make_token(Op::events, 0, 0));
  adopt_all();
  auto on_completion = [this](const io::Completion& c) { dispatch(c); };

  while (!over()) {
    bool busy = !run_queue_.empty() || !local_posts_.empty();
    uint64_t until = busy ? 0 : deadlines_.next_ns();
    if (shared_.evicting) until = std::min(until, io::now_ns() + kEvictionNs);
    for (const Listening& l : listening_)
      for (const uint64_t at_ns : {l.again_ns, l.sweep_ns})
        if (at_ns) until = std::min(until, at_ns);
    until = std::min(until, refusals_.due_ns());
    io_->run(until, on_completion);
    now_ns_ = io::now_ns();
    accept_again(now_ns_);
    sweep(now_ns_);
    if (now_ns_ >= refusals_.due_ns()) tell_left_out();
    while (auto id = deadlines_.pop_due(now_ns_)) on_deadline(*id);

    std::vector<std::function<void(Worker&)>> posts;
    posts.swap(local_posts_);
    for (auto& p : posts) p(*this);

    running_.clear();
    running_.swap(run_queue_);
    for (const Runnable& runnable : running_) {
      Flow* f =
          find(runnable.slot, runnable.generation);  // it may have ended, and its slot be another thread's
      if (!f) continue;
      const Holding holding(*this, *f, kPumping);
      f->queued = false;
      for (Direction d : {kUp, kDown})
        if (f->record->phase == Phase::open && lane(*f, d) == Lane::relay) pump(*f, d);
    }
    evict_if_over_limit();
    for (const Runnable& changed : publish_queue_)
      if (Flow* f = find(changed.slot, changed.generation)) {
        const Holding holding(*this, *f, kPublishing);
        publish_now(*f);
      }
    publish_queue_.clear();
  }
  if (refusals_.due_ns() != LineLimit::kNever) tell_left_out();
}

bool Worker::over() {
  if (!stopping_ || live_ > 0) return false;
  std::lock_guard lock(inbox_mutex_);
  return over_ = live_ == 0;
}

void Worker::dispatch(const io::Completion& c) {
  now_ns_ = io::now_ns();
  Op op = static_cast<Op>(c.token & 0xff);
  uint32_t which = static_cast<uint32_t>(c.token >> 8 & 0xffffff),
           generation = static_cast<uint32_t>(c.token >> 32);
  if (op == Op::accept) return on_accepted(which, c);
  if (op == Op::inbox) {
    eventfd_t n;
    eventfd_read(inbox_event_.get(), &n);
    std::vector<std::function<void(Worker&)>> tasks;
    {
      std::lock_guard lock(inbox_mutex_);
      tasks.swap(inbox_);
    }
    for (auto& t : tasks) t(*this);
    PENSTOCK_ASSERT(c.result >= 0);
    if (!c.more)
      io_->poll_each(inbox_event_.get(), POLLIN, c.token);  // also at the end: what is given then counts
    return;
  }
  if (op == Op::events) {
    shared_.sockmap->consume(index_, [this](const penstock_event& e) { on_kernel_event(e); });
    PENSTOCK_ASSERT(c.result >= 0);
    if (!c.more && !stopping_) io_->poll_each(shared_.sockmap->event_fd(index_), POLLIN, c.token);
    return;
  }

  FlowRecord& r = (*shared_.table)[which];
  if (!owns(r) || r.generation != generation) {
    count(shared_.statistics.totals->late_completions);
    return;
  }
  Flow& f = shared_.flows[which];
  const Holding holding(*this, f, static_cast<uint32_t>(op));
  if (!c.more) f.armed &= ~(1u << static_cast<uint32_t>(op));
  if (r.phase == Phase::closing) {
    if (f.armed == 0) release(f);
    return;
  }
  if (c.result < 0 && c.result != -ECANCELED && !(op >= Op::connect && op <= Op::connect_third)) {
    log::error("flow cookie={}: cannot wait for its sockets: {}", r.cookie[kClient], strerror(-c.result));
    return begin_close(f, CloseReason::internal_error);
  }
  switch (op) {
    case Op::watch_client:
    case Op::watch_upstream: {
      Side side = op == Op::watch_client ? kClient : kUpstream;
      bool failed = c.result > 0 && (c.result & POLLERR);  // nothing more is to be heard of it
      if (!c.more && c.result != -ECANCELED && !failed) {
        f.armed |= 1u << static_cast<uint32_t>(op);
        io_->poll_each(r.fd[side], kWatched, c.token);
      }
      if (c.result > 0) on_socket(f, side, static_cast<uint32_t>(c.result));
      break;
    }
    case Op::first_bytes:
      if (c.result > 0) on_first_bytes(f, static_cast<uint32_t>(c.result));
      break;
    case Op::connect:
    case Op::connect_second:
    case Op::connect_third:
      on_connected(f, static_cast<uint32_t>(op) - static_cast<uint32_t>(Op::connect), c.result);
      break;
    case Op::header_room:
      if (c.result > 0) begin_prime(f);
      break;
    case Op::read_client:
    case Op::read_upstream: {
      Direction d = op == Op::read_client ? kUp : kDown;
      if (c.result > 0 && lane(f, d) == Lane::relay) {
        f.direction[d].readable = true;
        pump(f, d);
      }
      break;
    }
    case Op::write_client:
    case Op::write_upstream: {
      Direction d = op == Op::write_client ? kDown : kUp;
      if (c.result <= 0) break;
      if (lane(f, d) == Lane::relay) {
        f.direction[d].has_room = true;
        pump(f, d);
      } else if (r.phase == Phase::open && lane(f, d) == Lane::held) {
        f.direction[d].patience_ns = 0;
        check_held(f, d);
      }
      break;
    }
    case Op::none:
    case Op::accept:
    case Op::inbox:
    case Op::events:
      PENSTOCK_ASSERT(false);
  }
}

void Worker::on_kernel_event(const penstock_event& e) {
  const FlowRecord& r = (*shared_.table)[e.direction / 2];
  if (!owns(r) || r.phase != Phase::open) return;
  Flow& f = shared_.flows[e.direction / 2];
  Direction d = static_cast<Direction>(e.direction & 1);
  if (shared_.sockmap->direction(e.direction).epoch != e.epoch)
    return;  // of a valve opened since, or the slot's last flow
  if (e.kind == PENSTOCK_EVENT_BROKEN) return begin_close(f, CloseReason::splice_broken);
  if (lane(f, d) == Lane::splice) leave_splice(f, d, LaneChange::backlog_high);
}

CloseReason reason_of(Side side, int error) {
  const bool vanished = error == ETIMEDOUT || error == EHOSTUNREACH || error == ENETUNREACH;
  if (side == kClient) return vanished ? CloseReason::client_timeout : CloseReason::client_reset;
  return vanished ? CloseReason::upstream_timeout : CloseReason::upstream_reset;
}

// FIN, RST and errors of either socket, in whatever phase.
void Worker::on_socket(Flow& f, Side side, uint32_t events) {
  FlowRecord& r = *f.record;
  if (r.phase == Phase::proxy_header) {
    if (events & (POLLRDHUP | POLLHUP)) r.direction[kUp].fin_received = 1;
    return on_proxy_header(f, events);
  }
  if (r.phase == Phase::open && is_shut(f)) return check_delivered(f);
  if (events & POLLERR) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(r.fd[side], SOL_SOCKET, SO_ERROR, &error, &size);
    return begin_close(f, reason_of(side, error));
  }
  if (!(events & (POLLRDHUP | POLLHUP))) return;
  Direction d = static_cast<Direction>(side), other = static_cast<Direction>(side ^ 1);
  // Closed on both ends without a FIN of ours: a RST whose error another system call has taken.
  SocketAccount account;
  if ((events & POLLHUP) && r.phase == Phase::open && lane(f, other) != Lane::shut &&
      read_received(r.fd[side], &account) && account.state == TCP_CLOSE)
    return begin_close(f, side == kClient ? CloseReason::client_reset : CloseReason::upstream_reset);
  if (r.direction[d].fin_received) return;
  r.direction[d].fin_received = 1;
  if (r.phase == Phase::open) check_drain(f, d);
}

void Worker::on_deadline(io::Deadlines::Id id) {
  Flow& f = shared_.flows[id / kDeadlinesPerFlow];
  FlowRecord& r = *f.record;
  const Holding holding(*this, f, kDeadline);
  uint32_t which = id % kDeadlinesPerFlow;
  if (which > 0) {
    Direction d = static_cast<Direction>(which - 1);
    if (r.phase != Phase::open) return;
    switch (lane(f, d)) {
      case Lane::held:
        return check_held(f, d);
      case Lane::relay:
        return on_quiet(f, d);
      case Lane::splice:
        if (shared_.sockmap->closed(socket_index(f, d))) return leave_splice(f, d, LaneChange::backlog_high);
        if (r.direction[d].fin_received) check_drain(f, d);
        return;
      case Lane::shut:
        if (is_shut(f)) check_delivered(f);
        return;
      case Lane::none:
        return;
    }
  }
  switch (r.phase.load()) {
    case Phase::proxy_header:
      return on_proxy_header(f, 0);
    case Phase::classifying:
      return on_hello(f, 0);
    case Phase::resolving:
      return on_resolve_deadline(f);
    case Phase::dialing:
      return on_dial_deadline(f);
    case Phase::priming:
      return begin_close(f, CloseReason::connect_timeout);
    case Phase::open:
      return check_idle(f);
    case Phase::free:
    case Phase::handing_off:
    case Phase::closing:
      return;
  }
}

// ---- what the steps share ----

void Worker::advance(Flow& f, Event event) {
  const Edge* e = edge(f.record->phase.load(std::memory_order_relaxed), event);
  PENSTOCK_ASSERT(e);
  f.record->phase.store(e->to, std::memory_order_release);
}

io::Token Worker::token(const Flow& f, Op op) const {
  return make_token(op, f.slot, f.record->generation);
}

void Worker::arm_poll(Flow& f, Op op, int fd, uint32_t events) {
  if (armed(f, op)) return;
  f.armed |= 1u << static_cast<uint32_t>(op);
  if (op == Op::watch_client || op == Op::watch_upstream)
    io_->poll_each(fd, kWatched, token(f, op));
  else
    io_->poll(fd, events, token(f, op));
}

void Worker::disarm(Flow& f, Op op) {
  if (armed(f, op)) io_->cancel(token(f, op));
}

void Worker::enqueue(Flow& f) {
  if (f.queued) return;
  f.queued = true;
  run_queue_.push_back({f.slot, f.record->generation});
}

void Worker::set_phase_deadline(Flow& f, uint64_t when_ns) {
  f.record->deadline_ns = when_ns;
  deadlines_.set(f.slot * kDeadlinesPerFlow, when_ns);
}

void Worker::set_lane_deadline(Flow& f, Direction d, uint64_t when_ns) {
  deadlines_.set(f.slot * kDeadlinesPerFlow + 1 + d, when_ns);
}

void Worker::clear_deadlines(Flow& f) {
  for (uint32_t i = 0; i < kDeadlinesPerFlow; i++) deadlines_.clear(f.slot * kDeadlinesPerFlow + i);
}

// The nearest one wins: the upstream's, the listener's, [timeouts].
uint64_t Worker::timeout_ns(const Flow& f,
                            std::optional<config::milliseconds> config::Timeouts::*which) const {
  std::optional<config::milliseconds> value;
  if (f.record->upstream != UINT32_MAX) value = f.plan->upstream(f.record->upstream).timeouts.*which;
  if (!value) value = f.plan->listener(f.record->listener).timeouts.*which;
  if (!value) value = f.plan->config().timeouts.*which;
  return static_cast<uint64_t>(std::chrono::nanoseconds(*value).count());
}

// Once a turn of the loop: an accepted flow has often begun to dial by then.
void Worker::show(Flow& f) {
  f.to_show = true;
  publish(f);
}

void Worker::show_now(Flow& f) {
  if (!std::exchange(f.to_show, false) || !shared_.sockmap) return;
  f.shown = true;
  const FlowRecord& r = *f.record;
  penstock_flow v{};
  v.phase = static_cast<penstock_phase>(r.phase.load());
  v.slot = f.slot;
  v.upstream_cookie = r.cookie[kUpstream];
  v.accepted_ns = r.accepted_ns;
  copy_text(v.client, sizeof v.client, r.client.text());
  if (r.server_endpoint.port) copy_text(v.server, sizeof v.server, r.server_endpoint.text());
  copy_text(v.listener, sizeof v.listener, f.plan->listener(r.listener).name);
  if (f.server) copy_text(v.upstream, sizeof v.upstream, f.server->upstream());
  copy_text(v.sni, sizeof v.sni, r.sni());
  shared_.sockmap->show(r.cookie[kClient], v);
}

// Once a turn of the loop, whatever changed how often in it.
void Worker::publish(Flow& f) {
  if (f.to_publish) return;
  f.to_publish = true;
  publish_queue_.push_back({f.slot, f.record->generation});
}

void Worker::publish_now(Flow& f) {
  f.to_publish = f.dirty = false;
  f.published_ns = now_ns_;
  if (!shared_.sockmap) return;
  if (f.to_show) return show_now(f);
  const FlowRecord& r = *f.record;
  penstock_publish p{};
  p.cookie = r.cookie[kClient];
  p.phase = static_cast<penstock_phase>(r.phase.load());
  for (Direction d : {kUp, kDown}) {
    p.lane[d] = static_cast<penstock_lane>(lane(f, d));
    p.lane_changes[d] = r.direction[d].lane_changes;
    p.relayed_bytes[d] = r.direction[d].relayed_out_bytes;
  }
  if (shared_.sockmap->publish(p) == ENOENT) {  // the worker that began the flow died before it showed it
    f.to_show = true;
    show_now(f);
  }
}

}  // namespace penstock::flow
