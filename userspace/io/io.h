// SPDX-License-Identifier: Apache-2.0
// io/io.h: one thread's door to the kernel's completions: submit, then wait for what finished. liburing lives
// here and nowhere else. Sockets are ordinary descriptors, no buffer is ever handed in: a ring may die with
// its process and nothing is lost. Not thread-safe: one Io, one thread (IORING_SETUP_SINGLE_ISSUER).
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
  // REQUIRES: called on the thread that will use it.
  static Result<std::unique_ptr<Io>> open(unsigned entries = 1024);
  ~Io();

  // Each starts an operation that ends with exactly one completion whose `more` is false.
  void accept(int listener, Token token);           // many; result = a descriptor, nonblocking, close-on-exec
  void poll(int fd, uint32_t events, Token token);  // once; result = the events that hold
  void poll_each(int fd, uint32_t events, Token token);   // at each wake-up with such an event (edge-like)
  void connect(int fd, const Endpoint& to, Token token);  // once; result = 0
  void cancel(Token token);  // that operation ends soon, with -ECANCELED unless it was faster

  // Submits, waits until something completed or CLOCK_MONOTONIC reaches `until_ns`, then reaps: calls
  // on_completion for each. on_completion may start operations.
  void run(uint64_t until_ns, const std::function<void(const Completion&)>& on_completion);

  const std::string& description() const;  // "io_uring (single issuer, deferred task work)"

 private:
  struct Impl;
  explicit Io(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

uint64_t now_ns();  // CLOCK_MONOTONIC

}  // namespace penstock::io
