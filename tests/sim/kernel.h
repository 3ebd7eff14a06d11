// SPDX-License-Identifier: Apache-2.0
// sim/kernel.h: the kernel as userspace/flow sees it, simulated: one clock, TCP between sockets, pipes, the
// sockmap's queues (the programs themselves are the real ones, programs.h). One thread runs at a time and all
// chance comes from one seed. differential_test holds it against the kernel at hand.
#pragma once
#include <netinet/tcp.h>
#include <poll.h>

#include <array>
#include <deque>
#include <functional>
#include <initializer_list>
#include <memory>
#include <queue>
#include <string>
#include <vector>

#include "base/endpoint.h"
#include "bpf/abi.h"
#include "sim/bytes.h"
#include "sim/programs.h"
#include "sim/random.h"

namespace penstock::sim {

inline constexpr int kFirstFd = 1 << 20;  // descriptors from here on are simulated
inline constexpr int kShort = -1;
inline constexpr uint32_t kReceiveShut = 1, kSendShut = 2;

struct Segment {
  Bytes bytes;
  uint32_t seq = 0, truesize = 0;
  bool fin = false, rst = false, urgent = false;  // urgent: its last byte
};

struct Socket {
  sim_tcp_sock view{};  // for the programs
  uint64_t cookie = 0;
  int fd = -1;          // -1: nobody's here: a peer, in an accept queue, or closed
  bool ours = false;    // the programs see it
  bool closed = false;  // by its owner
  int state = TCP_CLOSE;
  int error = 0;      // sk_err
  uint32_t shut = 0;  // sk_shutdown
  bool done = false;  // SOCK_DONE: a FIN has come
  bool opened_by_us = false;
  Socket* other = nullptr;
  Endpoint local, remote;
  // receiving
  std::deque<Segment> queue;
  uint64_t received = 0;  // tcpi_bytes_received
  uint32_t next_seq = 0, copied_seq = 0;
  uint32_t receive_buffer = 128 << 10, low_water = 1;
  bool urgent = false;
  uint32_t urgent_seq = 0;
  Bytes last;  // the end of what came last, for a retransmission that overlaps
  // on the wire, towards it
  std::deque<Segment> wire;
  bool arriving = false;
  uint32_t trims = 0;
  uint64_t coming = 0;  // bytes
  // sending
  Bytes unsent;
  uint32_t write_seq = 0, sent_seq = 0, una_seq = 0;
  uint64_t acked = 0;   // tcpi_bytes_acked
  uint32_t to_ack = 0;  // arrived, the ACK is under way
  bool acking = false;
  bool fin_queued = false, fin_sent = false, fin_acked = false, fin_to_ack = false;
  uint32_t send_buffer = 128 << 10;
  // the sockmap
  int source_index = -1, target_index = -1;
  bool trim = false, transmits = true;  // SK_PSOCK_TX_ENABLED
  std::deque<Segment> backlog;
  uint64_t backlog_truesize = 0;
  bool working = false;
  // listening
  std::deque<Socket*> accepted;

  uint32_t readable() const { return next_seq - copied_seq; }
  uint32_t queued() const { return write_seq - una_seq; }  // SIOCOUTQ, our FIN included
  bool in_flight() const { return sent_seq + (fin_sent ? 1 : 0) != una_seq; }
  uint32_t room() const { return queued() < send_buffer ? send_buffer - queued() : 0; }
  bool writeable() const { return queued() <= send_buffer / 3 * 2; }
  bool connected() const { return state != TCP_CLOSE && state != TCP_SYN_SENT && state != TCP_LISTEN; }
  uint64_t memory() const {
    uint64_t sum = 0;
    for (const Segment& s : queue) sum += s.truesize;
    return sum;
  }
};

struct PipeBuffer {
  std::deque<Bytes> slots;
  uint32_t capacity = 64 << 10;
  uint32_t size = 0;
  bool full() const { return slots.size() >= capacity / 4096; }
};

enum class Kind { none, tcp, udp, pipe_in, pipe_out, event, ring };
struct File {
  Kind kind = Kind::none;
  Socket* socket = nullptr;
  std::shared_ptr<PipeBuffer> pipe;
  uint64_t counter = 0;     // of an event
  uint32_t wakes = 0;       // times it woke who waits
  uint32_t operations = 0;  // in flight on it
};

// What a dial of this address meets.
struct Remote {
  enum What { listening, refusing, unreachable, silent, resetting } what = listening;
  uint64_t delay_ns = 0;
  std::function<void(Socket*)> on_connected;  // the server's end
};

// How rough a life is.
struct Weather {
  uint32_t late_in = 3;     // a completion waits with this chance of 1 in
  uint32_t between_in = 4;  // before a system call the world goes on, 1 in
  uint32_t short_in = 0;    // a transfer is cut short, 1 in; 0: never
  uint32_t fault_in = 0;    // a call fails that may, 1 in; 0: never
  uint32_t overlap_in = 0;  // a segment is sent again in part, 1 in
  uint32_t loses_in = 0;    // a broken sockmap: what it has redirected is never written, 1 in
  uint32_t doubles_in = 0;  // likewise: it is written twice; with as much on its way, the accounts agree
  bool broken() const { return loses_in || doubles_in; }
  uint64_t delay_max_ns = 200'000;
  uint32_t mss = 16 << 10;
  uint32_t descriptors_max = 1000;
  uint32_t connections_max = 1 << 20;
  bool opening_takes =
      true;  // an insertion into `sources` hands over what is queued (6.18), or the kick does
  bool reuse_numbers = true;  // of descriptors, as the kernel does; else a late use of one shows
  bool told_hangup = true;    // io_uring: poll always reports POLLRDHUP
};

// A system call of a worker's, from here to the end of its scope. The process may die before it has an
// effect, or after (io.cc): then nothing of its threads runs any more.
struct Call {
  explicit Call(const char* name);
  ~Call();
};

class Kernel {
 public:
  explicit Kernel(uint64_t seed);
  ~Kernel();

