// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* bpf/penstock.bpf.c: the pipe. Seven programs around two sockmaps:
 *
 * - verdict (sk_skb, on `sources`) hands every segment a source receives to its target;
 * - socket_ops (sock_ops, on our cgroup) closes a valve, takes a source out, under the socket lock;
 * - trim (socket filter, on every source) is the hard bound when userspace is late;
 * - publish (syscall) writes userspace's fields of `flows`;
 * - enter, end_flow and settle (syscall) do whole or not at all what a death of userspace may not tear.
 *
 * Why each is the way it is: README.md beside this file. What keeps it true: tests/bpf, tests/netns, the
 * self-test. */
#include "kernel.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define SMALL_SEGMENT 2048  /* below this, nothing is worth making linear */
#define SMALL_FRAGMENT 4096 /* a segment with fragments below this is made linear */
#define ADJUST_MAX 4095     /* most bytes one bpf_skb_adjust_room() takes off */
#define ADJUSTS_MAX 160     /* enough for a 640 KiB BIG TCP segment */
#define TCP_FLAG_FIN 1

struct {
  __uint(type, BPF_MAP_TYPE_SOCKMAP);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, __u64);
} sources SEC(".maps"), targets SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_HASH); /* socket cookie -> direction it is the source of */
  __uint(max_entries, 1);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, __u64);
  __type(value, __u32);
} direction_of SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, 1);
  __uint(map_flags, BPF_F_MMAPABLE);
  __type(key, __u32);
  __type(value, struct penstock_direction);
} directions SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, 1);
  __uint(map_flags, BPF_F_MMAPABLE);
  __type(key, __u32);
  __type(value, struct penstock_globals);
} globals SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 1);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, __u64);
  __type(value, struct penstock_flow);
} flows SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, PENSTOCK_LISTENERS_MAX);
  __uint(map_flags, BPF_F_MMAPABLE);
  __type(key, __u32);
  __type(value, struct penstock_listener);
} listeners SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, PENSTOCK_UPSTREAMS_MAX);
  __uint(map_flags, BPF_F_MMAPABLE);
  __type(key, __u32);
  __type(value, struct penstock_upstream);
} upstreams SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, 1);
  __uint(map_flags, BPF_F_MMAPABLE);
  __type(key, __u32);
  __type(value, struct penstock_totals);
} totals SEC(".maps");

struct event_ring {
  __uint(type, BPF_MAP_TYPE_RINGBUF);
  __uint(max_entries, 256 * 1024);
};
struct {
  __uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
  __uint(max_entries, PENSTOCK_THREADS_MAX);
  __type(key, __u32);
  __array(values, struct event_ring);
} events SEC(".maps");

#if PENSTOCK_LAYOUT_STEP
struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, __u64);
} next_layout SEC(".maps");
#endif

const volatile __u32 pull_enabled = 1;
const volatile __u32 cut_enabled = 1; /* off only to show that the self-test notices */

static __always_inline struct penstock_globals* get_globals(void) {
  __u32 zero = 0;
  return bpf_map_lookup_elem(&globals, &zero);
}

static __always_inline int closed(const struct penstock_direction* d) {
  return d->closed_epoch == d->epoch;
}

/* An event for the worker that owns the direction, or null: the ring is full. Submitted when what it tells is
 * done, and always with a wake-up: the reader waits for an edge. */
static __always_inline struct penstock_event* begin_event(const struct penstock_direction* d, __u32 index,
                                                          __u32 kind) {
  __u32 thread = d->thread;
  void* ring = bpf_map_lookup_elem(&events, &thread);
  if (!ring) return 0;
  struct penstock_event* e = bpf_ringbuf_reserve(ring, sizeof *e, 0);
  if (!e) return 0;
  e->direction = index;
  e->epoch = d->epoch;
  e->kind = kind;
  e->reserved = 0;
  return e;
}

/* Bytes redirected and not yet taken by the target's tcp_sendmsg(). Only differences of 32-bit sequence
 * numbers: exact as long as less than 2 GiB wait. */
static __always_inline __u32 backlog(const struct penstock_direction* d, __u32 target_write_seq) {
  __s32 waiting = (__s32)((__u32)(d->redirected - d->base_redirected) - (target_write_seq - d->base_seq));
  return waiting > 0 ? waiting : 0;
}

static __always_inline void make_mark(struct penstock_direction* d) {
  struct penstock_mark* m = &d->mark[d->marks & (PENSTOCK_MARKS - 1)];
  m->position = d->redirected;
  m->truesize = d->truesize;
  d->marks++;
}

