/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* bpf/abi.h: the contract between the BPF programs and userspace: map keys, values, limits, counters,
 * vocabulary. Read by clang for bpf and by C++. Every struct has one writer per cache line; the static
 * asserts keep the layout.
 *
 * A flow occupies a slot. Its two sockets, and the two directions they are the source of, are numbered
 *   2 * slot      client socket,   direction up   (client -> upstream)
 *   2 * slot + 1  upstream socket, direction down (upstream -> client)
 * so direction i reads from socket i and writes to socket i ^ 1. `sources`, `targets` and `directions` share
 * this index.
 */
#ifndef PENSTOCK_ABI_H
#define PENSTOCK_ABI_H

#ifdef __bpf__
#include "kernel.h"
#else
#include <linux/types.h>
#endif

/* Of every map below: maps outlive the programs that made them (penstock upgrade). A layout's number counts
 * up by one where a field takes its room from a reserve and zero means "as before", by two with any other
 * change. A build with a step has the next layout, with a field more; with 2 one that is too far. */
#ifndef PENSTOCK_LAYOUT_STEP
#define PENSTOCK_LAYOUT_STEP 0
#endif
#define PENSTOCK_LAYOUT (6 + PENSTOCK_LAYOUT_STEP)
#define PENSTOCK_THREADS_MAX 256
#define PENSTOCK_LISTENERS_MAX 1024
#define PENSTOCK_UPSTREAMS_MAX 1024
#define PENSTOCK_TEXT_BYTES 48 /* "[ffff:...:ffff]:65535" with its NUL fits */
#define PENSTOCK_NAME_BYTES 32 /* shown, not identity: longer names are cut */
#define PENSTOCK_SNI_BYTES 64

#define PENSTOCK_CLOSE_REASONS_MAX 48 /* room for those to come */
#define PENSTOCK_LANE_CHANGES_MAX 16

/* ---- vocabulary: enumerator = counter = access-log word. Append only. ---- */

/* Why a flow ended, and whose doing it was. */
#define PENSTOCK_CLOSE_REASONS(X)                                                                            \
  X(completed)              /* both sides said FIN and both got every byte */                                \
  X(client_reset)           /* client: RST */                                                                \
  X(upstream_reset)         /* upstream: RST */                                                              \
  X(client_timeout)         /* client: gone without a word (keepalive, TCP_USER_TIMEOUT) */                  \
  X(upstream_timeout)       /* upstream: likewise */                                                         \
  X(client_closed_early)    /* client: FIN before its hello was complete */                                  \
  X(client_hello_timeout)   /* client: hello not complete within timeouts.client_hello */                    \
  X(client_hello_malformed) /* client: TLS that cannot be read */                                            \
  X(route_rejected)         /* operator: a route with action = "reject" */                                   \
  X(resolve_failed)         /* upstream: its name has no address */                                          \
  X(connect_refused)        /* upstream: RST to our SYN */                                                   \
  X(connect_unreachable)    /* upstream: no route, or ICMP says so */                                        \
  X(connect_timeout)        /* upstream: silent for timeouts.connect */                                      \
  X(connect_failed)         /* us or upstream: any other error of connect(2), logged */                      \
  X(idle_timeout)           /* both: no byte for timeouts.idle */                                            \
  X(half_closed_timeout)    /* the side that did not close, or has not acknowledged all: no byte for it */   \
  X(max_flows)              /* operator: bpf.max_flows or a limits.max_flows reached */                      \
  X(fd_limit)               /* operator: no descriptor, port or memory for the upstream socket, or a pipe */ \
  X(memory_limit)           /* operator: limits.memory; refused, or the one that held most */                \
  X(killed)                 /* operator: ended by command */                                                 \
  X(shutdown)               /* operator: still open when the grace was over */                               \
  X(account_mismatch)       /* us or the kernel: the byte accounts did not add up; reset, never a FIN */     \
  X(splice_broken)          /* the kernel: the verdict could not redirect */                                 \
  X(urgent_data) /* either side: TCP urgent data in a direction that must be relayed: splice(2) cannot pass  \
                    it */                                                                                    \
  X(internal_error) /* us: a system call failed that should not; logged */                                   \
  X(no_server)      /* upstream or operator: every server is drained, or down with on_down not "try" */      \
  X(server_down)    /* upstream: its server was marked down, with on_marked_down = "close" */                \
  X(proxy_header_timeout)   /* proxy in front: header not complete within timeouts.proxy_header */           \
  X(proxy_header_malformed) /* proxy in front: no PROXY header, or one that cannot be read */                \
  X(proxy_not_trusted)      /* client: not in accept_proxy.from, which is for proxies alone; or it began     \
                               like a PROXY header */                                                        \
  X(proxy_probe)            /* proxy in front: looked whether we are there: no byte, or LOCAL and no data */ \
  X(denied)                 /* client: of the listener's `deny`, or not of its `allow` */                    \
  X(max_flows_per_client)   /* client: has as many flows as limits.max_flows_per_client */                   \
  X(new_flows_per_client)   /* client: comes more often than limits.new_flows_per_client */                  \
  X(adoption_failed)        /* us: a worker died, and of what it left of this flow nothing can be made */    \
  X(worker_crashed)         /* us: a worker that had it in hand crashed, and the next one too */

