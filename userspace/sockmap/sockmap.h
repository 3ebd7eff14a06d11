// SPDX-License-Identifier: Apache-2.0
// sockmap/sockmap.h: the kernel's half of every flow: the BPF object, its maps, and the few acts on them.
// libbpf lives here and nowhere else. Which act is allowed when is the caller's business (flow/handoff.cc,
// flow/lane_change.cc); what the programs do meanwhile is told in bpf/README.md. Thread-safe; an act on one
// flow comes from one thread.
#pragma once
#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "bpf/abi.h"

namespace penstock::sockmap {

struct Options {
  uint32_t flows_max = 1024;
  uint32_t threads = 1;
  uint64_t memory_limit_bytes = 256u << 20;
  std::string pin;   // directory on a bpffs for flows, listeners, upstreams, totals; empty: not pinned
  bool pull = true;  // make segments of many small fragments linear
  bool cut = true;   // cut overlaps; false only to show that the self-test notices
};

// What a Sockmap consists of, for another program that finds the same descriptors. Fixed size, no pointers.
struct Handles {
  static constexpr size_t kMapsMax = 16, kProgramsMax = 8, kPathBytes = 256;
  uint32_t layout;  // PENSTOCK_LAYOUT; base/layout.h
  uint32_t flows_max, threads;
  int32_t maps[kMapsMax];  // the first without one is -1
  int32_t rings[PENSTOCK_THREADS_MAX];
  int32_t programs[kProgramsMax];  // those that are run from here, of the program that loaded last
  int32_t socket_ops;              // the link of the sock_ops program
  int32_t cgroup, pin_lock;
  uint32_t pull, pinned, cgroup_made;
  char pin[kPathBytes], cgroup_path[kPathBytes], came_from[kPathBytes];
};

// What one direction may have waiting for its target; see penstock_direction.
struct Thresholds {
  uint32_t high_bytes;   // memory: it leaves the splice
  uint32_t bulk_bytes;   // payload, on average: so it does, because relay costs less
  uint32_t limit_bytes;  // memory: what arrives is trimmed
};

class Sockmap {
 public:
  // Loads, attaches the verdict to `sources` and socket_ops to a cgroup that holds this process alone: must
  // come before any TCP socket of ours exists. Errors say which step the kernel refused and what it needs.
  static Result<std::unique_ptr<Sockmap>> open(const Options& options);
  // The maps of one that another program opened, in a process that has its descriptors, with the programs of
  // this one: flows that are in the splice keep theirs until they leave it. Its end closes none of the
  // descriptors and removes nothing: they are kept by somebody else, until remove(). `loaded`: handles are
  // those of one that this program has reopened before.
  static Result<std::unique_ptr<Sockmap>> reopen(const Handles& handles, bool loaded);
  static void remove(const Handles& handles);  // what the destructor of an opened one does, but for closing
  ~Sockmap();                                  // unpins, detaches, leaves and removes the cgroup
  Handles handles() const;

  // ---- memory shared with the programs and with whoever dumps the maps ----
  penstock_direction& direction(uint32_t index);
  penstock_globals& globals();
  penstock_totals& totals();
  penstock_listener* listeners();  // PENSTOCK_LISTENERS_MAX
  penstock_upstream* upstreams();  // PENSTOCK_UPSTREAMS_MAX

  // ---- one flow. Every int is 0 or an errno. ----
  // Clears both directions of `slot`; nothing of the slot's last flow is counted any more.
  void clear(uint32_t slot, uint32_t thread, uint64_t cookie, const Thresholds& thresholds);
  // From here on the verdict knows the sockets by their cookies.
  int enter(uint32_t slot, const uint64_t cookies[2]);
  int take(uint32_t slot, uint32_t thread, const uint64_t cookies[2], const Thresholds& thresholds) {
    clear(slot, thread, cookies[0], thresholds);
    return enter(slot, cookies);
  }
  // Puts socket `index` (2 * slot or 2 * slot + 1) where the other one can redirect to.
  int join(uint32_t index, int fd);
  // From here to open_valve(), no more may queue up in the source than direction.limit_bytes, `queued_bytes`
  // being there now (truesize; what waits for the target included): opening hands it all over at once. Before
  // the last look at the queue.
  void prepare_valve(uint32_t index, uint32_t queued_bytes);
  void count_queued(uint32_t index, uint32_t bytes);  // found there after prepare_valve()
  void abandon_valve(uint32_t index);                 // not opened after all
  // Puts a source into the splice. `fresh`: nothing waits for the target (its write_seq is the new base).
  // EOPNOTSUPP: a FIN has passed. After it, kick().
  int open_valve(uint32_t index, int fd, bool fresh);
  // Hands over what arrived before the valve was open.
  static int kick(int fd);
  // Takes a source out under its socket lock. False: not closed, the direction is still spliced.
  bool close_valve(uint32_t index, int fd);
  bool closed(uint32_t index);
  int attach_trim(int fd);  // also for what a listener accepts
  // Forgets the cookies and the charges of `e.slot`, hides the flow where it is shown, counts its end, and
  // says what was spliced. All of it or nothing, also when this process dies meanwhile. Before the
  // descriptors are closed. False: that end was counted before.
  bool end(penstock_end* e);
  // Of a flow that was never counted: a self-test's. Its cookies and charges only.
  void leave(uint32_t slot, const uint64_t cookies[2]);
  // After the descriptors are closed: what a program that was already running has charged meanwhile.
  void settle(uint32_t slot);

  // ---- after a process that died between any two of its steps ----
  // Brings what is said of the valve of `index` in line with `sources`, where its socket is or is not. True:
  // it is open. REQUIRES: nobody else works on that flow.
  bool recover(uint32_t index, uint64_t cookie);
  bool ended(uint32_t slot, uint32_t generation);  // its end is counted
  // Takes socket `index` out of where it was put by join(): a socket is inserted once, or the kernel forgets
  // to take it out when it closes (net/core/sock_map.c, sock_map_del_link() finds both links).
  void part(uint32_t index);

  // ---- what operators see in `flows` ----
  int show(uint64_t cookie, const penstock_flow& flow);
  int publish(const penstock_publish& what);  // ENOENT: not shown
  void hide(uint64_t cookie);

  // ---- events of a thread ----
  int event_fd(uint32_t thread) const;  // readable when consume() has something
  void consume(uint32_t thread, const std::function<void(const penstock_event&)>& on_event);

  const std::string& cgroup() const;
  const std::string& pin_error() const;  // why nothing is pinned; empty when all is well
  const std::string& pin() const;

 private:
  struct Impl;
  explicit Sockmap(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace penstock::sockmap