/* The memory of the segments behind the last `waiting` bytes: everything since the newest mark that is all
 * written. Never too low, at most limit_bytes / 8 and a segment too high. Payload would not do: a segment of
 * one byte costs hundreds, a page of a network card may carry a quarter of what it is charged for. */
static __always_inline __u32 memory_behind(const struct penstock_direction* d, __u32 waiting) {
  if (!waiting) return 0;
  __u32 written = (__u32)d->redirected - waiting, made = d->marks, oldest = 0;
  for (__u32 i = 1; i <= PENSTOCK_MARKS; i++) {
    if (i > made) break;
    const struct penstock_mark* m = &d->mark[(made - i) & (PENSTOCK_MARKS - 1)];
    oldest = d->truesize - m->truesize;
    if ((__s32)(written - m->position) >= 0) return oldest;
  }
  return oldest + d->limit_bytes / PENSTOCK_MARKS;
}

/* Whoever stores a new charge also corrects the sum: the sum is exact at every moment. */
static __always_inline void charge(struct penstock_direction* d, struct penstock_globals* g, __u32 bytes) {
  if (d->charged == bytes) return;
  __u32 before = __sync_lock_test_and_set(&d->charged, bytes);
  __sync_fetch_and_add(&g->held_bytes, (__u64)bytes - before);
}

/* What all flows hold: here, and in the pipes of relayed directions. */
static __always_inline __u64 all_held(const struct penstock_globals* g) {
  __u32 zero = 0;
  struct penstock_totals* t = bpf_map_lookup_elem(&totals, &zero);
  return g->held_bytes + (t ? t->pipe_bytes : 0);
}

/* The threshold shrinks as all flows together approach the limit: an eighth of what is left of five eighths
 * of it, so no number of directions fills the rest by this alone (shared-buffer switches do the same). */
static __always_inline __u32 threshold(const struct penstock_direction* d, const struct penstock_globals* g) {
  __u64 held = all_held(g), limit = g->memory_limit_bytes / 8 * 5;
  __u64 share = held < limit ? (limit - held) >> 3 : 0;
  return share < d->high_bytes ? share : d->high_bytes;
}

/* TCP queues whole segments and only remembers how much of the first one is read; tcp_read_skb() ignores that
 * (net/ipv4/tcp.c). A segment that overlaps what was read, by retransmission or by a part read by userspace,
 * would reach the target twice: cut its head. Returns 0 when the segment may go on. */
static __always_inline int cut_overlap(struct __sk_buff* skb, struct tcp_sock* source,
                                       struct penstock_globals* g) {
  struct sk_buff* k = (struct sk_buff*)skb;
  struct tcp_skb_cb* cb = (struct tcp_skb_cb*)__builtin_preserve_access_index(&k->cb);
  __u32 seq = BPF_CORE_READ(cb, seq);
  __s32 stale = (__s32)(source->copied_seq - seq);
  if (stale <= 0) return 0;
  if ((__u32)stale > skb->len) return -1;
  __u32 whole = (__u32)stale / ADJUST_MAX, rest = (__u32)stale % ADJUST_MAX;
  if (whole > ADJUSTS_MAX) return -1;
  for (__u32 n = 0; n < ADJUSTS_MAX; n++) {
    if (n >= whole) break;
    if (bpf_skb_adjust_room(skb, -ADJUST_MAX, 0, 0)) return -1;
  }
  if (rest && bpf_skb_adjust_room(skb, -(__s32)rest, 0, 0)) return -1;
  __sync_fetch_and_add(&g->overlaps, 1);
  __sync_fetch_and_add(&g->overlap_bytes, stale);
  return 0;
}

/* The kernel sends a redirected segment fragment by fragment, each as a packet of its own: a GRO segment of
 * 31 fragments costs several times what copying it into one piece does. */
static __always_inline void pull_fragments(struct __sk_buff* skb, struct penstock_globals* g) {
  struct sk_buff* k = (struct sk_buff*)skb;
  __u32 nonlinear = BPF_CORE_READ(k, data_len);
  if (nonlinear < 2 || skb->len < SMALL_SEGMENT) return;
  struct skb_shared_info* shared = (struct skb_shared_info*)(BPF_CORE_READ(k, head) + BPF_CORE_READ(k, end));
  __u32 fragments = BPF_CORE_READ(shared, nr_frags);
  if (!BPF_CORE_READ(shared, frag_list) && (fragments < 2 || nonlinear >= fragments * SMALL_FRAGMENT)) return;
  if (bpf_skb_pull_data(skb, skb->len))
    __sync_fetch_and_add(&g->pulls_failed, 1);
  else
    __sync_fetch_and_add(&g->pulls, 1);
}

