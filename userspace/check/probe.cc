// SPDX-License-Identifier: Apache-2.0
#include "check/probe.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/assert.h"
#include "base/source_address.h"
#include "proxy_protocol/proxy_protocol.h"

namespace penstock::check {
namespace {

constexpr size_t kDrainedBytesMax = 256 << 10;  // of what nobody asked for, before we close on it

std::string hostname() {
  std::array<char, 256> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "";
}

std::string error_text(int error) {
  std::string words = std::strerror(error);
  if (words.size() > 1 && std::islower(static_cast<unsigned char>(words[1])))
    words[0] = static_cast<char>(std::tolower(static_cast<unsigned char>(words[0])));
  return words;
}

Failure dial_failure(int error) {
  switch (error) {
    case ECONNREFUSED:
      return Failure::refused;
    case ETIMEDOUT:
      return Failure::timeout;
    case ECONNRESET:
    case EPIPE:
      return Failure::reset;
    case EMFILE:
    case ENFILE:
    case ENOMEM:
    case ENOBUFS:
    case EADDRNOTAVAIL:
    case EAFNOSUPPORT:
      return Failure::local;
    default:
      return Failure::unreachable;
  }
}

// What this host lacks says nothing of the server.
bool is_starved(int error, const Endpoint& to) {
  if (error == EADDRNOTAVAIL) return has_source_address(to);
  return error == EMFILE || error == ENFILE || error == ENOMEM || error == ENOBUFS;
}

Endpoint endpoint_of(int fd, int (*ask)(int, sockaddr*, socklen_t*)) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (ask(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) return {};
  return Endpoint::from_sockaddr(reinterpret_cast<sockaddr*>(&address), length).value_or(Endpoint{});
}

// 0, or the errno of what refused it.
int bind_to(int fd, const IpAddress& source) {
  const int one = 1;
  ::setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
  sockaddr_storage address{};
  const socklen_t length = Endpoint{.address = source}.to_sockaddr(&address);
  return ::bind(fd, reinterpret_cast<sockaddr*>(&address), length) == 0 ? 0 : errno;
}

}  // namespace

const char* text(Stage stage) {
  switch (stage) {
    case Stage::dialing:
      return "dialing";
    case Stage::greeting:
      return "greeting";
    case Stage::dialogue:
      return "dialogue";
    case Stage::handshake:
      return "handshake";
    case Stage::passed:
      return "passed";
  }
  return "";
}

const char* text(Failure failure) {
  switch (failure) {
    case Failure::none:
      return "none";
    case Failure::resolve:
      return "resolve";
    case Failure::local:
      return "local";
    case Failure::refused:
      return "refused";
    case Failure::unreachable:
      return "unreachable";
    case Failure::timeout:
      return "timeout";
    case Failure::reset:
      return "reset";
    case Failure::closed:
      return "closed";
    case Failure::answer:
      return "answer";
    case Failure::tls:
      return "tls";
  }
  return "";
}

Probe::Probe(Order order, Clock::time_point now)
    : order_(std::move(order)), started_(now), deadline_(now + order_.timeout) {
  outcome_.address = order_.to;
  dial(now);
}

void Probe::dial(Clock::time_point now) {
  const bool v4 = order_.to.address.is_v4();
  if (order_.source && order_.source->is_v4() != v4)
    return fail(Failure::local, "the source address " + order_.source->text() + " is of the other family",
                now);
  fd_.reset(::socket(v4 ? AF_INET : AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd_.valid()) return fail_to_dial(errno, now);
  const int one = 1;
  ::setsockopt(fd_.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (order_.source) {
    if (const int error = bind_to(fd_.get(), *order_.source))
      return fail(Failure::local, "source " + order_.source->text() + ": " + error_text(error), now);
  }
  sockaddr_storage address{};
  const socklen_t length = order_.to.to_sockaddr(&address);
  if (::connect(fd_.get(), reinterpret_cast<sockaddr*>(&address), length) == 0) return on_connected(now);
  if (errno != EINPROGRESS) fail_to_dial(errno, now);
}

void Probe::fail_to_dial(int error, Clock::time_point now) {
  outcome_.starved = is_starved(error, order_.to);
  fail(dial_failure(error), error_text(error), now);
}

pollfd Probe::wanted() const {
  short events = POLLIN;
  if (step_ == Step::dialing) events = POLLOUT;
  if (!outgoing_.empty() || (step_ == Step::shaking_hands && tls_wants_write_)) events |= POLLOUT;
  return {fd_.get(), events, 0};
}

void Probe::advance(Clock::time_point now) {
  switch (step_) {
    case Step::dialing: {
      int error = 0;
      socklen_t length = sizeof error;
      pollfd connected{fd_.get(), POLLOUT, 0};
      if (::poll(&connected, 1, 0) != 1) break;
      ::getsockopt(fd_.get(), SOL_SOCKET, SO_ERROR, &error, &length);
      error == 0 ? on_connected(now) : fail(dial_failure(error), error_text(error), now);
      break;
    }
    case Step::sending_header:
      if (!flush()) return fail(Failure::reset, "the server reset the connection", now);
      if (outgoing_.empty()) begin_service(now);
      break;
    case Step::talking:
    case Step::parting:
      talk(now);
      break;
    case Step::shaking_hands:
      shake_hands(now);
      break;
    case Step::finished:
      drain();
      break;
    case Step::done:
      return;
  }
  if (step_ != Step::done && now >= deadline_) on_deadline(now);
}

void Probe::on_connected(Clock::time_point now) {
  outcome_.local = endpoint_of(fd_.get(), ::getsockname);
  if (order_.proxy_protocol != config::ProxyProtocol::off) {
    proxy_protocol::Outgoing what;
    what.version = order_.proxy_protocol == config::ProxyProtocol::v1 ? proxy_protocol::Version::v1
                                                                      : proxy_protocol::Version::v2;
    what.local = order_.local;
    what.client = *outcome_.local;
    what.destination = order_.to;
    std::array<uint8_t, proxy_protocol::kHeaderBytesMax> header;
    outgoing_.assign(reinterpret_cast<const char*>(header.data()), proxy_protocol::encode(what, header));
  }
  step_ = Step::sending_header;
  advance(now);
}

void Probe::begin_service(Clock::time_point now) {
  if (order_.type == config::CheckType::tcp) return pass(now);
  if (order_.type == config::CheckType::tls) {
    tls_.emplace(fd_.get(), order_.sni);
    step_ = Step::shaking_hands;
    return shake_hands(now);
  }
  dialogue_.emplace(!order_.type                              ? Protocol::by_greeting
                    : *order_.type == config::CheckType::smtp ? Protocol::smtp
                                                              : Protocol::imap,
                    hostname());
  step_ = Step::talking;
}

// While talking and while parting: the same words, with the verdict fallen or not.
void Probe::talk(Clock::time_point now) {
  if (!flush()) return fail(Failure::reset, "the server reset the connection", now);
  std::array<char, 4096> buffer;
  while (step_ == Step::talking || step_ == Step::parting) {
    const ssize_t n = receive(buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return;
    if (n < 0) return fail(Failure::reset, "the server reset the connection", now);
    if (n == 0) {
      if (!decided_)
        fail(Failure::closed,
             dialogue_->greeted() ? "the server closed the connection after: " + dialogue_->first_line()
                                  : "the server closed the connection before it said anything",
             now);
      return finish(now);
    }
    dialogue_->received({buffer.data(), static_cast<size_t>(n)});
    outgoing_ += dialogue_->take_outgoing();
    if (late_ && step_ == Step::talking && dialogue_->greeted()) {  // it says QUIT by itself
      step_ = Step::parting;
      deadline_ = now + kPartingMax;
    }
    if (!decided_ && dialogue_->verdict() == Dialogue::Verdict::failed)
      fail(Failure::answer, dialogue_->reason(), now);
    else if (!decided_ && dialogue_->verdict() == Dialogue::Verdict::passed)
      pass(now);
    else
      flush();
    if (step_ == Step::parting && dialogue_->over()) return finish(now);
  }
}

void Probe::shake_hands(Clock::time_point now) {
  switch (tls_->shake_hands()) {
    case TlsStream::Step::wants_read:
      tls_wants_write_ = false;
      return;
    case TlsStream::Step::wants_write:
      tls_wants_write_ = true;
      return;
    case TlsStream::Step::done:
      tls_open_ = true;
      outcome_.certificate = tls_->certificate();
      return pass(now);
    case TlsStream::Step::failed:
      return fail(Failure::tls, "tls: " + tls_->error(), now);
  }
}

ssize_t Probe::receive(std::span<char> out) {
  return tls_open_ ? tls_->receive(out.data(), out.size()) : ::recv(fd_.get(), out.data(), out.size(), 0);
}

// False when the connection takes no more.
bool Probe::flush() {
  while (!outgoing_.empty()) {
    const ssize_t n = tls_open_ ? tls_->send(outgoing_.data(), outgoing_.size())
                                : ::send(fd_.get(), outgoing_.data(), outgoing_.size(), MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return true;
    if (n < 0) {
      outgoing_.clear();
      return false;
    }
    outgoing_.erase(0, static_cast<size_t>(n));
  }
  return true;
}

Stage Probe::stage() const {
  if (step_ == Step::dialing) return Stage::dialing;
  if (tls_) return Stage::handshake;
  return dialogue_ && dialogue_->greeted() ? Stage::dialogue : Stage::greeting;
}

void Probe::on_deadline(Clock::time_point now) {
  switch (step_) {
    case Step::dialing:
      return fail(Failure::timeout, "timeout: no answer to the dial", now);
    case Step::sending_header:
      return fail(Failure::timeout, "timeout: the server does not take the PROXY header", now);
    case Step::talking:
      if (decided_) return finish(now);
      if (!order_.type && !dialogue_->greeted()) return pass(now);
      return fail(Failure::timeout,
                  dialogue_->greeted() ? "timeout: it said nothing more after: " + dialogue_->first_line()
                                       : "timeout: connected, but the server says nothing",
                  now);
    case Step::shaking_hands:
      if (decided_) return finish(now);
      return fail(Failure::timeout, "timeout: connected, but the TLS handshake does not end", now);
    case Step::parting:
      return finish(now);
    case Step::finished:
      fd_.reset();
      step_ = Step::done;
      return;
    case Step::done:
      return;
  }
}

void Probe::pass(Clock::time_point now) {
  if (!decided_) {
    outcome_.ok = true;
    outcome_.stage = dialogue_ && !dialogue_->greeted() ? Stage::greeting : Stage::passed;
  }
  decide(now);
}

// What fails once the verdict has fallen only ends the goodbye.
void Probe::fail(Failure failure, std::string reason, Clock::time_point now) {
  const bool connection_is_over = failure != Failure::timeout && failure != Failure::answer &&
                                  failure != Failure::tls && failure != Failure::closed;
  if (!decided_) {
    outcome_.failure = failure;
    outcome_.reason = std::move(reason);
    outcome_.stage = stage();
  }
  if (connection_is_over || step_ == Step::dialing) {
    fd_.reset();
    step_ = Step::done;
  }
  decide(now);
}

void Probe::decide(Clock::time_point now) {
  if (!decided_) {
    decided_ = true;
    if (dialogue_) outcome_.said = dialogue_->first_line();
    outcome_.took = std::chrono::round<milliseconds>(now - started_);
  }
  if (step_ != Step::done) begin_parting(now);
}

void Probe::leave(Clock::time_point now) {
  leaving_ = true;
  if (step_ == Step::dialing) {
    fd_.reset();
    step_ = Step::done;
  }
  if (step_ != Step::done && step_ != Step::finished && step_ != Step::parting) begin_parting(now);
}

void Probe::begin_parting(Clock::time_point now) {
  const bool speechless =
      (step_ == Step::talking && !dialogue_->greeted()) || (step_ == Step::shaking_hands && !tls_open_);
  if (speechless && !late_ && !leaving_ && outcome_.failure == Failure::timeout &&
      order_.late > milliseconds(0)) {
    late_ = true;
    deadline_ = now + order_.late;
    return;
  }
  step_ = Step::parting;
  deadline_ = now + kPartingMax;
  if (tls_open_ && !dialogue_) {
    dialogue_.emplace(Protocol::by_greeting, hostname());
    return talk(now);
  }
  if (!dialogue_ || !dialogue_->greeted()) return finish(now);
  outgoing_ += dialogue_->farewell();
  flush();
  if (dialogue_->over()) finish(now);
}

void Probe::finish(Clock::time_point now) {
  if (step_ == Step::done) return;
  step_ = Step::finished;
  deadline_ = now + kPartingMax;
  if (tls_open_) tls_->close_notify();
  ::shutdown(fd_.get(), SHUT_WR);
  drain();
}

// A close() with bytes unread would be a reset.
void Probe::drain() {
  std::array<char, 16384> buffer;
  while (drained_bytes_ < kDrainedBytesMax) {
    const ssize_t n = ::recv(fd_.get(), buffer.data(), buffer.size(), 0);
    if (n > 0) drained_bytes_ += static_cast<size_t>(n);
    if (n > 0 || (n < 0 && errno == EINTR)) continue;
    if (n < 0 && errno == EAGAIN) return;
    break;
  }
  fd_.reset();
  step_ = Step::done;
}

}  // namespace penstock::check