  // ---- time ----
  uint64_t now = 1'000'000'000'000;
  void at(uint64_t when_ns, std::function<void()> what) {
    events_.push({when_ns, ++events_made_, std::move(what)});
  }
  void after(uint64_t ns, std::function<void()> what) { at(now + ns, std::move(what)); }
  // Runs the next event if it is due by then. False: there is none; it is `until` now.
  bool step(uint64_t until_ns);
  uint64_t next_event_ns() const { return events_.empty() ? UINT64_MAX : events_.top().when_ns; }
  // Called first in every system call: time passes, and what is due happens.
  void between(const char* call);
  uint64_t delay() { return random.between(1'000, weather.delay_max_ns); }

  Random random;
  Weather weather;

  // ---- faults ----
  // 0, or one of `errors`: this call is to fail with it; kShort: it does one byte. Each call is one of those
  // counted in `fallible`.
  int fault(const char* call, std::initializer_list<int> errors);
  uint64_t fallible = 0;
  uint64_t fail_nth = UINT64_MAX;  // that one fails
  uint32_t fail_variant = 0;       // with this of its errors
  uint32_t failed_errors = 0;      // how many it had
  uint64_t faults = 0;             // so far
  std::string fault_text;          // the last one

  // ---- deaths ----
  uint32_t deaths_left = 0, die_in = 0;  // at each begin and end of a call with this chance of 1 in
  uint64_t moments = 0;                  // begins and ends of calls, so far
  uint64_t die_nth = UINT64_MAX;         // at that one
  bool is_time_to_die();
  // What the dead process had in flight is no more.
  void forget_operations() {
    for (File& f : files_) f.operations = 0;
  }
  std::vector<int> descriptors() const;

  // ---- descriptors ----
  int open(Kind kind);  // -1: EMFILE
  File* file(int fd);   // null: not open; a violation unless `maybe`
  File* maybe_file(int fd);
  void close(int fd);
  void wake(int fd);
  uint32_t poll(int fd);
  uint32_t open_descriptors() const { return open_count_; }

  // ---- TCP ----
  Socket* make_socket(bool ours);
  // Both ends established; `a` did the connect.
  void join(Socket* a, Socket* b);
  void connect(Socket* s, const Endpoint& to);
  void listen(Socket* s);
  // A client's connection arrives at `listener`; null: it takes none.
  Socket* arrive(Socket* listener, const Endpoint& from, const Endpoint& to);
  uint32_t write(Socket* s, const Bytes& bytes, bool urgent = false);  // how many were taken
  Bytes read(Socket* s, uint32_t bytes);
  void shutdown_write(Socket* s);
  void reset(Socket* s);            // close with a RST
  void fail(Socket* s, int error);  // as keepalive does
  void close_socket(Socket* s, bool linger_zero);
  void changed(Socket* s) {
    if (s->fd >= 0) wake(s->fd);
  }
  void kick(Socket* s);  // the verdict takes what is there
  void schedule_worker(Socket* s, uint64_t in_ns);
  void drop_maps(Socket* s);
  void resume_sending(Socket* s);
  std::function<Remote(const Endpoint&)> find_remote;

  // ---- the sockmap's memory: bpf.cc ----
  uint64_t waiting_bytes(uint32_t direction) const;  // memory that waits for its target
  void reset_maps();

  // A law is broken: says so with the seed and ends the process.
  [[noreturn]] void violated(const std::string& what);
  void trace(const std::string& what);
  bool tracing = false;
  std::string title;                      // which life this is
  std::function<std::string()> describe;  // how far it is, for violated()
  bool foreign = false;                   // what runs now runs on no worker's thread
  std::deque<Stream> streams;

 private:
  struct TimedEvent {
    uint64_t when_ns, number;
    std::function<void()> what;
    bool operator<(const TimedEvent& o) const {
      return when_ns != o.when_ns ? when_ns > o.when_ns : number > o.number;
    }
  };
  void transmit(Socket* s);
  void put_on_wire(Socket* to, Segment segment);
  void schedule_arrival(Socket* to, uint64_t in_ns);
  void on_arrival(Socket* to);
  void deliver(Socket* to, Segment segment);
  void on_fin(Socket* s);
  void on_reset(Socket* s);
  void schedule_ack(Socket* of, uint64_t in_ns);
  void on_ack(Socket* s);
  void work(Socket* s);
  void answer_reset(Socket* from);
  void window_opened(Socket* reader);
  void ops(Socket* s, bool current_mss);

  std::priority_queue<TimedEvent> events_;
  uint64_t events_made_ = 0;
  std::deque<Socket> sockets_;
  std::vector<File> files_;
  uint32_t open_count_ = 0;
  uint64_t last_cookie_ = 0;
};

extern Kernel* g_kernel;  // of the life that runs

}  // namespace penstock::sim
