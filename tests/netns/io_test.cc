// SPDX-License-Identifier: Apache-2.0
// io/io.h as io_uring and as epoll keep it, on loopback sockets: each operation ends exactly once, no event
// is lost, none is told for ever, nothing wakes who did not ask.
#include "io/io.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <cerrno>
#include <functional>
#include <map>
#include <random>
#include <thread>
#include <vector>

#include "io/twins.h"
#include "support/netns.h"
#include "support/seccomp.h"
#include "support/tcp.h"

namespace penstock::test {
namespace {

using io::Completion;
using io::now_ns;
using io::Token;

constexpr uint32_t kWatched = POLLRDHUP | POLLERR | POLLHUP;

// What a thread to which this call is refused gets from `open`.
template <typename Open>
auto where_refused(int call, int error, Open open) {
  std::optional<Result<std::unique_ptr<io::Io>>> opened;
  std::thread([&] {
    EXPECT_TRUE(refuse_call(call, error));
    opened.emplace(open());
  }).join();
  return std::move(*opened);
}

std::unique_ptr<io::Io> must(Result<std::unique_ptr<io::Io>> opened) {
  if (!opened) throw std::runtime_error(opened.error().message);
  return std::move(*opened);
}

enum class Twin { io_uring, epoll, epoll_ms };

std::unique_ptr<io::Io> open(Twin twin) {
  switch (twin) {
    case Twin::io_uring:
      return must(io::open_io_uring(64));
    case Twin::epoll:
      return must(io::open_epoll("as the test wants it"));
    case Twin::epoll_ms:
      return must(
          where_refused(SYS_epoll_pwait2, ENOSYS, [] { return io::open_epoll("as the test wants it"); }));
  }
  return nullptr;
}

class Io : public testing::TestWithParam<Twin> {
 protected:
  struct Pair {
    TcpStream here, there;
  };

  Token poll(int fd, uint32_t events) {
    return begin([&](Token t) { io_->poll(fd, events, t); });
  }
  Token poll(const TcpStream& s, uint32_t events) { return poll(s.fd(), events); }
  Token poll_each(const TcpStream& s, uint32_t events) {
    return begin([&](Token t) { io_->poll_each(s.fd(), events, t); });
  }
  Token accept(int listener) {
    return begin([&](Token t) { io_->accept(listener, t); });
  }
  Token connect(int fd, const Endpoint& to) {
    return begin([&](Token t) { io_->connect(fd, to, t); });
  }
  void cancel(Token t) { io_->cancel(t); }

  // The next completion of this operation; those of others wait until they are asked for.
  Completion next(Token token) {
    const uint64_t until_ns = now_ns() + std::chrono::nanoseconds(kPatience).count();
    for (;;) {
      for (auto c = arrived_.begin(); c != arrived_.end(); ++c) {
        if (c->token != token) continue;
        const Completion found = *c;
        arrived_.erase(c);
        return found;
      }
      if (now_ns() >= until_ns) throw std::runtime_error("no completion came");
      turn(until_ns);
    }
  }
  void expect(Token token, int result, bool more) {
    const Completion c = next(token);
    EXPECT_EQ(c.result, result);
    EXPECT_EQ(c.more, more);
  }
  void expect_once(Token token, int result) { expect(token, result, false); }
  void expect_each(Token token, int result) { expect(token, result, true); }
  // Whatever it does, it does nothing that comes back to us.
  testing::AssertionResult silent(milliseconds how_long = 30ms) {
    const uint64_t until_ns = now_ns() + std::chrono::nanoseconds(how_long).count();
    uint64_t turns = 0;
    for (; now_ns() < until_ns && arrived_.empty(); ++turns) turn(until_ns);
    if (turns > 10) return testing::AssertionFailure() << turns << " turns without news: it spins";
    if (arrived_.empty()) return testing::AssertionSuccess();
    return testing::AssertionFailure() << "operation " << arrived_[0].token << ": " << arrived_[0].result;
  }

