// SPDX-License-Identifier: Apache-2.0
#include "sim/life.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "flow/adopt.h"
#include "sim/io.h"
#include "sim/sockmap.h"
#include "sockmap/sockmap.h"

namespace penstock::sim {

using flow::CloseReason;

Life* g_life = nullptr;

namespace {

constexpr uint64_t kLifeMaxNs = 3600 * kSecond, kAfterNs = 300 * kSecond;

}  // namespace

// Opened once; its memory begins anew with each life.
sockmap::Sockmap& the_sockmap() {
  static const std::unique_ptr<sockmap::Sockmap> one = [] {
    sockmap::Options options;
    options.flows_max = kFlowsMax;
    options.threads = kThreads;
    auto opened = sockmap::Sockmap::open(options);
    if (!opened) abort();
    return std::move(*opened);
  }();
  return *one;
}

void Summary::add(const Summary& other) {
  for (const auto& [reason, n] : other.closed) closed[reason] += n;
  for (const auto& [why, n] : other.lane_changes) lane_changes[why] += n;
  for (const auto& [phase, n] : other.adopted) adopted[phase] += n;
  flows += other.flows;
  deaths += other.deaths;
  spliced_bytes += other.spliced_bytes;
  relayed_bytes += other.relayed_bytes;
}

Life::Life(Kernel& kernel, const Shape& shape) : kernel_(kernel), shape_(shape) {
  g_life = this;
  kernel_.describe = [this] { return describe(); };
}
Life::~Life() {
  g_life = nullptr;
}

void Life::set_up() {
  sockmap::Sockmap& map = the_sockmap();
  kernel_.reset_maps();
  if (shape_.sockmap) {
    map.globals().memory_limit_bytes = shape_.memory_limit;
    std::fill_n(map.listeners(), 8, penstock_listener{});
    std::fill_n(map.upstreams(), 8, penstock_upstream{});
  } else {
    own_totals_ = std::make_unique<penstock_totals>();
    own_listeners_ = std::make_unique<penstock_listener[]>(PENSTOCK_LISTENERS_MAX);
    own_upstreams_ = std::make_unique<penstock_upstream[]>(PENSTOCK_UPSTREAMS_MAX);
  }
  auto table = flow::FlowTable::create(shape_.flows_max);
  table_ = std::make_unique<flow::FlowTable>(std::move(*table));
  kernel_.find_remote = [this](const Endpoint& to) { return remote(to); };
  share();
  for (uint32_t slot = shape_.flows_max; slot-- > 0;) shared_->free_slots.push_back(slot);
  plans_.push_back(make_plan(1));
  shared_->set_plan(plans_.back());
  make_workers();
  listeners_.resize(shape_.config.listeners.size(), -1);
  for (uint32_t i = 0; i < listeners_.size(); i++) open_listener(i);
}

// What a process has of its own.
void Life::share() {
  shared_ = std::make_unique<flow::Shared>();
  flow::Shared& s = *shared_;
  s.splice = shape_.splice;
  s.memory_limit_bytes = shape_.memory_limit;
  if (shape_.sockmap) {
    s.sockmap = &the_sockmap();
    s.statistics = {&s.sockmap->totals(), s.sockmap->listeners(), s.sockmap->upstreams()};
  } else {
    s.statistics = {own_totals_.get(), own_listeners_.get(), own_upstreams_.get()};
  }
  flows_ = std::make_unique<flow::Flow[]>(shape_.flows_max);
  s.table = table_.get();
  s.flows = flows_.get();
  clients_limits_ = std::make_unique<flow::Clients>(shape_.flows_max, 8);
  s.clients = clients_limits_.get();
  resolver_ = std::move(*dns::Resolver::start());
  s.resolver = resolver_.get();
  s.on_dial_failed = [](const flow::Server&, CloseReason) {};
  s.on_servers_changed = [](const config::Upstream&, const flow::Upstream&) {};
  const auto nobody = [](uint32_t, std::string_view) {};
  listener_names_ = std::make_unique<flow::Names>(8, nobody);
  upstream_names_ = std::make_unique<flow::Names>(8, nobody);
}

void Life::make_workers() {
  for (uint32_t i = 0; i < shape_.threads; i++)
    shared_->workers.push_back(std::make_unique<flow::Worker>(*shared_, i));
}

// The process has died. Another goes on with what is left: descriptors, records, maps. What was its memory is
// never given back.
void Life::take_over() {
  process_++;
  struct Grave {
    std::unique_ptr<flow::Shared> shared;
    std::unique_ptr<flow::Flow[]> flows;
    std::unique_ptr<flow::Clients> clients;
    std::unique_ptr<flow::Names> listener_names, upstream_names;
    std::vector<std::shared_ptr<const flow::Plan>> plans;
  };
  static std::vector<Grave>& graves = *new std::vector<Grave>;
  graves.push_back({std::move(shared_), std::move(flows_), std::move(clients_limits_),
                    std::move(listener_names_), std::move(upstream_names_), std::move(plans_)});
  bury_workers();
  share();
  if (kernel_.random.chance(1, 2)) {  // nobody runs for a while, but the peers
    const uint64_t until = kernel_.now + kernel_.random.log_between(kMillisecond / 1000, 2 * kSecond);
    while (kernel_.step(until)) {
    }
  }
  plans_.clear();
  for (const auto& known : graves.back().plans) {
    for (size_t i = 0; i < shape_.config.listeners.size(); i++)
      listener_names_->restore(shape_.config.listeners[i].name, known->listener_slot(i));
    for (size_t i = 0; i < shape_.config.upstreams.size(); i++)
      upstream_names_->restore(shape_.config.upstreams[i].name, known->upstream_slot(i));
    plans_.push_back(make_plan(known->id()));
  }
  shared_->set_plan(plans_.back());
  const flow::Stock stock = flow::take_stock(*shared_, shape_.threads);
  const std::set<int> kept(stock.descriptors.begin(), stock.descriptors.end());
  std::vector<int> orphans;
  for (const int fd : kernel_.descriptors()) {
    if (kept.contains(fd) || std::find(listeners_.begin(), listeners_.end(), fd) != listeners_.end())
      continue;
    const File& f = *kernel_.file(fd);
    const bool accepted = f.kind == Kind::tcp && f.socket && !f.socket->opened_by_us && f.socket->other;
    if (accepted)
      orphans.push_back(fd);
    else
      close(fd);
  }
  make_workers();
  summary_.deaths++;
  for (const uint32_t slot : stock.flows) {
    const flow::FlowRecord& r = (*table_)[slot];
    summary_.adopted[r.phase]++;
    const auto plan =
        std::find_if(plans_.begin(), plans_.end(), [&](const auto& p) { return p->id() == r.plan; });
    shared_->workers[r.thread]->adopt(slot, plan == plans_.end() ? plans_.back() : *plan);
  }
  for (uint32_t i = 0; i < listeners_.size(); i++)
    if (listeners_[i] >= 0 && kernel_.maybe_file(listeners_[i])) add_listener(i, true);
  if (!accepting_)
    for (auto& w : shared_->workers) w->stop_accepting();
  for (const int fd : orphans)
    shared_->workers[0]->adopt_connection(fd, plans_.back()->listener_slot(0), {}, plans_.back());
  if (stopped_)
    for (auto& w : shared_->workers) w->stop(CloseReason::shutdown);
}

std::shared_ptr<const flow::Plan> Life::make_plan(uint32_t id) {
  auto plan = flow::Plan::make(shape_.config, *listener_names_, *upstream_names_,
                               plans_.empty() ? nullptr : plans_.back().get(), id);
  return std::move(*plan);
}

void Life::open_listener(uint32_t index) {
  const int fd = kernel_.open(Kind::tcp);
  if (fd < 0) return;
  Socket* s = kernel_.make_socket(true);
  s->fd = fd;
  s->trim = shape_.splice;
  kernel_.file(fd)->socket = s;
  kernel_.listen(s);
  listeners_[index] = fd;
  add_listener(index);
}

void Life::add_listener(uint32_t index, bool adopted) {
  Endpoint bound;
  bound.address = *IpAddress::parse("192.0.2.10");
  bound.port = kListenPort;
  if (index % 2) bound.port = 0;  // each connection is asked
  flow::Worker& w = *shared_->workers[index % shape_.threads];
  w.add_listener({listeners_[index], plans_.back()->listener_slot(index), bound, plans_.back(), adopted});
}

std::string Life::describe() const {
  const auto line = [](const Peer& p, const std::string& reason) {
    return fmt::format("  {}: said {} of {}{}, heard {}{}{}{}, its end: {}{} {}\n", p.out.name, p.said,
                       p.talk.say_bytes, p.said_fin ? " and FIN" : "", p.heard, p.heard_eof ? " and FIN" : "",
                       p.heard_reset ? " and RST" : "", p.gone ? ", gone" : "", static_cast<int>(p.talk.end),
                       p.talk.urgent_at != UINT64_MAX ? ", urgent" : "", reason);
  };
  std::string out;
  for (const Client& c : clients_) out += line(*c.peer, c.reason);
  for (const Upstream& u : servers_) out += line(*u.peer, "");
  return out;
}

Summary Life::live() {
  expect(shape_);
  set_up();
  for (const ClientShape& c : shape_.clients) kernel_.after(c.at_ns, [this, &c] { arrive(c); });
  for (const Command& c : shape_.commands) kernel_.after(c.at_ns, [this, &c] { do_command(c); });
  kernel_.after(kLifeMaxNs, [this] {
    if (ending_) return;
    for (const Client& c : clients_)
      if (!c.peer->over())
        kernel_.violated(fmt::format("{} hangs: said {} of {}, heard {}, reason so far \"{}\"",
                                     c.peer->out.name, c.peer->said, c.peer->talk.say_bytes, c.peer->heard,
                                     c.reason));
    for (const Upstream& u : servers_)
      if (!u.peer->over())
        kernel_.violated(fmt::format("{} hangs: said {} of {}, heard {}", u.peer->out.name, u.peer->said,
                                     u.peer->talk.say_bytes, u.peer->heard));
    kernel_.violated("the life does not end");
  });
  kernel_.deaths_left = shape_.deaths;
  kernel_.die_in = shape_.die_in;
  for (bool alive = false; !alive;) {
    for (auto& w : shared_->workers)
      if (!w->start()) kernel_.violated("a worker does not start");
    alive = run_workers(static_cast<int>(shape_.threads), [this] { each_step(); });
    for (auto& w : shared_->workers) w->join();
    if (!alive) take_over();
  }
  check_totals();
  shared_->workers.clear();
  shared_->set_plan(nullptr);
  const uint64_t until = kernel_.now + kAfterNs;
  while (!peers_over() && kernel_.step(until)) {  // what is still under way arrives
  }
  if (kernel_.open_descriptors())
    kernel_.violated(fmt::format("{} descriptors are left open", kernel_.open_descriptors()));
  for (const auto& plan : plans_)
    if (plan.use_count() != 1) kernel_.violated("a plan is still held");
  plans_.clear();
  for (Client& c : clients_) check_end(c);
  return summary_;
}

void Life::arrive(const ClientShape& shape) {
  arrived_++;
  const File* listener = kernel_.maybe_file(listeners_[shape.listener]);
  if (!listener || !listener->socket || listener->socket->state != TCP_LISTEN) return;
  Endpoint to;
  to.address = *IpAddress::parse("192.0.2.10");
  to.port = kListenPort;
  Socket* socket = kernel_.arrive(listener->socket, shape.from, to);
  if (!socket) return;
  Client& c = clients_.emplace_back();
  c.shape = &shape;
  c.ours = socket->other;
  c.peer = std::make_unique<Peer>(kernel_, fmt::format("client {}", clients_.size() - 1), shape.talk);
  c.peer->on_bytes = [this, &c](const Extent& e) { on_client_bytes(c, e); };
  c.peer->on_eof = [this, &c] { on_client_eof(c); };
  c.peer->begin(socket);
}

Remote Life::remote(const Endpoint& to) {
  for (const ServerShape& s : shape_.servers)
    if (s.address == to.address)
      return {s.what, s.delay_ns, [this, &s](Socket* socket) { begin_server(socket, s.talk); }};
  return {Remote::unreachable, 10'000, nullptr};
}

void Life::begin_server(Socket* socket, const Talk& talk) {
  Upstream& u = servers_.emplace_back();
  u.peer = std::make_unique<Peer>(kernel_, fmt::format("server {}", servers_.size() - 1), talk);
  u.peer->on_bytes = [this, &u](const Extent& e) { on_server_bytes(u, e); };
  u.peer->on_eof = [this, &u] { on_server_eof(u); };
  u.peer->begin(socket);
}

void Life::do_command(const Command& command) {
  if (stopped_) return;
  if (shared_->workers.size() < shape_.threads)  // the operator tries again
    return kernel_.after(kMillisecond, [this, &command] { do_command(command); });
  flow::Worker& w = *shared_->workers[kernel_.random.below(shape_.threads)];
  kernel_.trace(fmt::format("command {}", static_cast<int>(command.what)));
  switch (command.what) {
    case Command::kill:
      for (uint32_t slot = 0; slot < shape_.flows_max; slot++) {
        flow::FlowRecord& r = (*table_)[slot];
        if (r.phase != flow::Phase::free && r.thread < shape_.threads)
          return shared_->workers[r.thread]->kill(slot, r.generation, CloseReason::killed);
      }
      return;
    case Command::order:
      return w.post([this](flow::Worker& here) {
        here.for_each_flow([&](flow::Flow& f) {
          const auto d = kernel_.random.one_of({flow::kUp, flow::kDown});
          here.order_lane_here(f, d,
                               kernel_.random.one_of({flow::Lane::splice, flow::Lane::held, flow::Lane::relay,
                                                      flow::Lane::shut}));
        });
      });
    case Command::view:
      return w.post([](flow::Worker& here) {
        here.for_each_flow([&](flow::Flow& f) { (void)here.view(f); });
        (void)here.listener_view(0);
      });
    case Command::drain:
      plans_.back()->servers_at(0).set_drained(true);
      plans_.back()->servers_at(0).for_each_server([](flow::Server& s) { s.drained = true; });
      return;
    case Command::reload:
      if (!accepting_ || ending_) return;  // the daemon refuses it then
      plans_.push_back(make_plan(plans_.back()->id() + 1));
      shared_->set_plan(plans_.back());
      for (uint32_t i = 0; i < listeners_.size(); i++)
        if (listeners_[i] >= 0)
          shared_->workers[i % shape_.threads]->assign_listener(
              listeners_[i], plans_.back()->listener_slot(i), plans_.back());
      return;
    case Command::move_listener: {
      const int fd = std::exchange(listeners_[0], -1);
      if (fd < 0 || !accepting_ || ending_) return;
      flow::Worker& owner = *shared_->workers[0];
      owner.retire_listener(fd);
      kernel_.after(kSecond, [this, &owner, fd, ordered_by = process_] {
        if (accepting_ && !ending_ && process_ == ordered_by) owner.remove_listener(fd);
      });
      open_listener(0);
      return;
    }
    case Command::stop_accepting:
      accepting_ = false;
      for (auto& worker : shared_->workers) worker->stop_accepting();
      return;
    case Command::stop:
      return end();
    case Command::fail_socket:
      for (const auto& [upstream, client] : client_of_)
        for (Client& c : clients_) {
          if (c.ours->cookie != client || c.ours->fd < 0) continue;
          Socket* s = c.ours;
          if (kernel_.random.chance(1, 2))
            for (Upstream& u : servers_)
              if (u.peer->socket->other->cookie == upstream && u.peer->socket->other->fd >= 0)
                s = u.peer->socket->other;
          return kernel_.fail(s, kernel_.random.one_of({ETIMEDOUT, EHOSTUNREACH, ENETUNREACH}));
        }
      return;
  }
}

void Life::end() {
  if (std::exchange(stopped_, true)) return;
  ending_ = true;
  for (auto& w : shared_->workers) w->stop_accepting();
  for (auto& w : shared_->workers) w->stop(CloseReason::shutdown);
}

bool Life::peers_over() const {
  for (const Client& c : clients_)
    if (!c.peer->over()) return false;
  for (const Upstream& u : servers_)
    if (!u.peer->over()) return false;
  return true;
}

bool Life::all_over() const {
  if (arrived_ < shape_.clients.size()) return false;
  for (const Client& c : clients_)
    if (c.lines == 0 && !c.ours->closed) return false;
  if (!peers_over()) return false;
  for (uint32_t slot = 0; slot < table_->used(); slot++)
    if ((*table_)[slot].phase != flow::Phase::free) return false;
  return true;
}

void Life::each_step() {
  look_at_records();
  if (!std::exchange(ending_, ending_ || all_over()) && ending_)
    kernel_.after(10 * kMillisecond, [this] { end(); });
}

dns::Answer Life::answer(const std::string& name, dns::Family family, bool srv) {
  dns::Answer a;
  a.error = "no such name";
  for (const NameShape& n : shape_.names) {
    if (n.name != name) continue;
    const uint32_t times = asked_[name]++;
    if (srv) a.targets = n.targets;
    for (const IpAddress& address : n.addresses)
      if (family == dns::Family::any || address.is_v4() == (family == dns::Family::v4))
        a.addresses.push_back(address);
    if (n.changes && times % 2) std::reverse(a.addresses.begin(), a.addresses.end());
    if (n.changes && times % 3 == 2) a.addresses.clear();
    if (a.found()) a.error.clear();
    a.obtained = std::chrono::steady_clock::time_point(std::chrono::nanoseconds(kernel_.now));
  }
  return a;
}

uint64_t Life::answer_delay(const std::string& name) {
  for (const NameShape& n : shape_.names)
    if (n.name == name) return n.delay_ns;
  return 0;
}

}  // namespace penstock::sim