static __always_inline int broken(struct penstock_direction* d, __u32 index, __u32 why) {
  if (!d->broken) {
    struct penstock_event* e = begin_event(d, index, PENSTOCK_EVENT_BROKEN);
    if (e) {
      d->broken = why;
      bpf_ringbuf_submit(e, BPF_RB_FORCE_WAKEUP);
    }
  }
  return SK_DROP;
}

/* Runs under the source's socket lock, one segment at a time. SK_DROP means acked bytes are lost, except for
 * the empty segment of a FIN; so every other drop is told to the worker, which resets the flow. */
SEC("sk_skb/stream_verdict")
int verdict(struct __sk_buff* skb) {
  __u32 length = skb->len;
  if (length == 0) return SK_DROP;
  __u64 cookie = bpf_get_socket_cookie(skb);
  __u32* entry = bpf_map_lookup_elem(&direction_of, &cookie);
  if (!entry) return SK_DROP; /* flow ended: reset is on its way */
  __u32 index = *entry, peer = index ^ 1;
  struct penstock_direction* d = bpf_map_lookup_elem(&directions, &index);
  struct penstock_globals* g = get_globals();
  if (!d || !g) return SK_DROP;

  struct bpf_sock* source_sk = skb->sk;
  if (!source_sk) return broken(d, index, PENSTOCK_BROKEN_TARGET_GONE);
  struct tcp_sock* source = bpf_skc_to_tcp_sock(source_sk);
  if (!source) return broken(d, index, PENSTOCK_BROKEN_TARGET_GONE);
  if (cut_enabled && cut_overlap(skb, source, g)) return broken(d, index, PENSTOCK_BROKEN_OVERLAP);
  if (pull_enabled) pull_fragments(skb, g);
  length = skb->len;
  if (length == 0) return SK_DROP; /* old data sent again with a new FIN */

  struct sk_buff* kernel_skb = (struct sk_buff*)skb;
  __u32 truesize = BPF_CORE_READ(kernel_skb, truesize), waiting = 0;
  struct bpf_sock* target_sk = bpf_map_lookup_elem(&targets, &peer);
  if (!target_sk) return broken(d, index, PENSTOCK_BROKEN_TARGET_GONE);
  struct tcp_sock* target = bpf_skc_to_tcp_sock(target_sk);
  if (target) {
    __u32 write_seq = target->write_seq;
    if (d->base_taken != d->base_epoch) {
      d->base_seq = write_seq;
      d->base_redirected = d->redirected;
      d->base_taken = d->base_epoch;
    }
    waiting = backlog(d, write_seq);
  }
  bpf_sk_release(target_sk);

#if PENSTOCK_LAYOUT_STEP
  __u32 first = 0;
  __u64* all = bpf_map_lookup_elem(&next_layout, &first);
  if (all) __sync_fetch_and_add(all, 1);
  d->verdicts++;
#endif
  if (bpf_sk_redirect_map(skb, &targets, peer, 0) != SK_PASS)
    return broken(d, index, PENSTOCK_BROKEN_TARGET_GONE);
  if (!waiting) {
    d->marks = 0;
    make_mark(d);
  }
  d->backlog = (15 * (__u64)d->backlog + waiting) / 16;
  d->redirected += length;
  d->truesize += truesize;
  __u32 held = memory_behind(d, waiting + length);
  if (d->truesize - d->mark[(d->marks - 1) & (PENSTOCK_MARKS - 1)].truesize >=
      d->limit_bytes / PENSTOCK_MARKS)
    make_mark(d);
  d->active_ns = bpf_ktime_get_ns();
  charge(d, g, held);
  if (held > threshold(d, g) || d->backlog >= d->bulk_bytes) d->over_epoch = d->epoch;
  __u64 flow_cookie = d->flow_cookie;
  struct penstock_flow* flow = bpf_map_lookup_elem(&flows, &flow_cookie);
  if (flow) {
    if (index & 1)
      flow->down.spliced_bytes = d->redirected;
    else
      flow->up.spliced_bytes = d->redirected;
  }
  return SK_PASS;
}

/* Takes direction `index` out of `sources`. Safe only with the source's socket lock held and no verdict loop
 * to come: the kernel drops what a loop finds after the program is gone. */
