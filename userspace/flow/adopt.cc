// SPDX-License-Identifier: Apache-2.0
// flow/adopt.cc: goes on with the flows of a worker process that died, at any instruction. What the record
// says was written before the step it describes; whether the step was taken the kernel says:
//   a header discarded      received - unread
//   a header sent           written(upstream)
//   relayed                 out: written(target) - header - spliced; what is in the pipe: FIONREAD
//   a valve opened          who is in `sources`
//   a FIN passed on         shutdown(2) may be said twice
//   an end counted          the program that counts it remembers for which generation
// A search for a server begins again: nothing was sent yet. A RST whose error the dead worker was told is
// found by the account, as always (drain.cc, on_socket()). Timers go on where the record says, but nobody is
// blamed for the time that no worker ran.
#include "flow/adopt.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/sockios.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <unordered_set>
#include <utility>

#include "base/assert.h"
#include "base/log.h"
#include "flow/dial.h"
#include "flow/first_bytes.h"
#include "flow/socket_names.h"

namespace penstock::flow {
namespace {

constexpr uint32_t kCrashesMax = 2;         // then a flow is closed
constexpr uint32_t kAbandonedAt = 4;        // then it is not even closed, but for its descriptors
constexpr uint64_t kGraceNs = 250'000'000;  // for what should have happened while no worker ran

uint64_t in_pipe(const DirectionRecord& dr) {
  int bytes = 0;
  return dr.pipe_out >= 0 && ioctl(dr.pipe_out, FIONREAD, &bytes) == 0 ? static_cast<uint64_t>(bytes) : 0;
}

bool is_one_pipe(int in, int out) {
  struct stat a {
  }, b{};
  return fstat(in, &a) == 0 && fstat(out, &b) == 0 && S_ISFIFO(a.st_mode) && S_ISFIFO(b.st_mode) &&
         a.st_ino == b.st_ino;
}

// Which descriptors the records speak of: each belongs to one of them, and what another says of it was torn.
class Claims {
 public:
  bool take(int fd) {
    if (fd < 0) return false;
    if (static_cast<size_t>(fd) >= taken_.size()) taken_.resize(static_cast<size_t>(fd) + 1);
    return !std::exchange(taken_[static_cast<size_t>(fd)], true);
  }

