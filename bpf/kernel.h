/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* bpf/kernel.h: the few kernel types the programs read, with only the fields they read. CO-RE relocates every
 * access against the running kernel's BTF, so one binary serves them all and nothing is dumped from a build
 * machine. */
#ifndef PENSTOCK_KERNEL_H
#define PENSTOCK_KERNEL_H

#include <linux/bpf.h>
#include <linux/types.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct sk_buff_head {
  __u32 qlen;
};
struct sock {
  struct sk_buff_head sk_receive_queue;
};
struct inet_sock {
  struct sock sk;
};
struct inet_connection_sock {
  struct inet_sock icsk_inet;
};
struct tcp_sock {
  struct inet_connection_sock inet_conn;
  __u32 copied_seq;
  __u32 write_seq;
};
struct sk_buff {
  __u32 len, data_len, truesize, end;
  unsigned char* head;
  char cb[48];
};
struct tcp_skb_cb { /* include/net/tcp.h, in sk_buff.cb */
  __u32 seq;
};
struct skb_shared_info {
  __u8 nr_frags;
  struct sk_buff* frag_list;
};

#pragma clang attribute pop

#endif
