// SPDX-License-Identifier: Apache-2.0
// io/io.h: one thread's door to the kernel's completions: start operations, then wait for what finished. By
// io_uring, or by its epoll twin on a host that refuses it. Sockets are ordinary descriptors, no buffer is
// ever handed in: a ring may die with its process and nothing is lost. Not thread-safe: one Io, one thread
// (IORING_SETUP_SINGLE_ISSUER). tests/netns/io_test.cc holds both to the same laws.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/endpoint.h"
#include "base/result.h"

namespace penstock::io {

// The caller's 64 bits, given back with each completion. 0 is reserved.
using Token = uint64_t;

struct Completion {
  Token token;
  int result;  // >= 0, or -errno
  bool more;   // the operation goes on; when false it is over and no further completion follows
};

class Io {
 public:
  // io_uring where everything below works with it, found by trying; else epoll.
  // REQUIRES: called on the thread that will use it.
  static Result<std::unique_ptr<Io>> open(unsigned entries = 1024);
  virtual ~Io() = default;

  // Each starts an operation that ends with exactly one completion whose `more` is false; none is delivered
  // before the next run(). REQUIRES: no operation in flight has this token; the descriptor is nonblocking and
  // stays open until all its operations have ended.
  virtual void accept(int listener,
                      Token token) = 0;  // many; result = a descriptor, nonblocking, close-on-exec
  // Once; result = the events that hold, at once if they do already. POLLERR and POLLHUP always count,
  // with io_uring POLLRDHUP too.
  virtual void poll(int fd, uint32_t events, Token token) = 0;
  // First as poll(), then at each wake-up with such an event. Edge-like: what goes on holding does not repeat
  // by itself, though it may be told again when another operation starts on the same descriptor.
  virtual void poll_each(int fd, uint32_t events, Token token) = 0;
  virtual void connect(int fd, const Endpoint& to, Token token) = 0;  // once; result = 0
  virtual void cancel(Token token) = 0;  // that operation ends soon, with -ECANCELED unless it was faster

  // Waits until something completed or CLOCK_MONOTONIC reaches `until_ns`, then reaps: calls on_completion
  // for each. on_completion may start operations. May return early with nothing.
  virtual void run(uint64_t until_ns, const std::function<void(const Completion&)>& on_completion) = 0;

  const std::string& description() const {
    return description_;
  }                                                        // "io_uring (single issuer, …)", "epoll (…)"
  const std::string& refusal() const { return refusal_; }  // why it is not io_uring; empty: it is

 protected:
  std::string description_, refusal_;
};

uint64_t now_ns();  // CLOCK_MONOTONIC

}  // namespace penstock::io