 private:
  std::vector<char> taken_;
};

// Without a look at anything but its sockets.
void abandon(FlowRecord& r) {
  for (Side s : {kClient, kUpstream}) {
    if (r.fd[s] < 0 || cookie_of(r.fd[s]) != r.cookie[s]) continue;
    linger rst{1, 0};
    setsockopt(r.fd[s], SOL_SOCKET, SO_LINGER, &rst, sizeof rst);
    close(r.fd[s]);
  }
  r.phase = Phase::free;
}

// The client was let in before: its flow counts, whatever the limits say now.
config::Limits unlimited(config::Limits limits) {
  limits.max_flows.reset();
  limits.new_flows_per_client.reset();
  if (limits.max_flows_per_client) limits.max_flows_per_client = UINT32_MAX;
  return limits;
}

}  // namespace

void describe(FlowTable& table, const InHand::Flow& flow, char* out, size_t bytes) {
  constexpr const char* kWhat[] = {"-",
                                   "accept",
                                   "inbox",
                                   "events",
                                   "watch_client",
                                   "watch_upstream",
                                   "first_bytes",
                                   "connect",
                                   "connect",
                                   "connect",
                                   "header_room",
                                   "read_client",
                                   "read_upstream",
                                   "write_client",
                                   "write_upstream"};
  constexpr const char* kErrands[] = {"deadline", "pumping", "publishing", "answer", "adopting"};
  const auto of = [](const auto& names, auto number) {
    return static_cast<size_t>(number) < std::size(names) ? names[static_cast<size_t>(number)] : "-";
  };
  const char* what = of(kWhat, flow.event);
  if (const uint32_t errand = flow.event - kDeadline; errand < std::size(kErrands)) what = kErrands[errand];
  if (bytes == 0) return;
  if (flow.slot >= table.size()) {
    out[0] = 0;
    return;
  }
  const FlowRecord& r = table[flow.slot];
  const auto end = fmt::format_to_n(
      out, bytes - 1, "cookie={} {}: {}, up {}, down {}", r.cookie[kClient], of(kPhaseNames, flow.phase),
      what, of(kLaneNames, r.direction[kUp].lane.load()), of(kLaneNames, r.direction[kDown].lane.load()));
  *end.out = 0;
}

void blame(Shared& shared, const InHand::Flow& flow) {
  if (flow.slot >= shared.table->size()) return;
  FlowRecord& r = (*shared.table)[flow.slot];
  if (r.phase != Phase::free && r.generation == flow.generation) r.crashes++;
}

std::string in_words(const Stock& stock) {
  const auto all = [](const auto& counts, const auto& names) {
    std::string words;
    for (size_t i = 0; i < counts.size(); i++)
      if (counts[i]) words += fmt::format("{}{} {}", words.empty() ? "" : ", ", counts[i], names[i]);
    return words.empty() ? std::string("none") : words;
  };
  return fmt::format("{} flows ({}); directions: {}; {} pipes with bytes in them", stock.flows.size(),
                     all(stock.in_phase, kPhaseNames), all(stock.in_lane, kLaneNames), stock.filled_pipes);
}

Stock take_stock(Shared& shared, uint32_t threads) {
  Stock stock;
  penstock_totals& t = *shared.statistics.totals;
  uint64_t active = 0, pipes = 0, pipe_bytes = 0;
  std::array<uint64_t, PENSTOCK_LISTENERS_MAX> of_listener{};
  std::array<uint64_t, PENSTOCK_UPSTREAMS_MAX> of_upstream{};
  Claims claims;
  std::unordered_set<uint64_t> owned;  // cookies of sockets that are where their record says
  const uint32_t used = std::min<uint32_t>(shared.table->used(), shared.table->size());
  shared.free_slots.clear();
  for (uint32_t slot = shared.table->size(); slot-- > 0;) {
    if (slot >= used) {
      shared.free_slots.push_back(slot);
      continue;
    }
    FlowRecord& r = (*shared.table)[slot];
    if (r.phase != Phase::free && r.crashes >= kAbandonedAt) {
      stock.abandoned++;
      abandon(r);
    }
    if (r.phase == Phase::free) {
      if (shared.sockmap) shared.sockmap->settle(slot);
      shared.free_slots.push_back(slot);
      continue;
    }
#if PENSTOCK_LAYOUT_STEP
    PENSTOCK_ASSERT(r.not_cookie == 0 || r.not_cookie == ~r.cookie[kClient]);
#endif
    if (r.thread >= threads) r.thread = slot % threads;
    for (Side s : {kClient, kUpstream}) {
      if (r.fd[s] < 0) continue;
      if (cookie_of(r.fd[s]) == r.cookie[s] && claims.take(r.fd[s])) {
        stock.descriptors.push_back(r.fd[s]);
        owned.insert(r.cookie[s]);
      } else {
        r.fd[s] = -1;
        stock.lost.push_back(r.cookie[s]);
      }
    }
    for (DirectionRecord& dr : r.direction) {
      const bool taken = dr.pipe_in >= 0 && dr.pipe_out >= 0;  // with both it is in use
      if (!taken || !is_one_pipe(dr.pipe_in, dr.pipe_out) || !claims.take(dr.pipe_in) ||
          !claims.take(dr.pipe_out)) {
        dr.pipe_in = dr.pipe_out = -1;
        continue;
      }
      // Whoever died as it took or grew it may not have written its size.
      if (const int capacity = fcntl(dr.pipe_in, F_GETPIPE_SZ); capacity > 0)
        dr.pipe_capacity_bytes = static_cast<uint32_t>(capacity);
      stock.descriptors.push_back(dr.pipe_in);
      stock.descriptors.push_back(dr.pipe_out);
      pipes++;
      stock.filled_pipes += in_pipe(dr) > 0;
      pipe_bytes += dr.pipe_capacity_bytes;
    }
    stock.flows.push_back(slot);
    if (const auto phase = static_cast<size_t>(r.phase.load()); phase < stock.in_phase.size())
      stock.in_phase[phase]++;
    for (const DirectionRecord& dr : r.direction)
      if (const auto lane = static_cast<size_t>(dr.lane.load()); lane < stock.in_lane.size())
        stock.in_lane[lane]++;
    const bool ended = shared.sockmap ? shared.sockmap->ended(slot, r.generation) : r.ended != 0;
    if (ended || r.listener >= PENSTOCK_LISTENERS_MAX) continue;
    active++;
    of_listener[r.listener]++;
    if (r.upstream_counted && r.upstream < PENSTOCK_UPSTREAMS_MAX) of_upstream[r.upstream]++;
  }
  // What a torn record ends must not be another's.
  if (!stock.lost.empty())
    for (const uint32_t slot : stock.flows)
      for (Side s : {kClient, kUpstream})
        if (FlowRecord& r = (*shared.table)[slot]; r.fd[s] < 0 && owned.contains(r.cookie[s]))
          r.cookie[s] = 0;
  // The totals may be read at any moment (updates_done, updates_begun).
  t.updates_done = t.updates_begun;
  Update update(shared.statistics);
  t.pipes = pipes;
  t.pipe_bytes = pipe_bytes;
  t.active = active;
  t.accepted = active;
  for (size_t reason = 0; reason < kCloseReasons; reason++)
    t.accepted += read(shared.statistics.closed(static_cast<CloseReason>(reason)));
  for (uint32_t i = 0; i < PENSTOCK_LISTENERS_MAX; i++) {
    penstock_listener& l = shared.statistics.listeners[i];
    l.active = of_listener[i];
    l.accepted = l.active + l.closed;
  }
  for (uint32_t i = 0; i < PENSTOCK_UPSTREAMS_MAX; i++)
    shared.statistics.upstreams[i].active = of_upstream[i];
  return stock;
}

void Worker::adopt(uint32_t slot, std::shared_ptr<const Plan> plan) {
  live_++;
  adoptions_.push_back({slot, std::move(plan)});
}

void Worker::adopt_all() {
  for (const Adoption& a : adoptions_) adopt_here(a.slot, a.plan);
  adoptions_ = {};
}

void Worker::adopt_connection(int fd, uint32_t listener, const Endpoint& bound,
                              std::shared_ptr<const Plan> plan) {
  // Its listener may have been about to go, and have none.
  if (set_filter(fd)) {
    log::warn("a connection is lost: no memory for its filter");
    close(fd);
    return;
  }
  give({fd, listener, bound, std::move(plan)});
}

// What the record says that cannot be so: it was torn, or is not ours. Null: nothing.
const char* Worker::unsound(const Flow& f) const {
  const FlowRecord& r = *f.record;
  const bool routed = r.upstream != UINT32_MAX;
  if (r.phase > Phase::closing) return "a phase that is none";
  if (!f.plan->find_listener(r.listener)) return "a listener that is none";
  if (routed && !f.plan->find_upstream(r.upstream)) return "an upstream that is none";
  if (r.tlvs_size > r.tlvs_bytes.size()) return "TLVs longer than their place";
  if (r.known && !shared_.sockmap) return "the sockmap, and there is none";
  if (r.phase == Phase::closing) {
    if (r.reason >= kCloseReasons) return "a reason that is none";
    const bool no_server = r.reason == static_cast<uint32_t>(CloseReason::no_server);
    return no_server && !routed ? "no server, and no upstream" : nullptr;
  }
  if (r.fd[kClient] < 0) return "no client";
  for (const DirectionRecord& dr : r.direction) {
    if (dr.lane > Lane::shut) return "a lane that is none";
    if (dr.relayed_in_bytes < dr.relayed_out_bytes) return "more out of the pipe than went in";
    if (dr.lane == Lane::splice && !r.known) return "the splice, and the programs do not know it";
  }
  const bool dialed = r.phase == Phase::priming || r.phase == Phase::handing_off || r.phase == Phase::open;
  if (dialed && (!routed || r.fd[kUpstream] < 0)) return "no server, and it was dialled";
  return nullptr;
}

// Of this listener and of no upstream, which it was not as take_stock() counted.
void Worker::count_as(const Flow& f, uint32_t listener) {
  FlowRecord& r = *f.record;
  Statistics& s = shared_.statistics;
  const bool ended = shared_.sockmap ? shared_.sockmap->ended(f.slot, r.generation) : r.ended != 0;
  if (!ended) {
    Update update(s);
    if (r.listener < PENSTOCK_LISTENERS_MAX) {
      uncount(s.listeners[r.listener].accepted);
      uncount(s.listeners[r.listener].active);
      if (r.upstream_counted && r.upstream < PENSTOCK_UPSTREAMS_MAX) uncount(s.upstreams[r.upstream].active);
    } else {
      count(s.totals->accepted);
      count(s.totals->active);
    }
    count(s.listeners[listener].accepted);
    count(s.listeners[listener].active);
  }
  r.listener = listener;
  r.upstream = UINT32_MAX;
  r.upstream_counted = 0;
}

void Worker::adopt_here(uint32_t slot, const std::shared_ptr<const Plan>& plan) {
  now_ns_ = io::now_ns();
  FlowRecord& r = (*shared_.table)[slot];
  Flow& f = shared_.flows[slot];
  f = Flow{};
  f.record = &r;
  f.slot = slot;
  f.plan = use_plan(plan);
  f.shown = shared_.sockmap != nullptr;
  r.thread = index_;
  const Holding holding(*this, f, kAdopting);
  const bool closing = r.phase == Phase::closing;
  const char* what = unsound(f);
  bool torn = false;
  // Whatever becomes of the flow: a pipe that is not empty must not be given back as if it were, and what was
  // relayed counts.
  for (Direction d : {kUp, kDown}) {
    DirectionRecord& dr = r.direction[d];
    if (!what && !closing && lane(f, d) == Lane::relay) torn |= !adopt_relay(f, d);
    if (dr.pipe_out >= 0) dr.relayed_in_bytes = dr.relayed_out_bytes + in_pipe(dr);
  }
  if (what) {
    log::error("flow cookie={}: its record, phase {}, says what cannot be: {}", r.cookie[kClient],
               static_cast<uint32_t>(r.phase.load()), what);
    count_as(f, f.plan->listener_slot(0));
    r.tlvs_size = 0;
    if (!shared_.sockmap) r.known = 0;
    r.server_endpoint = {};
    r.phase = Phase::closing;
    r.reason = static_cast<uint32_t>(CloseReason::adoption_failed);
    return release(f);
  }
  if (closing) {
    // Not after every death, so it may take its time.
    if (!r.logged) r.logged = log::was_written(fmt::format("flow cookie={} client=", r.cookie[kClient]));
    return release(f);
  }
  if (torn) return begin_close(f, CloseReason::adoption_failed);
  if (r.crashes >= kCrashesMax) return begin_close(f, CloseReason::worker_crashed);
  if (stopping_) return begin_close(f, CloseReason::shutdown);
  if (r.phase != Phase::proxy_header && !r.admitted) {
    if (auto refusal = admit(f)) return begin_close(f, *refusal);
    f.peeked_bytes = unread_bytes(r.fd[kClient]);
  } else if (r.phase != Phase::proxy_header) {
    const config::Limits all = unlimited(f.plan->config().limits),
                         own = unlimited(f.plan->listener(r.listener).limits);
    shared_.clients->enter(r.client.address, r.listener, all, own, now_ns_, &f.place);
    f.peeked_bytes = unread_bytes(r.fd[kClient]);
  }
  if (r.phase != Phase::resolving && r.phase != Phase::dialing && r.upstream != UINT32_MAX)
    f.server = f.plan->servers(r.upstream).find(r.server);
  arm_poll(f, Op::watch_client, r.fd[kClient], 0);
  publish(f);
  const uint64_t until_ns = r.deadline_ns ? std::max(r.deadline_ns, now_ns_ + kGraceNs) : UINT64_MAX;
  switch (r.phase.load()) {
    case Phase::proxy_header:
      return adopt_proxy_header(f, until_ns);
    case Phase::classifying:
      set_low_water(r.fd[kClient], 1);
      begin_classify(f);
      return set_phase_deadline(f, std::min(r.deadline_ns, until_ns));
    case Phase::resolving:
    case Phase::dialing:
      return adopt_search(f);
    case Phase::priming: {
      SocketAccount account;
      if (!read_account(r.fd[kUpstream], true, &account)) return begin_close(f, CloseReason::internal_error);
      r.header_sent_bytes = static_cast<uint32_t>(account.written_bytes);  // nobody else has written
      set_phase_deadline(f, std::max(r.deadline_ns, now_ns_ + kGraceNs));
      arm_poll(f, Op::watch_upstream, r.fd[kUpstream], 0);
      return begin_prime(f);
    }
    case Phase::handing_off:
      arm_poll(f, Op::watch_upstream, r.fd[kUpstream], 0);
      return adopt_handoff(f);
    case Phase::open:
      arm_poll(f, Op::watch_upstream, r.fd[kUpstream], 0);
      return adopt_open(f);
    case Phase::free:
    case Phase::closing:
      return;
  }
}

void Worker::adopt_proxy_header(Flow& f, uint64_t until_ns) {
  FlowRecord& r = *f.record;
  const int fd = r.fd[kClient];
  set_low_water(fd, 1);
  if (!r.direction[kUp].discarded_bytes) {  // what it says is not believed yet: as at accept
    r.client = peer_of(fd);
    r.destination = local_of(fd);
    r.proxy = {};
    r.local = r.tlvs_size = 0;
    begin_proxy_header(f);
    return set_phase_deadline(f, std::min(r.deadline_ns, until_ns));
  }
  SocketAccount before, account;
  uint64_t unread = 0;
  do {  // both of one moment
    if (!read_received(fd, &before)) return begin_close(f, CloseReason::internal_error);
    unread = unread_bytes(fd);
    if (!read_received(fd, &account)) return begin_close(f, CloseReason::internal_error);
  } while (account.received_bytes != before.received_bytes);
  f.peeked_bytes = unread;
  const bool discarded = account.received_bytes >= unread + r.direction[kUp].discarded_bytes;
  if (discarded) return header_taken(f);
  discard_header(f);
}

void Worker::adopt_search(Flow& f) {
  FlowRecord& r = *f.record;
  if (r.fd[kUpstream] >= 0) {  // it had just been won
    close(r.fd[kUpstream]);
    r.fd[kUpstream] = -1;
  }
  if (r.phase == Phase::dialing) advance(f, Event::next_server);
  if (r.upstream == UINT32_MAX) return route(f, nullptr);  // the listener's own
  if (std::exchange(r.upstream_counted, 0)) uncount(shared_.statistics.upstreams[r.upstream].active);
  begin_resolve(f);
}

// Without a lane in the record nothing was opened: all of it again.
void Worker::adopt_handoff(Flow& f) {
  FlowRecord& r = *f.record;
  const auto untouched = [](const DirectionRecord& dr) {
    return dr.lane == Lane::none || dr.lane == Lane::held;
  };
  if (untouched(r.direction[kUp]) && untouched(r.direction[kDown])) {
    for (DirectionRecord& dr : r.direction) dr.lane = Lane::none;
    r.joined = 0;
    for (Side s : {kClient, kUpstream})
      if (r.known) shared_.sockmap->part(socket_index(f, s));
    return begin_handoff(f);
  }
  // What was not opened yet is held, and opened as anything that was.
  for (DirectionRecord& dr : r.direction)
    if (dr.lane == Lane::none) dr.lane = Lane::held;
  advance(f, Event::handed_off);
  adopt_open(f);
}

void Worker::adopt_open(Flow& f) {
  FlowRecord& r = *f.record;
  const bool shut = lane(f, kUp) == Lane::shut || lane(f, kDown) == Lane::shut;
  set_open_deadline(f,
                    now_ns_ + timeout_ns(f, shut ? &config::Timeouts::half_closed : &config::Timeouts::idle));
  // A RST whose error the dead worker was told.
  for (Side s : {kClient, kUpstream}) {
    SocketAccount account;
    if (is_shut(f) || lane(f, static_cast<Direction>(s ^ 1)) == Lane::shut ||
        !read_received(r.fd[s], &account) || account.state != TCP_CLOSE)
      continue;
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(r.fd[s], SOL_SOCKET, SO_ERROR, &error, &size);
    return begin_close(f, reason_of(s, error));
  }
  bool in_sources[2] = {false, false};
  for (Direction d : {kUp, kDown}) {
    DirectionState& s = f.direction[d];
    s.lane_since_ns = s.moved_ns = s.blocked_ns = now_ns_;
    s.readable = true;
    if (r.known) {
      in_sources[d] = shared_.sockmap->recover(socket_index(f, d), r.cookie[d]);
      if (shared_.sockmap->direction(socket_index(f, d)).broken)
        return begin_close(f, CloseReason::splice_broken);
      s.high_at_bytes = shared_.sockmap->direction(socket_index(f, d)).redirected;
    }
  }
  for (Direction d : {kUp, kDown})
    if (lane(f, d) == Lane::shut) shutdown(r.fd[d ^ 1], SHUT_WR);
  if (is_shut(f)) return check_delivered(f);
  for (Direction d : {kUp, kDown}) {
    if (r.phase != Phase::open) return;
    switch (lane(f, d)) {
      case Lane::splice:
        if (!in_sources[d]) {
          leave_splice(f, d, LaneChange::backlog_high);
          break;
        }
        sockmap::Sockmap::kick(r.fd[d]);
        if (r.direction[d].fin_received) check_drain(f, d);
        break;
      case Lane::held:
        if (!r.known && !(d == kUp && r.unproven))  // its first bytes have just been seen (first_bytes.cc)
          enter_relay(f, d, LaneChange::engine);
        else
          check_held(f, d);
        break;
      case Lane::relay:
        enqueue(f);
        break;
      case Lane::shut:
        break;
      case Lane::none:
        enter_relay(f, d, LaneChange::engine);
        break;
    }
  }
}

// splice(2) had moved bytes, and the record may not say so yet: at most one call's, each way.
bool Worker::adopt_relay(Flow& f, Direction d) {
  const FlowRecord& r = *f.record;
  DirectionRecord& dr = f.record->direction[d];
  const uint64_t piped = in_pipe(dr),
                 spliced = r.known ? shared_.sockmap->direction(socket_index(f, d)).redirected : 0;
  SocketAccount target;
  if (!read_account(r.fd[d ^ 1], d == kUp, &target)) return false;
  const uint64_t before = dr.header_bytes + spliced + dr.relayed_out_bytes;
  uint64_t more = target.written_bytes >= before ? target.written_bytes - before : 0;
  if (more > dr.pipe_capacity_bytes && target.state == TCP_CLOSE) more = 0;  // not sure to know it still
  if (more > dr.pipe_capacity_bytes) {
    log::error("flow cookie={} {}: {} bytes are written, {} were relayed", r.cookie[kClient],
               d == kUp ? "up" : "down", target.written_bytes, before);
    return false;
  }
  dr.relayed_out_bytes += more;
  if (dr.pipe_out < 0 && dr.relayed_in_bytes > dr.relayed_out_bytes) {
    log::error("flow cookie={} {}: {} bytes were in a pipe, and there is none", r.cookie[kClient],
               d == kUp ? "up" : "down", dr.relayed_in_bytes - dr.relayed_out_bytes);
    return false;
  }
  dr.relayed_in_bytes = dr.relayed_out_bytes + piped;
  return true;
}

}  // namespace penstock::flow
