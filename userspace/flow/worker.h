// SPDX-License-Identifier: Apache-2.0
// flow/worker.h: one thread and the flows it owns, from accept to closed. The steps stand in a file each, in
// the order a flow takes them: accept, proxy_header, admit, classify, resolve, dial, prime, handoff,
// first_bytes, lane_change, relay, drain, close (.cc). begin_x() starts an operation, on_x() ends it;
// advance() is the only writer of a phase. README.md has the diagram. A received byte is never copied into
// our memory: peeked, spliced, or left where it is.
#pragma once
#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/in_hand.h"
#include "config/config.h"
#include "dns/resolver.h"
#include "flow/account.h"
#include "flow/clients.h"
#include "flow/close_reason.h"
#include "flow/line_limit.h"
#include "flow/machine.h"
#include "flow/pipes.h"
#include "flow/plan.h"
#include "flow/record.h"
#include "flow/statistics.h"
#include "flow/view.h"
#include "io/deadlines.h"
#include "io/io.h"
#include "sockmap/sockmap.h"
#include "tls/client_hello.h"

namespace penstock::flow {

// The operations of a flow that may be in flight, each at most once. Part of io::Token.
enum class Op : uint32_t {
  none,
  accept,        // of a listener
  inbox,         // of the worker
  events,        // of the worker: the sockmap's ring
  watch_client,  // FIN, RST, errors, as long as the flow lives
  watch_upstream,
  first_bytes,  // more of what the client says first: PROXY header, ClientHello
  connect,      // kAttemptsMax of them
  connect_second,
  connect_third,
  header_room,  // the PROXY header did not fit
  read_client,  // relay: the source has bytes
  read_upstream,
  write_client,  // relay, held: the target has room
  write_upstream,
};
// What else a worker has a flow in hand for (base/in_hand.h).
enum Errand : uint32_t { kDeadline = 32, kPumping, kPublishing, kAnswer, kAdopting };

// Of a flow that ends because this side's socket has that error (errno): TCP gave up waiting, or there was a
// RST. An errno that says neither is a RST whose own error another system call was told (EPIPE).
CloseReason reason_of(Side side, int error);

// What the worker keeps of a direction beside its record; derived, lost with the worker. All zero at the
// start.
struct DirectionState {
  bool readable;  // relay: no EAGAIN from the source since it last became readable
  bool has_room;  // relay: the target has just said so
  bool ended;     // relay: splice() said end of stream
  Lane order;     // by command; none: nothing was ordered
  uint64_t lane_since_ns;
  uint64_t moved_ns;        // relay: the last byte
  uint64_t blocked_ns;      // relay: the target last refused bytes, or the direction came here
  uint64_t moved_bytes;     // relay: in this stay
  uint64_t pipe_wanted_ns;  // relay: since when there is no pipe to be had; 0: one was
  uint64_t patience_ns;     // held, draining, shut: the next look
  uint64_t looked_ns;       // held, draining: the last look
  uint64_t written_bytes;   // held, draining: what the target had taken then
  uint64_t stuck_ns;        // held, draining: for so long nothing has moved that could
  uint64_t turn_bytes;      // relay: moved in one turn, of late
  uint64_t high_at_bytes;   // redirected when the backlog last passed the threshold
  uint32_t cycles;          // held -> splice, with few bytes between
};

struct Dial;  // dial.h

struct Flow {
  FlowRecord* record;
  uint32_t slot;
  uint32_t armed;            // bit per Op in flight
  bool queued;               // in the run queue
  bool dirty;                // relayed bytes not yet published
  bool to_show, to_publish;  // at the end of this turn
  bool shown;                // it is in `flows`
  bool kept_alive;           // keepalive of the upstream's socket is set
  bool is_lost;              // behind both FINs: a peer is gone that was still owed bytes,
  CloseReason loss;          // why
  uint64_t published_ns;
  size_t peeked_bytes;
  size_t awaited_bytes;   // of what the client says first: fewer bring no news
  uint64_t proven_by_ns;  // unproven, and began like a PROXY header: by then its first bytes must be none
  uint64_t acked_bytes;   // by both peers, when idleness was last judged
  DirectionState direction[2];
  const Plan* plan;      // the configuration it came in under; kept alive by its worker
  Server* server;        // chosen; counted there until release()
  Dial* dial;            // while a server is chosen and dialled; owned
  Clients::Place place;  // what admit() has counted
};

struct ListenerSocket {
  int fd;
  uint32_t listener;                 // slot in the statistics
  Endpoint bound;                    // where all its connections were meant for; port 0: each is asked
  std::shared_ptr<const Plan> plan;  // of the flows that begin here
  bool adopted = false;              // another process accepted from it, and may not have let go of it yet
};

inline constexpr uint32_t kDeadlinesPerFlow = 3;    // the phase, the two directions
inline constexpr uint64_t kEvictionNs = 2'000'000;  // between two rounds of resets for limits.memory

// What all workers share. Outlives them.
struct Shared {
  dns::Resolver* resolver = nullptr;
  sockmap::Sockmap* sockmap = nullptr;  // null: no maps at all
  bool splice = false;                  // the engine is sockmap
  std::atomic<uint64_t> memory_limit_bytes{0};
  Statistics statistics;
  Clients* clients = nullptr;
  InHand* hands = nullptr;  // one per worker, in memory that outlives the process; null: nobody wants to know
  std::function<void(uint32_t)> prepare_thread;  // of worker N, before anything else there
  FlowTable* table = nullptr;
  Flow* flows = nullptr;  // one per slot, zero at the start
  std::mutex slots_mutex;
  std::vector<uint32_t> free_slots;  // the lowest last: it is taken first
  // For the checks; on a worker's thread.
  std::function<void(const Server&, CloseReason)> on_dial_failed;
  std::function<void(const config::Upstream&, const Upstream&)> on_servers_changed;  // of `srv`
  std::vector<std::unique_ptr<class Worker>> workers;
  std::atomic<bool> evicting{false};  // the flows that hold most are being reset
  std::atomic<uint64_t> last_eviction_ns{0};

