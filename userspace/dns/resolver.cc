// SPDX-License-Identifier: Apache-2.0
#include "dns/resolver.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <list>
#include <map>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "base/assert.h"
#include "base/fd.h"
#include "base/signals.h"
#include "dns/cache.h"
#include "dns/channel.h"
#include "dns/name.h"

namespace penstock::dns {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kCachedMax = 4096;
// Tells one version of resolv.conf from the next; all zero while there is none.
struct FileStamp {
  dev_t device = 0;
  ino_t inode = 0;
  off_t size = 0;
  int64_t modified_s = 0;
  int64_t modified_ns = 0;
  bool operator==(const FileStamp&) const = default;
  static FileStamp of(const char* path) {
    struct stat s;
    if (::stat(path, &s) != 0) return {};
    return {s.st_dev, s.st_ino, s.st_size, s.st_mtim.tv_sec, s.st_mtim.tv_nsec};
  }
};

constexpr const char* kResolvConf = "/etc/resolv.conf";

Answer failed(const char* error) {
  Answer answer;
  answer.error = error;
  return answer;
}
Answer stopped() {
  return failed("the resolver stopped");
}

}  // namespace

struct Resolver::Impl {
  struct Question {
    uint64_t id = 0;  // tells a question from a later one for the same key
    Clock::time_point asked;
    std::vector<Done> waiters;
    std::vector<Done> impatient;  // take the stale answer kStaleWait after `asked`
  };
  struct Asked {
    Key key;
    uint64_t id;
    Clock::time_point at;
  };
  struct Delivery {
    Answer answer;
    std::vector<Done> waiters, impatient;
  };

  explicit Impl(const Options& o) : options(o), cache(kCachedMax, o) {}

  void resolve(const Key& key, Done done);
  void renew(const Key& key, Done done);
  Question& question(const Key& key, Clock::time_point now);
  void give(const Done& done, const Answer& answer);
  void deliver(const Delivery& delivery);

  void run();
  void ask_new();
  void follow_servers();
  void finish(const Asked& asked, const Channel::Outcome& outcome);
  Clock::time_point serve_overdue();
  void wait_and_process(Clock::time_point until);
  void wake_up() const;

  Fd wake;
  std::thread thread;
  std::atomic<uint64_t> answered{0}, no_such_name{0}, failures{0}, stale_served{0};

  std::mutex mutex;  // guards these; no `done` and no c-ares call runs under it
  Options options;
  Cache cache;
  std::map<Key, Question> questions;  // in flight
  std::vector<Asked> to_ask;          // of those, the ones c-ares has not heard of
  uint64_t last_id = 0;
  uint64_t last_id_of_former_servers = 0;
  bool stopping = false;

  // The resolver's thread alone. The last channel takes new questions; those before it were opened for other
  // servers and end when they are idle.
  std::list<std::unique_ptr<Channel>> channels;
  std::vector<Endpoint> servers;  // of the last channel, as is the next
  FileStamp resolv_conf;
};