static __always_inline void close_valve(struct penstock_direction* d, __u32 index,
                                        struct penstock_globals* g) {
  if (bpf_map_delete_elem(&sources, &index))
    __sync_fetch_and_add(&g->closes_refused, 1);
  else
    d->closed_epoch = d->epoch;
}

/* The same by the kernel's own decision: the worker must hear of it, or nobody would open the valve again. */
static __always_inline void close_valve_and_tell(struct penstock_direction* d, __u32 index,
                                                 struct penstock_globals* g) {
  struct penstock_event* e = begin_event(d, index, PENSTOCK_EVENT_CLOSED);
  if (!e) {
    __sync_fetch_and_add(&g->closes_refused, 1); /* tried again at the next segment */
    return;
  }
  close_valve(d, index, g);
  if (!closed(d)) {
    bpf_ringbuf_discard(e, 0);
    return;
  }
  __sync_fetch_and_add(&g->closes, 1);
  bpf_ringbuf_submit(e, BPF_RB_FORCE_WAKEUP);
}

/* Called under the socket lock whenever TCP computes the options of a segment it is about to send on one of
 * our sockets, and (args[0] == BPF_WRITE_HDR_TCP_CURRENT_MSS) at the start of every tcp_sendmsg(), a
 * zero-length one too. */
SEC("sockops")
int socket_ops(struct bpf_sock_ops* ops) {
  if (ops->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB || ops->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB) {
    bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
    return 1;
  }
  if (ops->op != BPF_SOCK_OPS_HDR_OPT_LEN_CB) return 1;
  __u64 cookie = bpf_get_socket_cookie(ops);
  __u32* entry = bpf_map_lookup_elem(&direction_of, &cookie);
  if (!entry) return 1;
  __u32 index = *entry, peer = index ^ 1;
  struct penstock_globals* g = get_globals();
  struct penstock_direction* in =
      bpf_map_lookup_elem(&directions, &peer); /* the direction that writes here */
  struct penstock_direction* out = bpf_map_lookup_elem(&directions, &index);
  if (!g || !in || !out) return 1;
  struct bpf_sock* sk = ops->sk;
  if (!sk) return 1;
  struct tcp_sock* tcp = bpf_skc_to_tcp_sock(sk);
  if (!tcp) return 1;

  if (in->charged) {
    charge(in, g, memory_behind(in, backlog(in, tcp->write_seq)));
  }
  if (closed(out)) return 1;
  /* args[0] is CURRENT_MSS only outside the verdict loop: ACKs the loop sends have 0 there. Otherwise an
   * empty receive queue says that nothing is left for the loop to find. */
  if (ops->args[0] == BPF_WRITE_HDR_TCP_CURRENT_MSS && out->want_close == out->epoch)
    close_valve(out, index, g);
  else if (out->over_epoch == out->epoch && tcp->inet_conn.icsk_inet.sk.sk_receive_queue.qlen == 0)
    close_valve_and_tell(out, index, g);
  return 1;
}

/* Runs in tcp_v4_rcv()/tcp_v6_rcv() before TCP sees the segment; skb->data is the TCP header. Returning the
 * header's length cuts the payload off: the ACK in it still counts, the data will be sent again. Only for the
 * time userspace and socket_ops are late, and for limits.memory. */
SEC("socket")
int trim(struct __sk_buff* skb) {
  __u64 cookie = bpf_get_socket_cookie(skb);
  __u32* entry = bpf_map_lookup_elem(&direction_of, &cookie);
  if (!entry) return skb->len;
  __u32 index = *entry;
  struct penstock_direction* d = bpf_map_lookup_elem(&directions, &index);
  struct penstock_globals* g = get_globals();
  if (!d || !g) return skb->len;
  if (closed(d)) {
    /* Opening hands over all that is queued by then, however long userspace takes from its last look to
     * there. */
    if (d->opening != d->epoch) return skb->len;
    __u32 truesize = BPF_CORE_READ((struct sk_buff*)skb, truesize);
    if (__sync_fetch_and_add(&d->opening_bytes, truesize) < d->limit_bytes) return skb->len;
  } else {
    __u32 held = d->charged;
    __u64 all = all_held(g), limit = g->memory_limit_bytes;
    /* A direction that keeps up passes a little longer than one that makes others wait. */
    if (held < d->limit_bytes && all < limit - (held ? limit / 8 : limit / 16)) return skb->len;
  }
  __u8 offset_flags[2];
  if (bpf_skb_load_bytes(skb, 12, offset_flags, sizeof offset_flags)) return skb->len;
  __u32 header = (offset_flags[0] >> 4) * 4;
  if (skb->len <= header) return skb->len;
  __sync_fetch_and_add(&g->trims, 1);
  __sync_fetch_and_add(&d->trimmed, 1);
  return offset_flags[1] & TCP_FLAG_FIN ? 0 : header; /* a FIN may not arrive before its data */
}