  // The configuration that was read last; for whoever shows it. A flow's is that of the socket it came in by.
  std::shared_ptr<const Plan> plan() const;
  void set_plan(std::shared_ptr<const Plan> plan);

  // Kernel memory of all flows beyond socket buffers: what waits in the sockmap, and the pipes.
  uint64_t held_bytes() const;

 private:
  mutable std::mutex plan_mutex_;
  std::shared_ptr<const Plan> plan_;
};

class Worker {
 public:
  Worker(Shared& shared, uint32_t index);
  ~Worker();
  Status start();  // opens its Io on the new thread and returns how that went
  void join();

  // ---- from any thread ----
  void post(std::function<void(Worker&)> task);
  // Its listening sockets, by their descriptors, which are its own from add to the end of remove. Also before
  // start(). In this order: add, any number of assign and retire, remove.
  void add_listener(const ListenerSocket& socket);
  // From now on it takes connections for this listener, and SYNs, retired or not.
  void assign_listener(int fd, uint32_t listener, std::shared_ptr<const Plan> plan);
  // Takes no SYN any more (they are dropped, not refused); whose handshake is under way is still accepted.
  void retire_listener(int fd);
  // Accepts what is queued, then closes it. REQUIRES: retired, for long enough that no handshake is under
  // way.
  void remove_listener(int fd);
  void stop_accepting();
  // Ends every flow with `reason`, then the thread.
  void stop(CloseReason reason);
  // Goes on with flow `slot`, which a worker that died has left, under the configuration it came in by.
  void adopt(uint32_t slot, std::shared_ptr<const Plan> plan);
  // A connection that was accepted by one that died, and became no flow.
  void adopt_connection(int fd, uint32_t listener, const Endpoint& bound, std::shared_ptr<const Plan> plan);
  void kill(uint32_t slot, uint32_t generation, CloseReason reason);

  // ---- from a task given to post() ----
  void for_each_flow(const std::function<void(Flow&)>& visit);  // not the closing ones
  void kill_here(Flow& f, CloseReason reason) { begin_close(f, reason); }
  // A support command: moves one direction to another lane. False: it may not go there from where it is.
  bool order_lane_here(Flow& f, Direction d, Lane to);
  FlowView view(Flow& f);
  ListenerView listener_view(uint32_t listener) const;
  // Its Io's, known once start() is back.
  const std::string& io_description() const { return io_description_; }
  const std::string& io_refusal() const { return io_refusal_; }

 private:
  // A place for a listening socket. Completions carry its index: it is used again only when its accept has
  // ended.
  struct Listening {
    ListenerSocket socket{-1, 0, {}};  // fd -1: free
    bool accepting = false;            // an accept is in flight
    bool removing = false;             // closed when that has ended
    bool inherits_other = false;  // what it accepts may have another filter than it should: a retired one's
    uint64_t again_ns = 0;        // when it accepts again after an error; 0: there was none
    uint64_t sweep_ns = 0;        // when its queue is looked into, whatever is told of it; 0: no more
    uint64_t swept_until_ns = 0;
  };
  // A connection on its way to becoming a flow.
  struct Arrival {
    int fd;
    uint32_t listener;
    Endpoint bound;
    std::shared_ptr<const Plan> plan;
  };

