// SPDX-License-Identifier: Apache-2.0
#include "check/checker.h"

#include <fmt/format.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <list>
#include <map>
#include <mutex>
#include <random>
#include <set>
#include <system_error>
#include <thread>
#include <utility>

#include "base/assert.h"
#include "base/log.h"
#include "base/signals.h"

namespace penstock::check {
namespace {

constexpr milliseconds kFirstWithin{2000};  // the first checks are spread over this, or one interval
constexpr milliseconds kGapMin{10};         // between the end of a check and the next one
constexpr milliseconds kSuspicionGap{1000};
constexpr milliseconds kLateMax{10'000};
constexpr double kJitter = 0.1;
constexpr size_t kAddressesMax = 8;  // of a name that are tried in one check

uint16_t port_of(const Target& t) {
  return t.check.port ? *t.check.port : t.server.port.value_or(0);
}

// Targets that agree in this share a check.
std::string subject_of(const Target& t) {
  const config::Check& c = t.check;
  return fmt::format("{} {} {} {} {} {} {} {} {} {} {} {}", t.server.host, port_of(t),
                     static_cast<int>(c.type), static_cast<int>(c.proxy), static_cast<int>(t.proxy_protocol),
                     static_cast<int>(t.family), t.source ? t.source->text() : "-", c.interval.count(),
                     c.timeout.count(), c.rise, c.fall, c.sni);
}

dns::Family dns_family(config::Family family) {
  return family == config::Family::v4   ? dns::Family::v4
         : family == config::Family::v6 ? dns::Family::v6
                                        : dns::Family::any;
}

// Answers on their way from the resolver's thread, which may still hold it when the checker is gone.
struct Inbox {
  std::mutex mutex;
  std::vector<std::pair<uint64_t, dns::Answer>> answers;  // guarded by mutex; by the check's number
  Fd wake;

  void wake_up() const { PENSTOCK_ASSERT(::eventfd_write(wake.get(), 1) == 0 || errno == EAGAIN); }
};

struct Check {
  uint64_t number = 0;                       // of all checks ever
  Target target;                             // of the first user
  std::map<std::string, std::string> users;  // key -> "upstream mailbox: server 10.0.0.2:25"
  Health health;
  uint32_t passes = 0;  // in a row
  Clock::time_point next;
  bool running = false;
  Clock::time_point started;   // when running
  std::vector<Endpoint> left;  // addresses still to be tried in this check
  std::unique_ptr<Probe> probe;
  milliseconds took{0};
  bool unreachable = false;       // the last check reached no address
  bool starved = false;           // this check could not dial an address: none is known to fail
  std::optional<IpAddress> good;  // passed last: tried first
  std::optional<Clock::time_point> suspected;
};

struct Change {
  std::string key;
  Health health;
};

}  // namespace

const char* text(State state) {
  switch (state) {
    case State::unknown:
      return "unknown";
    case State::up:
      return "up";
    case State::down:
      return "down";
  }
  return "";
}

std::string Target::key_of(std::string_view upstream, std::string_view server_text) {
  return std::string(upstream) + "/" + std::string(server_text);
}

std::vector<Target> targets_of(const config::Config& config) {
  std::vector<Target> all;
  for (const config::Upstream& u : config.upstreams) {
    if (!u.check) continue;
    for (const config::Server& s : u.servers)
      all.push_back({u.name, s, *u.check, u.proxy_protocol, u.family, u.source});
  }
  return all;
}

struct Checker::Impl {
  explicit Impl(dns::Resolver& r) : resolver(r) {}

  void run();
  bool turn(std::vector<pollfd>* polled, std::vector<Probe*>* probes, int* timeout_ms);
  void begin(Check& c, Clock::time_point now);
  void on_answer(Check& c, const dns::Answer& answer, Clock::time_point now);
  void dial_next(Check& c, Clock::time_point now);
  void follow(Check& c, Clock::time_point now);
  void conclude(Check& c, bool ok, Clock::time_point now);
  void judge(Check& c, bool ok);
  void enter(Check& c, State state, const std::string& what);
  milliseconds scaled(milliseconds duration, double least, double most);

