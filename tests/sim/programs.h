// SPDX-License-Identifier: Apache-2.0
// sim/programs.h: bpf/penstock.bpf.c itself, compiled for this host, and what it asks of the kernel below it.
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// As struct tcp_sock of bpf/kernel.h is laid out.
struct sim_tcp_sock {
  uint32_t receive_queue_length, copied_seq, write_seq;
};
struct sim_segment {
  uint32_t length, truesize, seq;
  int fin;
};

// ---- the programs ----
int sim_verdict(struct sim_segment* segment,
                void* source);  // SK_PASS: it was redirected; length: after the cut
void sim_socket_ops(void* socket, int current_mss);
uint32_t sim_trim(const struct sim_segment* segment, void* socket);  // what is left, header included
int sim_enter(void* names);
int sim_end_flow(void* end);
int sim_settle(void* names);
int sim_publish(void* what);
enum { kSimTcpHeaderBytes = 20 };

// ---- the kernel: bpf.cc ----
enum sim_map {
  kSimSources,
  kSimTargets,
  kSimDirectionOf,
  kSimDirections,
  kSimGlobals,
  kSimFlows,
  kSimTotals,
  kSimListeners,
  kSimUpstreams,
  kSimEvents
};
void* sim_lookup(enum sim_map map, const void* key);
int sim_update(enum sim_map map, const void* key, const void* value);
int sim_delete(enum sim_map map, const void* key);
int sim_redirect(uint32_t target);
uint64_t sim_cookie(void* socket);
struct sim_tcp_sock* sim_tcp(void* socket);
void* sim_reserve(void* ring, size_t bytes);
void sim_submit(void* event);
void sim_discard(void* event);
uint64_t sim_now_ns(void);

#ifdef __cplusplus
}
#endif