  // worker.cc
  void run();
  bool over();
  void wake();
  void dispatch(const io::Completion& c);
  void on_deadline(io::Deadlines::Id id);
  void on_kernel_event(const penstock_event& e);
  void on_socket(Flow& f, Side side, uint32_t events);
  void advance(Flow& f, Event event);
  void arm_poll(Flow& f, Op op, int fd, uint32_t events);
  void disarm(Flow& f, Op op);
  bool armed(const Flow& f, Op op) const { return f.armed >> static_cast<uint32_t>(op) & 1; }
  io::Token token(const Flow& f, Op op) const;
  void enqueue(Flow& f);
  void set_phase_deadline(Flow& f, uint64_t when_ns);
  void set_lane_deadline(Flow& f, Direction d, uint64_t when_ns);
  void clear_deadlines(Flow& f);
  bool owns(const FlowRecord& r) const;
  Flow* find(uint32_t slot, uint32_t generation);
  uint64_t timeout_ns(const Flow& f, std::optional<config::milliseconds> config::Timeouts::*which) const;
  void show(Flow& f);
  void show_now(Flow& f);
  void publish(Flow& f);
  void publish_now(Flow& f);

  // accept.cc
  Listening* find_listening(int fd);
  int set_filter(int fd) const;
  io::Token accept_token(const Listening& l) const;
  void begin_accept(Listening& l);
  void on_accepted(uint32_t index, const io::Completion& c);
  void accept_again(uint64_t now_ns);
  void sweep(uint64_t now_ns);
  void accept_waiting(const Listening& l, int most);
  void arrive(const Listening& l, int fd);
  void close_listening(Listening& l);
  Worker& least_loaded();
  bool give(const Arrival& a);  // from any worker; false: this one has ended
  void begin_flow(const Arrival& a);
  void begin_client(Flow& f);
  void refuse(const Arrival& a, CloseReason reason);
  void tell_left_out();
  // admit.cc
  std::optional<CloseReason> admit(Flow& f);
  // proxy_header.cc
  void begin_proxy_header(Flow& f);
  void on_proxy_header(Flow& f, uint32_t events);
  void take_header(Flow& f, const proxy_protocol::Incoming& header);
  void discard_header(Flow& f);
  void header_taken(Flow& f);
  void keep_tlvs(FlowRecord& r, std::span<const uint8_t> tlvs);
  // first_bytes.cc
  void on_first_bytes(Flow& f, uint32_t events);
  void await_first_bytes(Flow& f, size_t size, size_t need_bytes, uint32_t deadline, uint64_t until_ns);
  void look_again(Flow& f, uint32_t deadline, uint64_t until_ns);
  bool too_few_first_bytes(Flow& f, uint32_t events);
  void check_first_bytes(Flow& f);
  // classify.cc
  void begin_classify(Flow& f);
  void on_hello(Flow& f, uint32_t events);
  void route(Flow& f, const tls::ClientHello* hello);
  // resolve.cc
  void begin_resolve(Flow& f);
  void begin_server(Flow& f);
  void on_targets(Flow& f, const dns::Answer& answer);
  void targets_failed(Flow& f, const std::string& why);
  dns::Resolver::Done answer_for(Flow& f, void (Worker::*then)(Flow&, const dns::Answer&));
  void on_resolved(Flow& f, const dns::Answer& answer);
  void on_resolve_deadline(Flow& f);
  // dial.cc
  bool speaks_first(const Flow& f) const;
  void begin_attempt(Flow& f);
  void give_up(Flow& f, uint32_t attempt);
  void on_connected(Flow& f, uint32_t attempt, int result);
  void attempt_won(Flow& f, uint32_t attempt);
  void attempt_failed(Flow& f, uint32_t attempt, int error, CloseReason reason);
  void on_dial_deadline(Flow& f);
  void begin_renew(Flow& f);
  void on_renewed(Flow& f, const dns::Answer& answer);
  void server_failed(Flow& f, CloseReason reason, const std::string& why);
  // prime.cc
  void begin_prime(Flow& f);
  // handoff.cc
  void begin_handoff(Flow& f);
  // lane_change.cc
  void enter_lane(Flow& f, Direction d, Lane lane, LaneChange why);
  void leave_splice(Flow& f, Direction d, LaneChange why);
  void check_held(Flow& f, Direction d, LaneChange back = LaneChange::backlog_low);
  bool try_promote(Flow& f, Direction d, LaneChange why);
  bool may_open_valve(const Flow& f, Direction d) const;
  bool memory_allows(uint64_t more_bytes) const;
  bool follow_order(Flow& f, Direction d, Lane to);
  // relay.cc
  void enter_relay(Flow& f, Direction d, LaneChange why);
  uint32_t pipe_bytes(const Flow& f, Direction d) const;
  bool take_pipe(Flow& f, Direction d);
  void give_back_pipe(Flow& f, Direction d);
  void pump(Flow& f, Direction d);
  void pass_urgent(Flow& f, Direction d);
  void on_quiet(Flow& f, Direction d);
  bool unhindered(const Flow& f, Direction d) const;
  // drain.cc
  bool is_mismatch(Flow& f, Direction d, uint64_t handed_bytes, const SocketAccount& target) const;
  void check_drain(Flow& f, Direction d);
  void pass_fin(Flow& f, Direction d);
  void send_fin(Flow& f, Direction d);
  bool is_shut(const Flow& f) const;
  void check_delivered(Flow& f);
  bool is_delivered(Flow& f, Side s);
  void set_open_deadline(Flow& f, uint64_t when_ns);
  void check_idle(Flow& f);
  // adopt.cc
  void adopt_all();
  void adopt_here(uint32_t slot, const std::shared_ptr<const Plan>& plan);
  const char* unsound(const Flow& f) const;
  void count_as(const Flow& f, uint32_t listener);
  void adopt_proxy_header(Flow& f, uint64_t until_ns);
  void adopt_search(Flow& f);
  void adopt_handoff(Flow& f);
  void adopt_open(Flow& f);
  bool adopt_relay(Flow& f, Direction d);
  // close.cc
  void begin_close(Flow& f, CloseReason reason);
  void release(Flow& f);
  std::array<uint64_t, 2> count_end(const Flow& f, CloseReason reason);
  void log_access(const Flow& f, CloseReason reason, const std::array<uint64_t, 2>& spliced_bytes);
  void evict_if_over_limit();

