/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What really waits for a target: walks its psock's queue. This is what tests hold the verdict's account
 * against. Run by BPF_PROG_TEST_RUN; the target stands in `watched`, which may be a daemon's own `targets`,
 * at the index that the packet begins with. */
#include "kernel.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define SHARED_INFO_BYTES 320 /* skb_shared_info, aligned */
#define SKB_BYTES 256         /* sk_buff, aligned */

struct {
  __uint(type, BPF_MAP_TYPE_SOCKMAP);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, __u64);
} watched SEC(".maps");

struct {
  __u64 segments, bytes, truesize_bytes, linear_bytes, first_bytes;
} found;

struct sock___queued {
  void* sk_user_data; /* low three bits are flags: SK_USER_DATA_PTRMASK, include/net/sock.h */
} __attribute__((preserve_access_index));
struct sk_buff___queued {
  struct sk_buff___queued* next;
  __u32 len, data_len, truesize, end;
} __attribute__((preserve_access_index));
struct sk_buff_head___queued {
  struct sk_buff___queued* next;
} __attribute__((preserve_access_index));
struct sk_psock___queued {
  struct sk_buff_head___queued ingress_skb;
} __attribute__((preserve_access_index));

struct walk {
  struct sk_buff___queued *skb, *head;
};

static long visit(__u32 i, struct walk* w) {
  (void)i;
  struct sk_buff___queued* skb = w->skb;
  if (!skb || skb == w->head) return 1;
  __u32 truesize = BPF_CORE_READ(skb, truesize);
  /* The smallest allocation that a linear part of this size can come from, whatever truesize says. */
  __u32 linear = BPF_CORE_READ(skb, end) + SHARED_INFO_BYTES + SKB_BYTES;
  if (!found.segments) found.first_bytes = truesize > linear ? truesize : linear;
  found.segments++;
  found.bytes += BPF_CORE_READ(skb, len);
  found.truesize_bytes += truesize;
  found.linear_bytes += BPF_CORE_READ(skb, data_len) ? 0 : linear;
  w->skb = BPF_CORE_READ(skb, next);
  return 0;
}

SEC("tc")
int measure(struct __sk_buff* packet) {
  __builtin_memset(&found, 0, sizeof found);
  __u32 index = 0;
  if (bpf_skb_load_bytes(packet, 0, &index, sizeof index)) return 1;
  struct bpf_sock* sk = bpf_map_lookup_elem(&watched, &index);
  if (!sk) return 1;
  struct tcp_sock* tcp = bpf_skc_to_tcp_sock(sk);
  if (tcp) {
    void* data =
        BPF_CORE_READ((struct sock___queued*)tcp, sk_user_data); /* a tcp_sock begins with its sock */
    struct sk_psock___queued* psock = (struct sk_psock___queued*)((unsigned long)data & ~7ul);
    struct walk w = {BPF_CORE_READ(psock, ingress_skb.next), (struct sk_buff___queued*)&psock->ingress_skb};
    bpf_loop(1 << 16, visit, &w, 0);
  }
  bpf_sk_release(sk);
  return 0;
}