  dns::Resolver& resolver;
  OnChange on_change;
  std::shared_ptr<Inbox> inbox = std::make_shared<Inbox>();
  std::thread thread;

  mutable std::mutex mutex;  // guards what follows; a probe's words are only read and written on the thread
  std::map<std::string, Check> checks;  // by subject
  std::map<std::string, Check*> by_key;
  std::list<std::unique_ptr<Probe>> parting;  // saying goodbye, or of a target that is gone
  std::vector<Change> changes;                // not told yet
  uint64_t last_number = 0;
  std::minstd_rand random{std::random_device{}()};
  bool stopping = false;
};

Checker::Checker(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Result<std::unique_ptr<Checker>> Checker::start(dns::Resolver& resolver, OnChange on_change) {
  auto impl = std::make_unique<Impl>(resolver);
  impl->on_change = std::move(on_change);
  impl->inbox->wake.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!impl->inbox->wake.valid()) return Error{std::string("checks: eventfd: ") + std::strerror(errno)};
  sigset_t before;
  block_daemons_signals(&before);  // the thread inherits it
  std::string failure;
  try {
    impl->thread = std::thread([i = impl.get()] { i->run(); });
  } catch (const std::system_error& e) {
    failure = e.what();
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (!failure.empty()) return Error{"checks: cannot start a thread: " + failure};
  pthread_setname_np(impl->thread.native_handle(), "checks");
  return std::unique_ptr<Checker>(new Checker(std::move(impl)));
}

Checker::~Checker() {
  {
    std::lock_guard lock(impl_->mutex);
    impl_->stopping = true;
  }
  impl_->inbox->wake_up();
  impl_->thread.join();
}

void Checker::set(const std::vector<Target>& targets) {
  std::lock_guard lock(impl_->mutex);
  const auto now = Clock::now();
  std::set<std::string> wanted;
  std::map<std::string, std::map<std::string, std::string>> users;
  std::map<std::string, Check*> before;
  before.swap(impl_->by_key);
  for (const Target& t : targets) {
    const std::string subject = subject_of(t);
    auto [at, is_new] = impl_->checks.try_emplace(subject);
    Check& c = at->second;
    if (wanted.insert(subject).second) c.users.clear();
    c.users[t.key()] = fmt::format("upstream {}: server {}", t.upstream, t.server.text);
    impl_->by_key[t.key()] = &c;
    if (is_new) {
      c.number = ++impl_->last_number;
      c.target = t;
      c.health.since = std::chrono::system_clock::now();
      c.next = now + impl_->scaled(std::min(kFirstWithin, t.check.interval), 0, 1);
    } else if (auto was = before.find(t.key());
               c.health.state != State::unknown && (was == before.end() || was->second != &c)) {
      impl_->changes.push_back({t.key(), c.health});
    }
  }
  for (auto at = impl_->checks.begin(); at != impl_->checks.end();) {
    if (wanted.contains(at->first)) {
      ++at;
      continue;
    }
    if (at->second.probe) impl_->parting.push_back(std::move(at->second.probe));
    at = impl_->checks.erase(at);
  }
  impl_->inbox->wake_up();
}

void Checker::suspect(const std::string& key, std::string_view reason) {
  std::lock_guard lock(impl_->mutex);
  auto at = impl_->by_key.find(key);
  if (at == impl_->by_key.end()) return;
  Check& c = *at->second;
  const auto now = Clock::now();
  if (c.health.state == State::down || (c.suspected && now - *c.suspected < kSuspicionGap)) return;
  c.suspected = now;
  c.health.failure = Failure::unreachable;
  c.health.reason = fmt::format("a flow could not be connected: {}", reason);
  impl_->judge(c, false);
  if (!c.running) c.next = now;
  impl_->inbox->wake_up();
}

std::optional<Health> Checker::health(const std::string& key) const {
  std::lock_guard lock(impl_->mutex);
  auto at = impl_->by_key.find(key);
  return at == impl_->by_key.end() ? std::nullopt : std::optional(at->second->health);
}

void Checker::Impl::run() {
  std::vector<pollfd> polled;
  std::vector<Probe*> probes;
  for (;;) {
    int timeout_ms = 0;
    if (!turn(&polled, &probes, &timeout_ms)) return;
    std::vector<Change> told;
    {
      std::lock_guard lock(mutex);
      told.swap(changes);
    }
    for (const Change& change : told) on_change(change.key, change.health);
    const int ready = ::poll(polled.data(), polled.size(), timeout_ms);
    PENSTOCK_ASSERT(ready >= 0 || errno == EINTR || errno == ENOMEM);
    if (ready <= 0) continue;
    // Without the mutex: a handshake takes its time, and no other thread touches or destroys a probe.
    const auto now = Clock::now();
    for (size_t i = 0; i < probes.size(); i++)
      if (polled[i + 1].revents != 0) probes[i]->advance(now);
  }
}

// Everything that is due, then what to wait for. False: the end.
bool Checker::Impl::turn(std::vector<pollfd>* polled, std::vector<Probe*>* probes, int* timeout_ms) {
  eventfd_t count;
  ::eventfd_read(inbox->wake.get(), &count);
  std::vector<std::pair<uint64_t, dns::Answer>> answers;
  {
    std::lock_guard lock(inbox->mutex);
    answers.swap(inbox->answers);
  }
  std::lock_guard lock(mutex);
  const auto now = Clock::now();
  auto until = Clock::time_point::max();
  polled->assign({{inbox->wake.get(), POLLIN, 0}});
  probes->clear();
  const auto wait_for = [&](Probe& p) {
    polled->push_back(p.wanted());
    probes->push_back(&p);
    until = std::min(until, p.deadline());
  };
  for (auto& [subject, c] : checks) {
    for (const auto& [number, answer] : answers)
      if (number == c.number) on_answer(c, answer, now);
    if (stopping) {
      if (c.probe) c.probe->leave(now), parting.push_back(std::move(c.probe));
      continue;
    }
    if (!c.running && c.next <= now) begin(c, now);
    follow(c, now);
    if (c.probe) wait_for(*c.probe);
    if (!c.running) until = std::min(until, c.next);
  }
  for (auto& p : parting) {
    if (stopping) p->leave(now);
    if (!p->done() && p->deadline() <= now) p->advance(now);
  }
  parting.remove_if([](const auto& p) { return p->done(); });
  for (auto& p : parting) wait_for(*p);
  if (stopping && parting.empty()) return false;
  *timeout_ms =
      until == Clock::time_point::max()
          ? -1
          : static_cast<int>(std::max<int64_t>(0, std::chrono::ceil<milliseconds>(until - now).count()));
  return true;
}

void Checker::Impl::begin(Check& c, Clock::time_point now) {
  c.running = true;
  c.started = now;
  c.took = milliseconds(0);
  c.starved = false;
  if (c.target.server.address) {
    c.left = {Endpoint{.address = *c.target.server.address, .port = port_of(c.target)}};
    return dial_next(c, now);
  }
  auto done = [box = inbox, number = c.number](const dns::Answer& answer) {
    {
      std::lock_guard lock(box->mutex);
      box->answers.emplace_back(number, answer);
    }
    box->wake_up();
  };
  const dns::Family family = dns_family(c.target.family);
  if (c.unreachable)  // the name may mean another address by now, whatever its TTL
    resolver.renew(c.target.server.host, family, std::move(done));
  else
    resolver.resolve(c.target.server.host, family, std::move(done));
}

void Checker::Impl::on_answer(Check& c, const dns::Answer& answer, Clock::time_point now) {
  c.left.clear();
  for (const IpAddress& a : answer.addresses) {
    if (c.target.source && c.target.source->is_v4() != a.is_v4()) continue;
    if (c.left.size() < kAddressesMax) c.left.push_back({.address = a, .port = port_of(c.target)});
  }
  if (c.left.empty()) {
    c.health.failure = Failure::resolve;
    c.health.reason =
        fmt::format("{}: {}", log::escaped(c.target.server.host),
                    answer.addresses.empty() ? answer.error : "no address of the source's family");
    return conclude(c, false, now);
  }
  std::stable_partition(c.left.begin(), c.left.end(), [&](const Endpoint& e) { return c.good == e.address; });
  dial_next(c, now);
}

void Checker::Impl::dial_next(Check& c, Clock::time_point now) {
  Order order;
  order.to = c.left.front();
  c.left.erase(c.left.begin());
  order.source = c.target.source;
  order.proxy_protocol =
      c.target.check.proxy == config::CheckProxy::off ? config::ProxyProtocol::off : c.target.proxy_protocol;
  order.local = c.target.check.proxy == config::CheckProxy::local;
  order.type = c.target.check.type;
  order.sni = !c.target.check.sni.empty() ? c.target.check.sni
              : c.target.server.address   ? ""
                                          : c.target.server.host;
  order.timeout = c.target.check.timeout;
  order.late = kLateMax;
  c.probe = std::make_unique<Probe>(std::move(order), now);
}

// From verdict to verdict, address to address, until there is something to wait for.
void Checker::Impl::follow(Check& c, Clock::time_point now) {
  while (c.probe) {
    if (!c.probe->decided() && c.probe->deadline() <= now) c.probe->advance(now);
    if (!c.probe->decided()) return;
    const Outcome& o = c.probe->outcome();
    c.health.address = o.address;
    c.took += o.took;
    if (o.certificate) c.health.certificate = o.certificate;
    c.starved |= o.starved;
    if (o.ok) {
      c.good = o.address.address;
    } else {
      c.health.failure = o.failure;
      c.health.reason = c.target.server.address ? o.reason : o.address.text() + ": " + o.reason;
    }
    const bool ok = o.ok;
    auto leaving = std::move(c.probe);
    if (!leaving->done()) parting.push_back(std::move(leaving));
    if (!ok && !c.left.empty())
      dial_next(c, now);
    else
      conclude(c, ok, now);
  }
}

void Checker::Impl::conclude(Check& c, bool ok, Clock::time_point now) {
  c.running = false;
  c.left.clear();
  c.unreachable = !ok && c.health.failure != Failure::resolve;
  c.health.checked = std::chrono::system_clock::now();
  c.health.took = c.took;
  c.health.checks++;
  if (!ok) c.health.failed++;
  if (ok || !c.starved) judge(c, ok);  // a server is not down for what we lack
  const milliseconds interval = c.target.check.interval;
  if (c.health.state == State::up)
    c.next = c.started + scaled(interval, 1 - kJitter, 1 + kJitter);
  else if (c.passes == 0)
    c.next = c.started + scaled(interval / 2, 1 - kJitter, 1);  // half an interval to see it,
  else
    c.next = now + interval / 2 / std::max(1u, c.target.check.rise);  // the other half to be sure
  c.next = std::max(c.next, now + kGapMin);
}

void Checker::Impl::judge(Check& c, bool ok) {
  c.passes = ok ? c.passes + 1 : 0;
  const uint32_t failures = c.health.failed_in_a_row = ok ? 0 : c.health.failed_in_a_row + 1;
  const State state = c.health.state;
  const auto in_a_row = [](uint32_t n) { return n == 1 ? "1 check" : fmt::format("{} checks in a row", n); };
  if (ok && state != State::up && (state == State::unknown || c.passes >= c.target.check.rise))
    enter(c, State::up, fmt::format("is up ({})", in_a_row(c.passes)));
  if (!ok && state != State::down && (state == State::unknown || failures >= c.target.check.fall))
    enter(c, State::down, fmt::format("is down: {} ({})", c.health.reason, in_a_row(failures)));
}

void Checker::Impl::enter(Check& c, State state, const std::string& what) {
  if (c.health.state != State::unknown) c.health.changes++;
  c.health.state = state;
  c.health.since = std::chrono::system_clock::now();
  for (const auto& [key, who] : c.users) {
    state == State::down ? log::warn("{} {}", who, what) : log::info("{} {}", who, what);
    changes.push_back({key, c.health});
  }
}

milliseconds Checker::Impl::scaled(milliseconds duration, double least, double most) {
  const double factor = std::uniform_real_distribution<double>(least, most)(random);
  return milliseconds(static_cast<int64_t>(static_cast<double>(duration.count()) * factor));
}

}  // namespace penstock::check