  Lane lane(const Flow& f, Direction d) const { return f.record->direction[d].lane; }
  const Plan* use_plan(const std::shared_ptr<const Plan>& plan);
  void leave_plan(const Plan* plan);

  uint32_t socket_index(const Flow& f, uint32_t i) const { return 2 * f.slot + i; }

  Shared& shared_;
  const uint32_t index_;
  std::vector<Listening> listening_;
  std::unique_ptr<io::Io> io_;
  std::string io_description_, io_refusal_;
  io::Deadlines deadlines_;
  Pipes pipes_;
  struct UsedPlan {
    std::shared_ptr<const Plan> plan;
    uint32_t flows = 0;  // of this worker
  };
  std::vector<UsedPlan> plans_;  // those with flows here
  // Says which flow this thread works on, for as long as it lives.
  class Holding {
   public:
    Holding(Worker& w, const Flow& f, uint32_t event);
    ~Holding() { hand_.let_go(); }
    Holding(const Holding&) = delete;
    Holding& operator=(const Holding&) = delete;

   private:
    InHand& hand_;
  };
  struct Adoption {
    uint32_t slot;
    std::shared_ptr<const Plan> plan;
  };
  std::vector<Adoption> adoptions_;
  struct Runnable {
    uint32_t slot, generation;
  };
  std::vector<Runnable> run_queue_, running_;
  std::vector<Runnable> publish_queue_;
  std::vector<std::function<void(Worker&)>> local_posts_;  // of this thread
  std::vector<uint8_t> peek_buffer_;
  uint64_t now_ns_ = 0;  // of this turn of the loop
  LineLimit refusals_;   // in the access log
  bool accepting_ = true, stopping_ = false;
  int accept_error_ = 0;           // an errno, until a connection is accepted again
  uint64_t accept_told_ns_ = 0;    // when the log was told
  std::atomic<uint32_t> live_{0};  // flows of this thread, and connections given to it

  std::thread thread_;
  Fd inbox_event_;
  InHand own_hand_;
  InHand& hand_;
  std::mutex inbox_mutex_;
  std::vector<std::function<void(Worker&)>> inbox_;
  bool over_ = false;  // nothing is given to it any more; under inbox_mutex_
};

}  // namespace penstock::flow