/* Why a direction changed its lane. */
#define PENSTOCK_LANE_CHANGES(X)                                                          \
  X(backlog_high)        /* splice -> held, by the kernel: the target cannot take more */ \
  X(ordered)             /* by command */                                                 \
  X(backlog_low)         /* held -> splice: the target has caught up */                   \
  X(saturated)           /* held -> relay: it would only be held again */                 \
  X(cannot_reopen)       /* held -> relay: a FIN has passed, the sockmap refuses it */    \
  X(quiet)               /* relay -> splice */                                            \
  X(urgent)              /* relay -> splice: TCP urgent data */                           \
  X(refused_half_closed) /* open -> relay: closed on one side before the hand-off */      \
  X(refused_sockmap)     /* open -> relay: the sockmap said no; logged */                 \
  X(memory)              /* open -> held: limits.memory is nearly used up */              \
  X(engine)              /* open -> relay: the engine is io_uring */                      \
  X(first_bytes)         /* open -> held -> splice: accept_proxy's others = "direct" */

#define PENSTOCK_LANES(X) X(none) X(splice) X(held) X(relay) X(shut)

#define PENSTOCK_PHASES(X) \
  X(free) X(proxy_header) X(classifying) X(resolving) X(dialing) X(priming) X(handing_off) X(open) X(closing)

/* ---- directions: ARRAY, mmapable. One per direction. ---- */

#define PENSTOCK_MARKS 8 /* a power of two */

struct penstock_direction {
  /* Line 0. Written by the programs, under the source's socket lock (charged and trimmed: atomically, from
   * anywhere). Userspace clears it when the slot is taken for a new flow, before the sockets enter any map.
   */
  __u64 redirected;      /* bytes handed to the target's queue, of this flow */
  __u64 base_redirected; /* `redirected` when base_seq was taken */
  __u64 active_ns;       /* CLOCK_MONOTONIC of the last verdict */
  __u32 base_seq;        /* the target's write_seq when nothing was waiting */
  __u32 base_taken;      /* the base_epoch it was taken for */
  __u32 charged;         /* kernel memory that waits for the target; its sum is globals.held_bytes */
  __u32 closed_epoch;    /* == epoch: this direction is out of `sources` */
  __u32 over_epoch;      /* == epoch: over the threshold or bulk, to be closed at the next chance */
  __u32 broken;          /* enum penstock_broken */
  __u32 truesize;        /* memory of all segments redirected; only differences count */
  __u32 marks;           /* how many marks were made since nothing waited */
  __u32 trimmed;         /* segments whose payload the trim filter cut off */
  __u32 backlog;         /* bytes found waiting by each of the last verdicts, on average */
  /* Line 1. Written by userspace. */
  __u64 flow_cookie;   /* key in `flows` */
  __u32 epoch;         /* counts up at every insertion into `sources`; never reset */
  __u32 base_epoch;    /* counts up when base_seq is to be taken anew: nothing waits */
  __u32 want_close;    /* == epoch: close at the next tcp_current_mss() */
  __u32 high_bytes;    /* leave the splice when `charged` passes it */
  __u32 limit_bytes;   /* trim when `charged` passes it */
  __u32 thread;        /* whose ring buffer hears of it */
  __u32 opening;       /* == epoch: about to be opened; opening_bytes counts what arrives until it is */
  __u32 opening_bytes; /* truesize; the trim filter adds, atomically */
  __u32 bulk_bytes;    /* leave the splice when `backlog` passes it */
  __u32 ended;         /* direction up: the generation of the flow whose end was counted last; by end_flow */
#if PENSTOCK_LAYOUT_STEP
  __u32 verdicts; /* of the programs that have this field */
  __u32 reserved1[3];
#else
  __u32 reserved1[4];
#endif
  /* Line 2. Like line 0: which memory belongs to which bytes, a mark at every limit_bytes / 8 of memory. */
  struct penstock_mark {
    __u32 position; /* low bits of `redirected` behind a segment */
    __u32 truesize; /* of everything up to there */
  } mark[PENSTOCK_MARKS];
};