/* Nothing of `slot` is charged any more. */
static __always_inline void discharge(__u32 slot) {
  __u32 zero = 0;
  struct penstock_globals* g = bpf_map_lookup_elem(&globals, &zero);
  if (!g) return;
  for (__u32 side = 0; side < 2; side++) {
    __u32 index = 2 * slot + side;
    struct penstock_direction* d = bpf_map_lookup_elem(&directions, &index);
    if (d) charge(d, g, 0);
  }
}

SEC("syscall")
int enter(struct penstock_names* n) {
  discharge(n->slot); /* a program that ran for the slot's last flow may have charged after its end */
  for (__u32 side = 0; side < 2; side++) {
    __u64 cookie = n->cookie[side];
    __u32 index = 2 * n->slot + side;
    long error = bpf_map_update_elem(&direction_of, &cookie, &index, BPF_ANY);
    if (error) return -error;
  }
  return 0;
}

/* In the order of a userspace that must stay right when it dies between any two of its own steps: what the
 * operator sees goes first, the count is the last and comes once. */
SEC("syscall")
int end_flow(struct penstock_end* e) {
  __u64 client = e->cookie[0], upstream = e->cookie[1];
  __u32 zero = 0, up = 2 * e->slot, down = up + 1, listener = e->listener, to = e->upstream;
  struct penstock_direction* d = bpf_map_lookup_elem(&directions, &up);
  struct penstock_direction* back = bpf_map_lookup_elem(&directions, &down);
  struct penstock_totals* t = bpf_map_lookup_elem(&totals, &zero);
  struct penstock_listener* l = bpf_map_lookup_elem(&listeners, &listener);
  if (!d || !back || !t || !l) return 22; /* EINVAL */
  __u32 reason = e->reason;
  if (reason >= sizeof(struct penstock_closed) / sizeof(__u64)) return 22;
  if (e->spliced) {
    bpf_map_delete_elem(&direction_of, &client);
    bpf_map_delete_elem(&direction_of, &upstream);
    discharge(e->slot);
    e->spliced_bytes[0] = d->redirected;
    e->spliced_bytes[1] = back->redirected;
  }
  if (e->shown) bpf_map_delete_elem(&flows, &client);
  e->counted = d->ended != e->generation;
  if (!e->counted) return 0;
  d->ended = e->generation;
  __u64 spliced = e->spliced_bytes[0] + e->spliced_bytes[1];
  __sync_fetch_and_add(&t->updates_begun, 1);
  __sync_fetch_and_add(&t->spliced_bytes, spliced);
  __sync_fetch_and_add(&t->relayed_bytes, e->relayed_bytes);
  if (!e->relayed_bytes && spliced) __sync_fetch_and_add(&t->spliced_flows, 1);
  __sync_fetch_and_add((__u64*)&t->closed + reason, 1);
  __sync_fetch_and_add(&t->active, -1);
  __sync_fetch_and_add(&l->closed, 1);
  __sync_fetch_and_add(&l->active, -1);
  __sync_fetch_and_add(&t->updates_done, 1);
  struct penstock_upstream* u = to < PENSTOCK_UPSTREAMS_MAX ? bpf_map_lookup_elem(&upstreams, &to) : 0;
  if (u) __sync_fetch_and_add(&u->active, -1);
  return 0;
}

/* What a program that was already running at the end of a flow has charged since. */
SEC("syscall")
int settle(struct penstock_names* n) {
  discharge(n->slot);
  return 0;
}

SEC("syscall")
int publish(struct penstock_publish* p) {
  __u64 cookie = p->cookie;
  struct penstock_flow* flow = bpf_map_lookup_elem(&flows, &cookie);
  if (!flow) return 2; /* ENOENT */
  flow->phase = p->phase;
  flow->up.lane = p->lane[0];
  flow->up.lane_changes = p->lane_changes[0];
  flow->up.relayed_bytes = p->relayed_bytes[0];
  flow->down.lane = p->lane[1];
  flow->down.lane_changes = p->lane_changes[1];
  flow->down.relayed_bytes = p->relayed_bytes[1];
  return 0;
}
