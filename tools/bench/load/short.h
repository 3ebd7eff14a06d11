// SPDX-License-Identifier: Apache-2.0
// bench/load/short.h: connections that bring a question, get an answer and are gone: both ends.
#pragma once
#include <string>

#include "base/endpoint.h"
#include "loop.h"

namespace penstock::bench {

// The server's end: answers once the question is whole. `proxied`: a PROXY header, v1 or v2, must come before
// it.
class Answerer final : public Watched {
 public:
  Answerer(Fd socket, bool proxied) : socket_(std::move(socket)), proxied_(proxied) {}
  void on_ready(uint32_t events) override;

 private:
  bool question_is_whole() const;

  Fd socket_;
  bool proxied_;
  bool answered_ = false;
  std::string read_;
};

// The client's end: connects, asks, reads, closes, and again. Each counts as one latency, from connect() to
// close().
class Asker final : public Watched {
 public:
  Asker(Loop& loop, Endpoint to, std::string question)
      : loop_(loop), to_(to), question_(std::move(question)) {}
  void connect();
  void on_ready(uint32_t events) override;

 private:
  Loop& loop_;
  Endpoint to_;
  std::string question_;
  Fd socket_;
  bool asked_ = false;
  uint32_t answer_bytes_ = 0;
  uint64_t began_ns_ = 0;
};

// A ClientHello with this name, RFC 8446 4.1.2, RFC 6066 3: what a proxy needs to route, and the size a
// browser's has.
std::string client_hello(const std::string& name);

}  // namespace penstock::bench