  void turn(uint64_t until_ns) {
    io_->run(until_ns, [&](const Completion& c) {
      EXPECT_FALSE(delivering_) << "called back from within a call back";
      delivering_ = true;
      EXPECT_EQ(in_flight_.count(c.token), 1u) << c.token << " has ended already";
      if (!c.more) in_flight_.erase(c.token);
      arrived_.push_back(c);
      if (on_completion_) on_completion_(c);
      delivering_ = false;
    });
  }

  Pair pair() {
    const TcpListener listener(at("127.0.0.1", 0));
    TcpStream here = TcpStream::connect(listener.address());
    return {std::move(here), listener.accept()};
  }
  // Until no more fits; how much did.
  static size_t fill(const TcpStream& s) {
    const std::string block(65536, 'x');
    size_t sent = 0;
    for (ssize_t n; (n = ::send(s.fd(), block.data(), block.size(), MSG_DONTWAIT | MSG_NOSIGNAL)) > 0;)
      sent += static_cast<size_t>(n);
    return sent;
  }

  void TearDown() override {
    for (const auto& [token, _] : std::map(in_flight_)) cancel(token);
    EXPECT_TRUE([&] {
      for (const uint64_t until_ns = now_ns() + 5'000'000'000; !in_flight_.empty() && now_ns() < until_ns;)
        turn(until_ns);
      return in_flight_.empty();
    }());
    arrived_.clear();
    EXPECT_TRUE(silent());
  }

  Netns netns_;
  Netns::Inside inside_{netns_};
  std::unique_ptr<io::Io> io_ = open(GetParam());
  std::map<Token, bool> in_flight_;
  std::vector<Completion> arrived_;
  std::function<void(const Completion&)> on_completion_;

 private:
  Token begin(const std::function<void(Token)>& start) {
    const Token t = ++last_token_;
    in_flight_[t] = true;
    start(t);
    return t;
  }
  Token last_token_ = 0;
  bool delivering_ = false;
};
std::string twin_name(const testing::TestParamInfo<Twin>& info) {
  const char* names[] = {"io_uring", "epoll", "epoll_ms"};
  return names[static_cast<int>(info.param)];
}
INSTANTIATE_TEST_SUITE_P(twin, Io, testing::Values(Twin::io_uring, Twin::epoll, Twin::epoll_ms), twin_name);

// ---- poll ----

TEST_P(Io, PollSaysWhatHoldsAlready) {
  auto [here, there] = pair();
  there.send_all("x");
  expect_once(poll(here, POLLIN), POLLIN);
  expect_once(poll(here, POLLIN | POLLOUT), POLLIN | POLLOUT);  // nobody read: it holds still
}

TEST_P(Io, PollWaitsAndEndsWithTheFirst) {
  auto [here, there] = pair();
  const Token t = poll(here, POLLIN);
  EXPECT_TRUE(silent());
  there.send_all("x");
  expect_once(t, POLLIN);
  there.send_all("y");
  EXPECT_TRUE(silent());
}

TEST_P(Io, PollEachIsToldOfEachWakeUpAndOfNoneTwice) {
  auto [here, there] = pair();
  const Token t = poll_each(here, POLLIN);
  for (int i = 0; i < 3; ++i) {
    there.send_all("x");  // nobody reads
    expect_each(t, POLLIN);
    EXPECT_TRUE(silent());
  }
}

TEST_P(Io, PollEachBeginsWithWhatHoldsAlready) {
  auto [here, there] = pair();
  there.half_close();
  const Token t = poll_each(here, kWatched);
  expect_each(t, POLLRDHUP);
  EXPECT_TRUE(silent());
}

// A spliced flow: idle or busy, it wakes nobody until it ends.
TEST_P(Io, WatchSleepsThroughData) {
  auto [here, there] = pair();
  const Token t = poll_each(here, kWatched), bytes = poll(here, POLLIN);
  there.send_all("x");
  expect_once(bytes, POLLIN);
  EXPECT_TRUE(silent());  // who waited for bytes has them: they are no news any more
  std::thread sender([&peer = there] {
    for (int i = 1; i < 2000; ++i) peer.send_all("x");
    std::this_thread::sleep_for(20ms);  // the last of them is no news either
    peer.half_close();
  });
  rusage before{}, after{};
  ::getrusage(RUSAGE_THREAD, &before);
  expect_each(t, POLLRDHUP);
  ::getrusage(RUSAGE_THREAD, &after);
  sender.join();
  EXPECT_LE(after.ru_nvcsw - before.ru_nvcsw, 10);
  EXPECT_EQ(here.recv_exactly(2000).size(), 2000u);
}

// ---- several operations on one descriptor, as flow/ has them ----

TEST_P(Io, EachOfSeveralGetsItsOwn) {
  auto [here, there] = pair();
  const size_t sent = fill(here);
  const Token watch = poll_each(here, kWatched), in = poll(here, POLLIN | POLLRDHUP),
              out = poll(here, POLLOUT);
  EXPECT_TRUE(silent());
  there.send_all("x");
  expect_once(in, POLLIN);
  there.send_all("y");
  EXPECT_TRUE(silent());  // nobody waits for bytes any more
  there.recv_exactly(sent);
  expect_once(out, POLLOUT);
  there.half_close();
  expect_each(watch, POLLRDHUP);
}

TEST_P(Io, TwoForTheSameEvent) {
  auto [here, there] = pair();
  const Token first = poll(here, POLLIN), second = poll(here, POLLIN);
  there.send_all("x");
  expect_once(first, POLLIN);
  expect_once(second, POLLIN);
}

// The edge was consumed by the first, before the second was there.
TEST_P(Io, LaterOneStillHears) {
  auto [here, there] = pair();
  poll_each(here, POLLIN);
  there.send_all("x");
  expect_each(1, POLLIN);
  expect_once(poll(here, POLLIN), POLLIN);
}

TEST_P(Io, FinIsToldOnceHoweverOftenOthersBegin) {
  auto [here, there] = pair();
  const Token watch = poll_each(here, kWatched);
  there.half_close();
  expect_each(watch, POLLRDHUP);
  for (int i = 0; i < 10; ++i) {
    const Completion c = next(poll(here, POLLOUT));
    EXPECT_EQ(c.result & ~POLLRDHUP, POLLOUT);  // io_uring adds it unasked
    EXPECT_FALSE(c.more);
  }
  EXPECT_TRUE(arrived_.empty());
  EXPECT_TRUE(silent());
}

TEST_P(Io, ResetEndsWhatWaitsForAnythingElse) {
  auto [here, there] = pair();
  fill(here);
  const Token watch = poll_each(here, kWatched), in = poll(here, POLLIN), out = poll(here, POLLOUT);
  EXPECT_TRUE(silent());
  there.reset();
  for (const Token t : {in, out}) {
    const Completion c = next(t);
    EXPECT_TRUE(c.result & (POLLERR | POLLHUP)) << c.result;
    EXPECT_FALSE(c.more);
  }
  EXPECT_TRUE(next(watch).result & POLLERR);
}

// Both ways shut: POLLHUP holds for ever, and epoll would report it for ever.
TEST_P(Io, HangUpDoesNotSpin) {
  auto [here, there] = pair();
  const Token watch = poll_each(here, kWatched);
  there.half_close();
  expect_each(watch, POLLRDHUP);
  here.half_close();
  EXPECT_TRUE(next(watch).result & POLLHUP);
  arrived_.clear();
  EXPECT_TRUE(silent());
  EXPECT_TRUE(next(poll(here, POLLIN)).result & POLLHUP);  // asked for, it is told
}

// ---- accept ----

class Listener {
 public:
  Listener() : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)) {
    sockaddr_storage a{};
    const socklen_t size = at("127.0.0.1", kPort).to_sockaddr(&a);
    if (::bind(fd_.get(), reinterpret_cast<sockaddr*>(&a), size) || ::listen(fd_.get(), 1024))
      throw std::runtime_error("no listener");
  }
  int fd() const { return fd_.get(); }
  static TcpStream client() { return TcpStream::connect(at("127.0.0.1", kPort)); }
  static constexpr uint16_t kPort = 4000;