enum penstock_broken {
  PENSTOCK_BROKEN_NO = 0,
  PENSTOCK_BROKEN_TARGET_GONE = 1, /* the redirect was refused: acked bytes are lost */
  PENSTOCK_BROKEN_OVERLAP = 2,     /* a segment that overlaps read data could not be cut */
};

/* ---- events: RINGBUF per thread, in ARRAY_OF_MAPS. ---- */

enum penstock_event_kind { PENSTOCK_EVENT_CLOSED = 1, PENSTOCK_EVENT_BROKEN = 2 };
struct penstock_event {
  __u32 direction;
  __u32 epoch;
  __u32 kind;
  __u32 reserved;
};

/* ---- globals: ARRAY of one, mmapable. ---- */

struct penstock_globals {
  /* Lines 0 and 1: the programs, atomically. */
  __u64 held_bytes; /* sum of `charged` */
  __u64 reserved0[7];
  __u64 closes;         /* valves closed by the kernel at the threshold */
  __u64 closes_refused; /* map_delete or the ring buffer refused: tried again at the next segment */
  __u64 trims;          /* segments trimmed */
  __u64 overlaps;       /* segments cut because part of them had been read */
  __u64 overlap_bytes;
  __u64 pulls; /* segments made linear */
  __u64 pulls_failed;
  __u64 reserved1;
  /* Line 2: userspace. */
  __u64 memory_limit_bytes;
  __u64 reserved2[7];
};

/* ---- what an operator dumps: pinned, BTF names every field ---- */

enum penstock_phase {
#define X(name) phase_##name,
  PENSTOCK_PHASES(X)
#undef X
};
enum penstock_lane {
#define X(name) lane_##name,
  PENSTOCK_LANES(X)
#undef X
};

struct penstock_flow_direction {
  __u64 spliced_bytes; /* the verdict */
  __u64 relayed_bytes; /* userspace, at lane changes and at most 100 ms late */
  enum penstock_lane lane;
  __u32 lane_changes;
};

/* flows: HASH, key: the client socket's cookie (`ss -e`, "sk:"). Live flows only. */
struct penstock_flow {
  struct penstock_flow_direction up, down;
  enum penstock_phase phase;
  __u32 slot;
  __u64 upstream_cookie;
  __u64 accepted_ns; /* CLOCK_MONOTONIC */
  char client[PENSTOCK_TEXT_BYTES];
  char server[PENSTOCK_TEXT_BYTES];
  char listener[PENSTOCK_NAME_BYTES];
  char upstream[PENSTOCK_NAME_BYTES];
  char sni[PENSTOCK_SNI_BYTES];
  __u64 reserved[4];
};

/* totals: ARRAY of one, mmapable; accepted = active + the sum of closed. The counters of that law, here and
 * in `listeners`, change together: a copy made from the first field to the last in which updates_done and
 * updates_begun are equal saw every change whole, and the law is exact in it. */
