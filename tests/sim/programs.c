/* SPDX-License-Identifier: Apache-2.0 */
/* The programs as they are, with the helpers they call: what runs in a simulated verdict is what runs in a
 * real one. */
#include "sim/programs.h"

#include <linux/bpf.h>
#include <string.h>

#define __BPF_HELPERS__ /* instead of libbpf's own */
#define __BPF_CORE_READ_H__
#define SEC(name)
#define __uint(name, value) int(*name)[value]
#define __type(name, value) value* name
#define __array(name, value) value* name[]
#undef __always_inline
#define __always_inline inline __attribute__((always_inline))
#define __builtin_preserve_access_index(x) (x)
#define BPF_CORE_READ(from, member) ((from)->member)

struct tcp_sock;
static void* bpf_map_lookup_elem(void* map, const void* key);
static long bpf_map_update_elem(void* map, const void* key, const void* value, __u64 flags);
static long bpf_map_delete_elem(void* map, const void* key);
static long bpf_skb_adjust_room(struct __sk_buff* skb, __s32 by, __u32 mode, __u64 flags);
static long bpf_skb_load_bytes(const void* skb, __u32 offset, void* to, __u32 length);
static long bpf_sk_redirect_map(struct __sk_buff* skb, void* map, __u32 key, __u64 flags);
static __u64 bpf_get_socket_cookie(void* context);
#define bpf_skc_to_tcp_sock(socket) ((struct tcp_sock*)sim_tcp(socket))
#define bpf_sk_release(socket) ((void)(socket))
#define bpf_skb_pull_data(skb, length) 0
#define bpf_sock_ops_cb_flags_set(ops, flags) 0
#define bpf_ktime_get_ns() sim_now_ns()
#define bpf_ringbuf_reserve(ring, size, flags) sim_reserve(ring, size)
#define bpf_ringbuf_submit(event, flags) sim_submit(event)
#define bpf_ringbuf_discard(event, flags) sim_discard(event)

#include "bpf/penstock.bpf.c"

union segment {
  struct __sk_buff context;
  struct sk_buff skb;
};
static __thread void* t_socket; /* the program in hand runs for it */
static __thread int t_fin;

static enum sim_map which(const void* map) {
  if (map == &sources) return kSimSources;
  if (map == &targets) return kSimTargets;
  if (map == &direction_of) return kSimDirectionOf;
  if (map == &directions) return kSimDirections;
  if (map == &globals) return kSimGlobals;
  if (map == &flows) return kSimFlows;
  if (map == &totals) return kSimTotals;
  if (map == &listeners) return kSimListeners;
  if (map == &upstreams) return kSimUpstreams;
  return kSimEvents;
}

static void* bpf_map_lookup_elem(void* map, const void* key) {
  return sim_lookup(which(map), key);
}
static long bpf_map_update_elem(void* map, const void* key, const void* value, __u64 flags) {
  (void)flags;
  return -sim_update(which(map), key, value);
}
static long bpf_map_delete_elem(void* map, const void* key) {
  return -sim_delete(which(map), key);
}
static long bpf_skb_adjust_room(struct __sk_buff* skb, __s32 by, __u32 mode, __u64 flags) {
  (void)mode, (void)flags;
  skb->len += (__u32)by;
  return 0;
}
static long bpf_skb_load_bytes(const void* skb, __u32 offset, void* to, __u32 length) {
  (void)skb, (void)offset, (void)length;
  __u8* out = to; /* data offset, flags: RFC 9293 3.1 */
  out[0] = kSimTcpHeaderBytes / 4 << 4;
  out[1] = (__u8)t_fin;
  return 0;
}
static long bpf_sk_redirect_map(struct __sk_buff* skb, void* map, __u32 key, __u64 flags) {
  (void)skb, (void)map, (void)flags;
  return sim_redirect(key) ? SK_PASS : SK_DROP;
}
static __u64 bpf_get_socket_cookie(void* context) {
  (void)context;
  return sim_cookie(t_socket);
}

int sim_verdict(struct sim_segment* segment, void* source) {
  union segment u;
  memset(&u, 0, sizeof u);
  u.skb.len = segment->length;
  u.skb.truesize = segment->truesize;
  ((struct tcp_skb_cb*)u.skb.cb)->seq = segment->seq;
  u.context.sk = source;
  t_socket = source;
  int result = verdict(&u.context);
  segment->length = u.skb.len;
  return result;
}

void sim_socket_ops(void* socket, int current_mss) {
  struct bpf_sock_ops ops;
  memset(&ops, 0, sizeof ops);
  ops.op = BPF_SOCK_OPS_HDR_OPT_LEN_CB;
  ops.args[0] = current_mss ? BPF_WRITE_HDR_TCP_CURRENT_MSS : 0;
  ops.sk = socket;
  t_socket = socket;
  socket_ops(&ops);
}

uint32_t sim_trim(const struct sim_segment* segment, void* socket) {
  union segment u;
  memset(&u, 0, sizeof u);
  u.skb.len = segment->length + kSimTcpHeaderBytes;
  u.skb.truesize = segment->truesize;
  t_socket = socket;
  t_fin = segment->fin;
  return (uint32_t)trim(&u.context);
}

int sim_enter(void* names) {
  return enter(names);
}
int sim_end_flow(void* end) {
  return end_flow(end);
}
int sim_settle(void* names) {
  return settle(names);
}
int sim_publish(void* what) {
  return publish(what);
}