 private:
  Fd fd_;
};

TEST_P(Io, AcceptsManyUntilItIsCancelled) {
  const Listener listener;
  std::vector<TcpStream> clients;
  for (int i = 0; i < 150; ++i) clients.push_back(Listener::client());  // there before anybody accepts
  const Token t = accept(listener.fd());
  for (int i = 0; i < 300; ++i) {
    if (i >= 150) clients.push_back(Listener::client());
    const Completion c = next(t);
    ASSERT_GE(c.result, 0);
    EXPECT_TRUE(c.more);
    const Fd accepted(c.result);
    EXPECT_TRUE(::fcntl(c.result, F_GETFL) & O_NONBLOCK);
    EXPECT_TRUE(::fcntl(c.result, F_GETFD) & FD_CLOEXEC);
  }
  cancel(t);
  expect_once(t, -ECANCELED);
  clients.push_back(Listener::client());
  EXPECT_TRUE(silent());
  const Completion c = next(accept(listener.fd()));
  EXPECT_GE(c.result, 0);
  const Fd accepted(c.result);
}

TEST_P(Io, AcceptEndsWithoutDescriptors) {
  const Listener listener;
  const TcpStream client = Listener::client();
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  const Fd lowest_free(::dup(0));
  const rlimit none_left{static_cast<rlim_t>(lowest_free.get() + 1), limit.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none_left), 0);
  expect_once(accept(listener.fd()), -EMFILE);
  EXPECT_TRUE(silent());
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
  const Completion c = next(accept(listener.fd()));
  EXPECT_GE(c.result, 0);  // the queue has kept it
  const Fd accepted(c.result);
}