Resolver::Resolver(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Result<std::unique_ptr<Resolver>> Resolver::start(const Options& options) {
  PENSTOCK_ASSERT(options.ttl_min <= options.ttl_max);
  auto impl = std::make_unique<Impl>(options);
  impl->wake.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!impl->wake.valid()) return Error{std::string("DNS: eventfd: ") + std::strerror(errno)};
  impl->servers = options.servers;
  impl->resolv_conf = FileStamp::of(kResolvConf);
  auto channel = Channel::open(options.servers);
  if (!channel) return channel.error();
  impl->channels.push_back(std::move(channel).value());
  sigset_t before;
  block_daemons_signals(&before);  // the thread inherits it
  std::string failure;
  try {
    impl->thread = std::thread([i = impl.get()] { i->run(); });
  } catch (const std::system_error& e) {
    failure = e.what();
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (!failure.empty()) return Error{"DNS: cannot start a thread: " + failure};
  pthread_setname_np(impl->thread.native_handle(), "dns");
  return std::unique_ptr<Resolver>(new Resolver(std::move(impl)));
}

Resolver::~Resolver() {
  {
    std::lock_guard lock(impl_->mutex);
    impl_->stopping = true;
  }
  impl_->wake_up();
  impl_->thread.join();
}

void Resolver::resolve(std::string_view name, Family family, Done done) {
  auto text = canonical(name);
  if (!text) return done(failed("not a host name"));
  impl_->resolve({std::move(*text), family}, std::move(done));
}

void Resolver::resolve_srv(std::string_view name, Done done) {
  auto text = canonical(name);
  if (!text) return done(failed("not a host name"));
  impl_->resolve({std::move(*text), Family::any, true}, std::move(done));
}

void Resolver::renew(std::string_view name, Family family, Done done) {
  auto text = canonical(name);
  if (!text) return done(failed("not a host name"));
  impl_->renew({std::move(*text), family}, std::move(done));
}

void Resolver::renew_srv(std::string_view name, Done done) {
  auto text = canonical(name);
  if (!text) return done(failed("not a host name"));
  impl_->renew({std::move(*text), Family::any, true}, std::move(done));
}

Counters Resolver::counters() const {
  return {impl_->answered, impl_->no_such_name, impl_->failures, impl_->stale_served};
}

void Resolver::configure(const Options& options) {
  PENSTOCK_ASSERT(options.ttl_min <= options.ttl_max);
  {
    std::lock_guard lock(impl_->mutex);
    if (options == impl_->options) return;
    bool other_servers = options.servers != impl_->options.servers;
    impl_->options = options;
    impl_->cache.configure(options, Clock::now());
    if (!other_servers) return;
    // What is in flight is asked once more, of the new servers; the deadlines stay.
    impl_->last_id_of_former_servers = impl_->last_id;
    impl_->to_ask.clear();
    for (auto& [key, question] : impl_->questions) {
      question.id = ++impl_->last_id;
      impl_->to_ask.push_back({key, question.id, question.asked});
    }
  }
  impl_->wake_up();
}

void Resolver::Impl::resolve(const Key& key, Done done) {
  std::unique_lock lock(mutex);
  if (stopping) {
    lock.unlock();
    return done(stopped());
  }
  auto now = Clock::now();
  auto [step, answer] = cache.find(key, now);
  auto in_flight = questions.find(key);
  if (step == Cache::Step::ask) {
    question(key, now).waiters.push_back(std::move(done));
  } else if (step == Cache::Step::ask_briefly &&
             (in_flight == questions.end() || now < in_flight->second.asked + kStaleWait)) {
    auto& impatient = question(key, now).impatient;
    impatient.push_back(std::move(done));
    if (impatient.size() == 1) wake_up();  // the thread counts the wait
  } else {
    if (step == Cache::Step::serve_and_ask) question(key, now);
    Answer served = *answer;
    lock.unlock();
    give(done, served);
  }
}

void Resolver::Impl::give(const Done& done, const Answer& answer) {
  if (answer.stale) stale_served++;
  done(answer);
}

void Resolver::Impl::deliver(const Delivery& delivery) {
  for (const auto& done : delivery.waiters) give(done, delivery.answer);
  for (const auto& done : delivery.impatient) give(done, delivery.answer);
}

void Resolver::Impl::renew(const Key& key, Done done) {
  std::unique_lock lock(mutex);
  if (stopping) {
    lock.unlock();
    return done(stopped());
  }
  auto now = Clock::now();
  const Answer* lately = questions.contains(key) ? nullptr : cache.asked_lately(key, now);
  if (!lately) {
    question(key, now).waiters.push_back(std::move(done));
    return;
  }
  Answer served = *lately;
  lock.unlock();
  give(done, served);
}

// The one in flight, which is asked now if there is none. REQUIRES: the lock
Resolver::Impl::Question& Resolver::Impl::question(const Key& key, Clock::time_point now) {
  auto [at, is_new] = questions.try_emplace(key);
  if (is_new) {
    at->second.id = ++last_id;
    at->second.asked = now;
    to_ask.push_back({key, at->second.id, now});
    wake_up();
  }
  return at->second;
}

void Resolver::Impl::wake_up() const {
  uint64_t one = 1;
  // The counter can only be full (EAGAIN) when the thread has yet to wake up anyway.
  ssize_t n = ::write(wake.get(), &one, sizeof one);
  PENSTOCK_ASSERT(n == sizeof one || errno == EAGAIN);
}

void Resolver::Impl::run() {
  for (;;) {
    {
      std::lock_guard lock(mutex);
      if (stopping) break;
    }
    ask_new();
    wait_and_process(serve_overdue());
  }
  channels.clear();
  std::map<Key, Question> left;
  {
    std::lock_guard lock(mutex);
    left.swap(questions);
  }
  for (auto& [key, question] : left) {
    deliver({stopped(), std::move(question.waiters), std::move(question.impatient)});
  }
}

void Resolver::Impl::ask_new() {
  std::vector<Asked> asking;
  {
    std::lock_guard lock(mutex);
    asking.swap(to_ask);
  }
  if (asking.empty()) return;
  follow_servers();
  for (auto& asked : asking) {
    auto done = [this, asked](const Channel::Outcome& outcome) { finish(asked, outcome); };
    if (asked.key.srv) {
      channels.back()->lookup_srv(asked.key.name, done);
    } else {
      channels.back()->lookup(asked.key.name, asked.key.family, done);
    }
  }
}

void Resolver::Impl::follow_servers() {
  std::vector<Endpoint> wanted;
  {
    std::lock_guard lock(mutex);
    wanted = options.servers;
  }
  auto stamp = wanted.empty() ? FileStamp::of(kResolvConf) : FileStamp{};
  if (wanted == servers && (!wanted.empty() || stamp == resolv_conf)) return;
  auto channel = Channel::open(wanted);
  if (!channel) return;  // the former servers serve, the next question tries again
  servers = std::move(wanted);
  resolv_conf = stamp;
  channels.push_back(std::move(channel).value());
}

// What comes later than its deadline finds no question, but is worth remembering when it is good.
void Resolver::Impl::finish(const Asked& asked, const Channel::Outcome& outcome) {
  Delivery delivery;
  {
    std::lock_guard lock(mutex);
    auto now = Clock::now();
    auto question = questions.find(asked.key);
    bool is_mine = question != questions.end() && question->second.id == asked.id;
    bool is_late = !is_mine && outcome.answer.found() && asked.id > last_id_of_former_servers;
    if (!is_mine && !is_late) return;
    delivery.answer = outcome.answered ? cache.store(asked.key, outcome.answer, outcome.ttl, asked.at, now)
                                       : cache.store_failure(asked.key, outcome.answer.error, asked.at, now);
    if (is_mine) {
      (!outcome.answered ? failures : outcome.answer.found() ? answered : no_such_name)++;
      delivery.waiters.swap(question->second.waiters);
      delivery.impatient.swap(question->second.impatient);
      questions.erase(question);
    }
  }
  deliver(delivery);
}

// Hands out stale answers where kStaleWait is over. c-ares gives up by itself, but walks a search list first:
// nobody waits for that longer than kAnswerMax. Returns when to look again.
Clock::time_point Resolver::Impl::serve_overdue() {
  std::vector<Delivery> deliveries;
  auto next = Clock::time_point::max();
  {
    std::lock_guard lock(mutex);
    auto now = Clock::now();
    for (auto at = questions.begin(); at != questions.end();) {
      auto& [key, question] = *at;
      if (now >= question.asked + kAnswerMax) {
        failures++;
        deliveries.push_back({cache.store_failure(key, "timeout", question.asked, now),
                              std::move(question.waiters), std::move(question.impatient)});
        at = questions.erase(at);
        continue;
      }
      if (!question.impatient.empty() && now >= question.asked + kStaleWait) {
        if (const Answer* stale = cache.find(key, now).answer) {
          deliveries.push_back({*stale, {}, std::exchange(question.impatient, {})});
        } else {
          std::move(question.impatient.begin(), question.impatient.end(),
                    std::back_inserter(question.waiters));
          question.impatient.clear();
        }
      }
      next = std::min(next, question.asked + (question.impatient.empty() ? kAnswerMax : kStaleWait));
      ++at;
    }
  }
  for (const auto& delivery : deliveries) deliver(delivery);
  return next;
}

void Resolver::Impl::wait_and_process(Clock::time_point until) {
  channels.remove_if([this](const auto& c) { return c != channels.back() && c->idle(); });
  std::vector<pollfd> polled{{wake.get(), POLLIN, 0}};
  for (const auto& c : channels) c->add_to(&polled);
  int timeout_ms = -1;
  bool idle = std::all_of(channels.begin(), channels.end(), [](const auto& c) { return c->idle(); });
  if (!idle || until != Clock::time_point::max()) {
    auto left = kAnswerMax;
    if (until != Clock::time_point::max()) {
      left = std::clamp(std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()),
                        std::chrono::milliseconds(0), kAnswerMax);
    }
    for (const auto& c : channels) left = std::min(left, c->next_timeout(left));
    timeout_ms = static_cast<int>(left.count());
  }
  int ready = ::poll(polled.data(), polled.size(), timeout_ms);
  PENSTOCK_ASSERT(ready >= 0 || errno == EINTR || errno == ENOMEM);
  if (ready > 0 && polled[0].revents != 0) {
    uint64_t count;
    ssize_t n = ::read(wake.get(), &count, sizeof count);
    PENSTOCK_ASSERT(n == sizeof count);
  }
  for (const auto& c : channels) c->process(polled);
}

}  // namespace penstock::dns