struct penstock_closed {
#define X(name) __u64 name;
  PENSTOCK_CLOSE_REASONS(X)
#undef X
};
struct penstock_lane_changes {
#define X(name) __u64 name;
  PENSTOCK_LANE_CHANGES(X)
#undef X
};
#define X(name) +1
#define PENSTOCK_RESERVED_REASONS (PENSTOCK_CLOSE_REASONS_MAX - (0 PENSTOCK_CLOSE_REASONS(X)))
#define PENSTOCK_RESERVED_LANE_CHANGES (PENSTOCK_LANE_CHANGES_MAX - (0 PENSTOCK_LANE_CHANGES(X)))
struct penstock_totals {
  __u64 updates_done;
  __u64 accepted;
  __u64 active;
  struct penstock_closed closed;
  __u64 reserved0[PENSTOCK_RESERVED_REASONS];
  __u64 spliced_bytes; /* of closed flows */
  __u64 relayed_bytes;
  __u64 spliced_flows; /* closed flows of which every byte was spliced */
  struct penstock_lane_changes lane_changes;
  __u64 reserved1[PENSTOCK_RESERVED_LANE_CHANGES];
  __u64 late_completions; /* of operations of flows that were gone; dropped */
  __u64 accept_failed;    /* accept(2) itself: descriptors, memory */
  __u64 pipes;            /* pipes in use */
  __u64 pipe_bytes;       /* their capacity */
  __u64 pipes_refused;    /* no descriptor or no memory for a pipe: the direction waited */
  __u64 tlvs_dropped;     /* TLVs of a proxy in front that were not passed on: too many bytes */
  __u64 reserved2[8];
  __u64 updates_begun;
};
#undef X

/* listeners, upstreams: ARRAY, mmapable. A name keeps its entry over reloads; an empty name is an unused
 * entry. */
struct penstock_listener {
  char name[PENSTOCK_NAME_BYTES];
  __u64 accepted, active, closed;
  __u64 reserved[5];
};
struct penstock_upstream {
  char name[PENSTOCK_NAME_BYTES];
  __u64 dialed, dial_failed, active, resolve_failed;
  __u64 reserved[4];
};

/* publish: what userspace writes into its fields of a `flows` entry, in place (a program of type syscall does
 * it: replacing the element from userspace would lose what the verdict counts meanwhile). */
struct penstock_publish {
  __u64 cookie;
  enum penstock_phase phase;
  enum penstock_lane lane[2];
  __u32 lane_changes[2];
  __u32 reserved;
  __u64 relayed_bytes[2];
};

/* enter: the cookies by which the programs know a flow's two sockets, and what its slot's last flow had still
 * charged is given back. */
struct penstock_names {
  __u64 cookie[2];
  __u32 slot;
  __u32 reserved;
};

/* end_flow: its cookies are forgotten, its charges given back, its end counted: once for each generation of a
 * slot, however often it is asked to, and all of it or nothing: a process that dies while it waits for a
 * program does not end the program. */
struct penstock_end {
  __u64 cookie[2]; /* 0: not known */
  __u32 slot;
  __u32 generation;
  __u32 listener;
  __u32 upstream; /* UINT32_MAX: in no `active` of an upstream */
  __u32 reason;   /* index in penstock_closed */
  __u32 shown;    /* in `flows` */
  __u32 spliced;  /* the programs have counted for this flow */
  __u32 counted;  /* out: 1: now; 0: it was counted before */
  __u64 relayed_bytes;
  __u64 spliced_bytes[2]; /* out */
};

#ifdef __cplusplus
#define PENSTOCK_STATIC_ASSERT(x) static_assert(x)
#else
#define PENSTOCK_STATIC_ASSERT(x) _Static_assert(x, #x)
#endif
PENSTOCK_STATIC_ASSERT(sizeof(struct penstock_direction) == 192);
PENSTOCK_STATIC_ASSERT(__builtin_offsetof(struct penstock_direction, flow_cookie) == 64);
PENSTOCK_STATIC_ASSERT(sizeof(struct penstock_globals) == 192);
PENSTOCK_STATIC_ASSERT(sizeof(struct penstock_event) == 16);
PENSTOCK_STATIC_ASSERT(sizeof(struct penstock_end) == 72);
/* Of the maps whose entries are not made anew: the same for every layout. */
PENSTOCK_STATIC_ASSERT(sizeof(struct penstock_flow) == 328);
PENSTOCK_STATIC_ASSERT(sizeof(struct penstock_totals) == 680);
PENSTOCK_STATIC_ASSERT(sizeof(struct penstock_listener) == 96);
PENSTOCK_STATIC_ASSERT(sizeof(struct penstock_upstream) == 96);

#endif