// ---- connect ----

Fd tcp_socket() {
  return Fd(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
}

TEST_P(Io, ConnectSucceeds) {
  const Listener listener;
  const Fd fd = tcp_socket();
  expect_once(connect(fd.get(), at("127.0.0.1", Listener::kPort)), 0);
  expect_once(poll(fd.get(), POLLOUT), POLLOUT);
}

TEST_P(Io, ConnectFails) {
  const Fd refused = tcp_socket(), unreachable = tcp_socket();
  expect_once(connect(refused.get(), at("127.0.0.1", 4999)), -ECONNREFUSED);
  expect_once(connect(unreachable.get(), at("192.0.2.1", 4999)), -ENETUNREACH);
}

TEST_P(Io, ConnectIsCancelled) {
  const TcpListener full(at("127.0.0.1", 0), 0);
  const TcpStream in_the_way = TcpStream::connect(full.address());  // further SYNs are dropped
  const Fd fd = tcp_socket();
  const Token t = connect(fd.get(), full.address());
  EXPECT_TRUE(silent());
  cancel(t);
  expect_once(t, -ECANCELED);
}

// ---- cancel ----

TEST_P(Io, CancelEndsThatOneAlone) {
  auto [here, there] = pair();
  const Token watch = poll_each(here, kWatched), in = poll(here, POLLIN), other = poll(here, POLLIN);
  EXPECT_TRUE(silent());
  cancel(in);
  expect_once(in, -ECANCELED);
  there.send_all("x");
  expect_once(other, POLLIN);
  cancel(watch);
  expect_once(watch, -ECANCELED);
  there.half_close();
  EXPECT_TRUE(silent());
  cancel(watch);  // of what has ended: nothing
  EXPECT_TRUE(silent());
}

TEST_P(Io, CancelRacesWithTheEvent) {
  auto [here, there] = pair();
  for (int i = 0; i < 100; ++i) {
    const Token t = poll(here, POLLIN);
    if (i % 2) turn(0);
    there.send_all("x");
    if (i % 4 >= 2) turn(0);
    cancel(t);
    const Completion c = next(t);
    EXPECT_FALSE(c.more);
    EXPECT_TRUE(c.result == POLLIN || c.result == -ECANCELED) << c.result;
    here.recv_exactly(1);
  }
}

TEST_P(Io, CancelFromTheFirstOfSeveralCompletions) {
  auto [here, there] = pair();
  const Token watch = poll_each(here, POLLIN | kWatched), in = poll(here, POLLIN), out = poll(here, POLLIN);
  on_completion_ = [&, first = true](const Completion&) mutable {
    if (std::exchange(first, false))
      for (const Token t : {watch, in, out}) cancel(t);
  };
  there.send_all("x");
  for (const Token t : {in, out}) {
    const Completion c = next(t);
    EXPECT_TRUE(c.result == POLLIN || c.result == -ECANCELED) << c.result;
  }
  while (next(watch).more) {
  }
}

// ---- numbers of descriptors come back ----

TEST_P(Io, ClosedNumberIsAnotherSocket) {
  auto [old_here, old_there] = pair();
  auto [new_here, new_there] = pair();
  const int number = old_here.fd();
  const Fd still_open(::dup(number));  // epoll forgets a descriptor only with the last of these
  const Token first = poll(number, POLLIN), second = poll(number, POLLIN);
  cancel(second);
  expect_once(second, -ECANCELED);
  old_there.send_all("x");
  expect_once(first, POLLIN);
  ASSERT_EQ(::dup3(new_here.fd(), number, O_CLOEXEC), number);
  old_there.send_all("y");
  const Token t = poll(number, POLLIN);
  EXPECT_TRUE(silent());
  new_there.send_all("z");
  expect_once(t, POLLIN);
}

// A completion's owner may close at once, and what it opens next has the same number.
TEST_P(Io, ClosedAndReusedFromWithinTheCallBack) {
  for (int i = 0; i < 50; ++i) {
    auto [here, there] = pair();
    auto [again, again_there] = pair();
    const int number = here.fd();
    const Token first = poll(number, POLLIN);
    Token second = 0;
    on_completion_ = [&, &again = again](const Completion& c) {
      if (c.token != first) return;
      ::dup3(again.fd(), number, O_CLOEXEC);
      second = poll(number, POLLIN);
    };
    there.send_all("x");
    expect_once(first, POLLIN);
    EXPECT_TRUE(arrived_.empty());
    again_there.send_all("y");
    expect_once(second, POLLIN);
    on_completion_ = nullptr;
  }
}

// ---- time ----

TEST_P(Io, RunEndsAtItsDeadlineAndNotBefore) {
  uint64_t least_late_ns = UINT64_MAX;
  int early = 0;
  for (int i = 0; i < 50; ++i) {
    const uint64_t until_ns = now_ns() + 300'000;
    turn(until_ns);
    const uint64_t end_ns = now_ns();
    if (end_ns < until_ns)
      ++early;
    else
      least_late_ns = std::min(least_late_ns, end_ns - until_ns);
  }
  EXPECT_LE(early, 5);  // EINTR is allowed: a ring that has just been closed interrupts its thread
  EXPECT_LT(least_late_ns, GetParam() == Twin::epoll_ms ? 3'000'000u : 400'000u);
}

TEST_P(Io, PastDeadlineDoesNotWait) {
  auto [here, there] = pair();
  const Token t = poll(here, POLLIN);
  const uint64_t before_ns = now_ns();
  for (int i = 0; i < 100; ++i) turn(0);
  EXPECT_LT(now_ns() - before_ns, 500'000'000u);
  there.send_all("x");
  for (int i = 0; i < 100 && arrived_.empty(); ++i) turn(0);
  expect_once(t, POLLIN);
}

TEST_P(Io, WithoutADeadlineAnEventWakes) {
  auto [here, there] = pair();
  poll(here, POLLIN);
  std::thread sender([&peer = there] {
    std::this_thread::sleep_for(20ms);  // so that the other thread waits already, most of the time
    peer.send_all("x");
  });
  while (arrived_.empty()) turn(UINT64_MAX);
  sender.join();
  EXPECT_EQ(arrived_[0].result, POLLIN);
}

// ---- anything in any order, against poll(2) ----

TEST_P(Io, AnyOrder) {
  for (unsigned seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    auto below = [&](size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(random); };
    struct Started {
      int fd;
      uint32_t events;
      bool each;
      uint32_t told = 0;
    };
    std::map<Token, Started> started;
    on_completion_ = [&](const Completion& c) {
      if (c.result > 0) started.at(c.token).told |= static_cast<uint32_t>(c.result);
      if (!c.more) started.erase(c.token);
    };
    std::vector<Pair> pairs;
    for (int i = 0; i < 4; ++i) pairs.push_back(pair());
    for (int step = 0; step < 300; ++step) {
      Pair& p = pairs[below(pairs.size())];
      const uint32_t sets[] = {POLLIN, POLLOUT, POLLIN | POLLRDHUP, kWatched, POLLIN | POLLOUT | POLLRDHUP};
      const uint32_t events = sets[below(std::size(sets))];
      char bytes[65536];
      switch (below(12)) {
        case 0:
        case 1:
        case 2:
          if (started.size() < 20) started[poll(p.here, events)] = {p.here.fd(), events, false};
          break;
        case 3:
          if (started.size() < 20) started[poll_each(p.here, events)] = {p.here.fd(), events, true};
          break;
        case 4:
        case 5:
          if (!started.empty())
            cancel(std::next(started.begin(), static_cast<long>(below(started.size())))->first);
          break;
        case 6:
          ::send(p.there.fd(), bytes, 1 + below(1000), MSG_DONTWAIT | MSG_NOSIGNAL);
          break;
        case 7:
          fill(p.here);
          break;
        case 8:
          ::recv(p.here.fd(), bytes, sizeof bytes, MSG_DONTWAIT);
          break;
        case 9:
          while (::recv(p.there.fd(), bytes, sizeof bytes, MSG_DONTWAIT) > 0) {
          }
          break;
        case 10:
          if (below(8) == 0) ::shutdown(below(2) ? p.there.fd() : p.here.fd(), SHUT_WR);
          break;
        case 11:
          turn(0);
          break;
      }
      if (step % 30 != 29) continue;
      arrived_.clear();
      do {
        arrived_.clear();
        turn(now_ns() + 2'000'000);
      } while (!arrived_.empty());
      for (const auto& [token, s] : started) {
        pollfd now{s.fd, static_cast<short>(s.events), 0};
        ::poll(&now, 1, 0);
        if (s.each)
          EXPECT_EQ(static_cast<uint32_t>(now.revents) & ~s.told, 0u) << "never told";
        else
          EXPECT_EQ(now.revents, 0) << "holds, and its operation still waits for " << s.events;
      }
    }
    for (const auto& [token, s] : started) cancel(token);
    while (!in_flight_.empty()) turn(now_ns() + 1'000'000);
    on_completion_ = nullptr;
    arrived_.clear();
  }
}

// ---- which of the two ----

TEST(IoOpen, TakesTheRingWhereItWorks) {
  auto opened = io::Io::open(8);
  ASSERT_TRUE(opened) << opened.error().message;
  EXPECT_EQ((*opened)->refusal(), "");
  EXPECT_TRUE((*opened)->description().starts_with("io_uring (")) << (*opened)->description();
}

// A profile may let the ring be made and refuse to use it.
TEST(IoOpen, SaysWhatIsRefused) {
  const auto open_any = [] { return io::Io::open(8); };
  const struct {
    int call, error;
    const char* description;
  } cases[] = {
      {SYS_io_uring_setup, EPERM,
       "epoll (io_uring_setup: Operation not permitted: kernel.io_uring_disabled, or a seccomp profile)"},
      {SYS_io_uring_setup, ENOSYS,
       "epoll (io_uring_setup: Function not implemented: a kernel without it, or a seccomp profile)"},
      {SYS_io_uring_setup, ENOMEM, "epoll (io_uring_setup: Cannot allocate memory)"},
      {SYS_io_uring_enter, EPERM,
       "epoll (io_uring_enter: Operation not permitted: kernel.io_uring_disabled, or a seccomp profile)"},
  };
  for (const auto& c : cases) {
    auto opened = where_refused(c.call, c.error, open_any);
    ASSERT_TRUE(opened) << opened.error().message;
    EXPECT_EQ((*opened)->description(), c.description);
    EXPECT_NE((*opened)->refusal(), "");
  }
  const auto in_ms = where_refused(SYS_epoll_pwait2, ENOSYS, [] { return io::open_epoll("why"); });
  ASSERT_TRUE(in_ms);
  EXPECT_EQ(in_ms.value()->description(),
            "epoll (why), deadlines in ms (epoll_pwait2: Function not implemented)");
}

}  // namespace
}  // namespace penstock::test
