// SPDX-License-Identifier: Apache-2.0
// bench/load/loop.h: one thread's epoll, and the flows it serves. A flow belongs to one loop and deletes
// itself.
#pragma once
#include <atomic>
#include <cstdint>
#include <vector>

#include "base/fd.h"
#include "request.h"

namespace penstock::bench {

uint64_t now_ns();  // CLOCK_MONOTONIC

class Watched {
 public:
  virtual ~Watched() = default;
  virtual void on_ready(uint32_t events) = 0;  // EPOLLIN … ; may delete itself
};

class Flow;

class Loop {
 public:
  Loop();
  void run();  // until stop()
  void stop() { stopping_ = true; }
  // From any thread. `watched` is this loop's from then on.
  void add(int fd, uint32_t events, Watched* watched);
  void change(int fd, uint32_t events, Watched* watched);

  // The loop's own thread only.
  void tick(Flow* flow);  // on_tick() once a millisecond
  void forget(Flow* flow);
  void count_latency(uint64_t began_ns);

  // Written by this loop's thread alone, of its flows since they began.
  std::atomic<uint64_t> moved_bytes = 0;  // sent by those that send, else read
  std::atomic<uint64_t> ended = 0;        // flows, by the other side
  std::vector<uint32_t> latencies_ns;     // of those while `measuring`; to be read when it is over
  std::atomic<bool> measuring = false;

 private:
  Fd epoll_, timer_;
  std::vector<Flow*> ticked_;
  std::atomic<bool> stopping_ = false;
};

// A flow of the stream port, either end.
class Flow final : public Watched {
 public:
  // The server's end: learns its role from the request. The client's: REQUIRES the request to be sent.
  Flow(Loop& loop, Fd socket) : loop_(loop), socket_(std::move(socket)) {}
  Flow(Loop& loop, Fd socket, Role role, uint64_t size, uint64_t rate)
      : loop_(loop),
        socket_(std::move(socket)),
        asked_{.role = role, .size = size, .rate = rate},
        began_(true) {}
  ~Flow() override;
  void watch();  // hands it to the loop
  void on_ready(uint32_t events) override;
  void on_tick();

 private:
  void begin();
  void send_ping();
  bool read_request();        // false: not whole yet, or this flow is gone
  bool move(int64_t result);  // false: this flow is gone
  void end();                 // deletes it
  uint64_t due_bytes() const;

  Loop& loop_;
  Fd socket_;
  Request asked_;
  uint32_t request_read_ = 0;
  bool began_ = false;
  bool ticked_ = false;
  uint64_t began_ns_ = 0;     // of the pace, or of this ping
  uint64_t paced_bytes_ = 0;  // since began_ns_
  uint64_t round_bytes_ = 0;  // read of this ping or echo
};

// Options of every socket here: nodelay, non-blocking.
void set_options(int fd);

}  // namespace penstock::bench
