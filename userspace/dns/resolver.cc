// SPDX-License-Identifier: Apache-2.0
#include "dns/resolver.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <list>
#include <mutex>
#include <optional>
#include <span>
#include <system_error>
#include <thread>
#include <utility>

#include "base/assert.h"
#include "base/fd.h"
#include "dns/cache.h"
#include "dns/channel.h"

namespace penstock::dns {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kCachedMax = 4096;
constexpr size_t kNameBytesMax = 253;  // RFC 1035 2.3.4, as text
constexpr size_t kLabelBytesMax = 63;
constexpr std::chrono::seconds kFailureTtl{1};

bool is_label_byte(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
}

// The name in lower case, or nothing when it cannot be one. A trailing dot stays: it keeps the search list
// away.
std::optional<std::string> canonical(std::string_view text) {
  std::string name(text.substr(0, kNameBytesMax + 2));
  size_t end = name.ends_with('.') ? name.size() - 1 : name.size();
  if (end == 0 || end > kNameBytesMax) return std::nullopt;
  size_t label_bytes = 0;
  for (char& c : std::span(name).first(end)) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    if (c == '.' ? label_bytes == 0 : !is_label_byte(c)) return std::nullopt;
    label_bytes = c == '.' ? 0 : label_bytes + 1;
    if (label_bytes > kLabelBytesMax) return std::nullopt;
  }
  return label_bytes == 0 ? std::nullopt : std::optional(std::move(name));
}

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

}  // namespace

struct Resolver::Impl {
  struct Question {
    uint64_t id = 0;  // tells a question from a later one for the same key
    std::vector<Done> waiters;
  };
  struct Asked {
    Key key;
    uint64_t id;
    Clock::time_point deadline;
  };

  explicit Impl(std::vector<std::string> s) : servers(std::move(s)) {}

  void run();
  void ask_new();
  void give_up_late();
  void finish(const Key& key, uint64_t id, const Channel::Outcome& outcome);
  void follow_resolv_conf();
  void wait_and_process();
  void wake_up() const;

  const std::vector<std::string> servers;
  Fd wake;
  std::thread thread;

  std::mutex mutex;  // guards these; no `done` and no c-ares call runs under it
  Cache cache{kCachedMax};
  std::map<Key, Question> questions;  // in flight
  std::vector<Asked> to_ask;          // of those, the ones c-ares has not heard of
  uint64_t last_id = 0;
  bool stopping = false;

  // The resolver's thread alone. The last channel takes new questions; those before it were opened for an
  // older resolv.conf and end when they are idle.
  std::list<std::unique_ptr<Channel>> channels;
  std::deque<Asked> by_deadline;
  FileStamp resolv_conf;
};

Resolver::Resolver(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Result<std::unique_ptr<Resolver>> Resolver::start(const std::vector<std::string>& servers) {
  auto impl = std::make_unique<Impl>(servers);
  impl->wake.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!impl->wake.valid()) return Error{std::string("DNS: eventfd: ") + std::strerror(errno)};
  impl->resolv_conf = FileStamp::of(kResolvConf);
  auto channel = Channel::open(servers);
  if (!channel) return channel.error();
  impl->channels.push_back(std::move(channel).value());
  // The thread takes no signal: those are the daemon's.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
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
  auto canonical_name = canonical(name);
  if (!canonical_name) return done({{}, "not a host name"});
  Key key{std::move(*canonical_name), family};
  std::unique_lock lock(impl_->mutex);
  if (impl_->stopping) {
    lock.unlock();
    return done({{}, "the resolver stopped"});
  }
  auto now = Clock::now();
  if (const Answer* cached = impl_->cache.find(key, now)) {
    Answer answer = *cached;
    lock.unlock();
    return done(answer);
  }
  auto [question, is_new] = impl_->questions.try_emplace(key);
  question->second.waiters.push_back(std::move(done));
  if (!is_new) return;
  question->second.id = ++impl_->last_id;
  impl_->to_ask.push_back({std::move(key), question->second.id, now + kAnswerMax});
  lock.unlock();
  impl_->wake_up();
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
    give_up_late();
    wait_and_process();
  }
  channels.clear();
  std::map<Key, Question> left;
  {
    std::lock_guard lock(mutex);
    left.swap(questions);
  }
  for (auto& [key, question] : left) {
    for (auto& done : question.waiters) done({{}, "the resolver stopped"});
  }
}

void Resolver::Impl::ask_new() {
  std::vector<Asked> asking;
  {
    std::lock_guard lock(mutex);
    asking.swap(to_ask);
  }
  if (asking.empty()) return;
  follow_resolv_conf();
  for (auto& a : asking) {
    by_deadline.push_back(a);
    channels.back()->lookup(
        a.key.name, a.key.family,
        [this, key = a.key, id = a.id](Channel::Outcome outcome) { finish(key, id, outcome); });
  }
}

void Resolver::Impl::follow_resolv_conf() {
  if (!servers.empty()) return;
  auto stamp = FileStamp::of(kResolvConf);
  if (stamp == resolv_conf) return;
  auto channel = Channel::open(servers);
  if (!channel) return;  // out of memory or descriptors: the old servers serve, the next question tries again
  resolv_conf = stamp;
  channels.push_back(std::move(channel).value());
}

// c-ares gives up by itself, but walks a search list first: nobody waits for that longer than kAnswerMax.
void Resolver::Impl::give_up_late() {
  auto now = Clock::now();
  while (!by_deadline.empty() && by_deadline.front().deadline <= now) {
    Asked late = std::move(by_deadline.front());
    by_deadline.pop_front();
    finish(late.key, late.id, {{{}, "timeout"}, {}});
  }
}

// An answer later than its deadline finds no question, but is worth remembering; a failure then is not.
void Resolver::Impl::finish(const Key& key, uint64_t id, const Channel::Outcome& outcome) {
  std::vector<Done> waiters;
  {
    std::lock_guard lock(mutex);
    auto question = questions.find(key);
    bool is_mine = question != questions.end() && question->second.id == id;
    bool failed = outcome.answer.addresses.empty();
    if (is_mine || !failed)
      cache.store(key, outcome.answer, failed ? kFailureTtl : outcome.ttl, Clock::now());
    if (is_mine) {
      waiters.swap(question->second.waiters);
      questions.erase(question);
    }
  }
  for (auto& done : waiters) done(outcome.answer);
}

void Resolver::Impl::wait_and_process() {
  channels.remove_if([this](const auto& c) { return c != channels.back() && c->idle(); });
  std::vector<pollfd> polled{{wake.get(), POLLIN, 0}};
  for (const auto& c : channels) c->add_to(&polled);
  int timeout_ms = -1;
  bool idle = std::all_of(channels.begin(), channels.end(), [](const auto& c) { return c->idle(); });
  if (!idle || !by_deadline.empty()) {
    auto left = kAnswerMax;
    if (!by_deadline.empty()) {
      auto deadline =
          std::chrono::ceil<std::chrono::milliseconds>(by_deadline.front().deadline - Clock::now());
      left = std::max(deadline, std::chrono::milliseconds(0));
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
