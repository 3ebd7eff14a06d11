// SPDX-License-Identifier: Apache-2.0
// libbpf as userspace/sockmap calls it, over maps in plain memory, and the helpers of the programs. Opened
// once; reset_maps() between two lives.
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <map>
#include <unordered_map>

#include "sim/kernel.h"
#include "sim/sockmap.h"
#include "sockmap/cgroup.h"

struct bpf_map {
  std::string name;
  int fd = -1;
  uint32_t entries = 1;
};
struct bpf_program {
  std::string name;
  int fd = -1;
};

namespace penstock::sim {
namespace {

enum Number {
  kSources = 1,
  kTargets,
  kFlows,
  kEnter,
  kEndFlow,
  kSettle,
  kPublish,
  kTrim,
  kOther
};  // instead of descriptors

uint32_t g_unused_rodata[2];
std::map<std::string, bpf_map> g_named_maps;

struct Maps {
  std::array<Socket*, 2 * kFlowsMax> sources{}, targets{};
  std::unordered_map<uint64_t, uint32_t> direction_of;
  std::unordered_map<uint64_t, penstock_flow> flows;
  std::deque<penstock_event> ring[kThreads];
  penstock_direction* directions = nullptr;
  penstock_globals* globals = nullptr;
  penstock_totals* totals = nullptr;
  penstock_listener* listeners = nullptr;
  penstock_upstream* upstreams = nullptr;
};
Maps g_maps;

// Where the real maps are memory shared with userspace, it maps this memory.
int memory(size_t bytes, void** where) {
  const int fd = memfd_create("sim-map", MFD_CLOEXEC);
  if (fd < 0 || ftruncate(fd, static_cast<off_t>(bytes))) abort();
  if (where) *where = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  return fd;
}

int insert(std::array<Socket*, 2 * kFlowsMax>& map, bool into_sources, uint32_t index, int fd) {
  const Call call("bpf(update)");
  File* f = g_kernel->file(fd);
  if (!f) return EBADF;
  if (int error = g_kernel->fault("bpf(insert)", {ENOMEM})) return error;
  Socket* s = f->socket;
  if (s->state != TCP_ESTABLISHED) return EOPNOTSUPP;
  if (map[index] && (into_sources || map[index] != s)) return EBUSY;
  map[index] = s;
  if (into_sources && !s->trim) g_kernel->violated("a source has no trim: nothing would bound it");
  (into_sources ? s->source_index : s->target_index) = static_cast<int>(index);
  if (into_sources && g_kernel->weather.opening_takes) g_kernel->kick(s);
  return 0;
}

}  // namespace

void Kernel::reset_maps() {
  g_maps.sources.fill(nullptr);
  g_maps.targets.fill(nullptr);
  g_maps.direction_of.clear();
  g_maps.flows.clear();
  for (auto& ring : g_maps.ring) ring.clear();
  memset(static_cast<void*>(g_maps.directions), 0, sizeof *g_maps.directions * 2 * kFlowsMax);
  const uint64_t limit = g_maps.globals->memory_limit_bytes;
  memset(static_cast<void*>(g_maps.globals), 0, sizeof *g_maps.globals);
  g_maps.globals->memory_limit_bytes = limit;
  memset(static_cast<void*>(g_maps.totals), 0, sizeof *g_maps.totals);
}

MapsLeft maps_left() {
  MapsLeft left{g_maps.direction_of.size(), g_maps.flows.size(), 0, 0};
  for (Socket* s : g_maps.sources) left.sources += s != nullptr;
  for (Socket* s : g_maps.targets) left.targets += s != nullptr;
  return left;
}

uint64_t Kernel::waiting_bytes(uint32_t direction) const {
  const Socket* target = g_maps.targets[direction ^ 1];
  return target ? target->backlog_truesize : 0;
}

bool ring_readable(uint32_t thread) {
  return !g_maps.ring[thread].empty();
}

}  // namespace penstock::sim

using namespace penstock::sim;  // NOLINT: what follows has C names

// ---- what the programs call ----
extern "C" {

void* sim_lookup(sim_map map, const void* key) {
  const uint32_t index = *static_cast<const uint32_t*>(key);
  switch (map) {
    case kSimSources:
      return g_maps.sources[index];
    case kSimTargets:
      return g_maps.targets[index];
    case kSimDirections:
      return &g_maps.directions[index];
    case kSimGlobals:
      return g_maps.globals;
    case kSimTotals:
      return g_maps.totals;
    case kSimListeners:
      return &g_maps.listeners[index];
    case kSimUpstreams:
      return &g_maps.upstreams[index];
    case kSimEvents:
      return &g_maps.ring[index];
    case kSimDirectionOf: {
      const auto found = g_maps.direction_of.find(*static_cast<const uint64_t*>(key));
      return found == g_maps.direction_of.end() ? nullptr : &found->second;
    }
    case kSimFlows: {
      const auto found = g_maps.flows.find(*static_cast<const uint64_t*>(key));
      return found == g_maps.flows.end() ? nullptr : &found->second;
    }
  }
  return nullptr;
}

int sim_update(sim_map, const void* key, const void* value) {  // direction_of alone
  if (int error = g_kernel->fault("bpf(enter)", {ENOMEM, E2BIG})) return error;
  g_maps.direction_of[*static_cast<const uint64_t*>(key)] = *static_cast<const uint32_t*>(value);
  return 0;
}

int sim_delete(sim_map map, const void* key) {
  if (map == kSimDirectionOf)
    return g_maps.direction_of.erase(*static_cast<const uint64_t*>(key)) ? 0 : ENOENT;
  if (map == kSimFlows) return g_maps.flows.erase(*static_cast<const uint64_t*>(key)) ? 0 : ENOENT;
  const uint32_t index = *static_cast<const uint32_t*>(key);
  Socket*& entry = map == kSimSources ? g_maps.sources[index] : g_maps.targets[index];
  if (!entry) return ENOENT;
  (map == kSimSources ? entry->source_index : entry->target_index) = -1;
  entry = nullptr;
  return 0;
}

int sim_redirect(uint32_t target) {
  return g_maps.targets[target] != nullptr;
}
uint64_t sim_cookie(void* socket) {
  return static_cast<Socket*>(socket)->cookie;
}
sim_tcp_sock* sim_tcp(void* socket) {
  auto* s = static_cast<Socket*>(socket);
  s->view = {static_cast<uint32_t>(s->queue.size()), s->copied_seq, s->write_seq};
  return &s->view;
}
uint64_t sim_now_ns() {
  return g_kernel->now;
}

struct Reserved {
  penstock_event event;  // first: the programs have its address
  std::deque<penstock_event>* ring;
};
static Reserved g_reserved;
void* sim_reserve(void* ring, size_t) {
  if (g_kernel->fault("ringbuf_reserve", {ENOSPC})) return nullptr;
  g_reserved.ring = static_cast<std::deque<penstock_event>*>(ring);
  return &g_reserved.event;
}
void sim_submit(void*) {
  g_reserved.ring->push_back(g_reserved.event);
  g_kernel->wake(kRingFd + static_cast<int>(g_reserved.ring - g_maps.ring));
}
void sim_discard(void*) {}

// ---- libbpf ----

int bpf_object__open_skeleton(bpf_object_skeleton* s, const bpf_object_open_opts*) {
  using namespace penstock;
  auto& maps = g_named_maps;
  static std::map<std::string, bpf_program> programs;
  static const std::map<std::string, int> numbers = {
      {"sources", kSources},  {"targets", kTargets}, {"flows", kFlows},     {"enter", kEnter},
      {"end_flow", kEndFlow}, {"settle", kSettle},   {"publish", kPublish}, {"trim", kTrim}};
  const auto number = [](const char* name) {
    const auto found = numbers.find(name);
    return found == numbers.end() ? static_cast<int>(kOther) : found->second;
  };
  for (int i = 0; i < s->map_cnt; i++) {
    bpf_map& m = maps[s->maps[i].name];
    m.name = s->maps[i].name;
    m.fd = number(s->maps[i].name);
    *s->maps[i].map = &m;
    if (s->maps[i].mmaped) *s->maps[i].mmaped = g_unused_rodata;
  }
  for (int i = 0; i < s->prog_cnt; i++) {
    bpf_program& p = programs[s->progs[i].name];
    p.name = s->progs[i].name;
    p.fd = number(s->progs[i].name);
    *s->progs[i].prog = &p;
  }
  maps["directions"].fd =
      memory(sizeof(penstock_direction) * 2 * kFlowsMax, reinterpret_cast<void**>(&g_maps.directions));
  maps["globals"].fd = memory(sizeof(penstock_globals), reinterpret_cast<void**>(&g_maps.globals));
  maps["totals"].fd = memory(sizeof(penstock_totals), reinterpret_cast<void**>(&g_maps.totals));
  maps["listeners"].fd =
      memory(sizeof(penstock_listener) * PENSTOCK_LISTENERS_MAX, reinterpret_cast<void**>(&g_maps.listeners));
  maps["upstreams"].fd =
      memory(sizeof(penstock_upstream) * PENSTOCK_UPSTREAMS_MAX, reinterpret_cast<void**>(&g_maps.upstreams));
  return 0;
}
int bpf_object__load_skeleton(bpf_object_skeleton*) {
  return 0;
}
int bpf_object__attach_skeleton(bpf_object_skeleton*) {
  return 0;
}
void bpf_object__detach_skeleton(bpf_object_skeleton*) {}
void bpf_object__destroy_skeleton(bpf_object_skeleton* s) {
  if (!s) return;
  free(s->maps);
  free(s->progs);
  free(s);
}
bpf_map* bpf_object__find_map_by_name(const bpf_object*, const char* name) {
  return &g_named_maps[name];
}
int bpf_obj_pin(int, const char*) {
  return -1;
}
int bpf_map__set_max_entries(bpf_map*, __u32) {
  return 0;
}
int bpf_map__fd(const bpf_map* m) {
  return m->fd;
}
int bpf_program__fd(const bpf_program* p) {
  return p->fd;
}
int bpf_prog_attach(int, int, bpf_attach_type, unsigned) {
  return 0;
}
bpf_link* bpf_program__attach_cgroup(const bpf_program*, int) {
  return reinterpret_cast<bpf_link*>(&g_unused_rodata);
}
int bpf_link__destroy(bpf_link*) {
  return 0;
}
// What takes over from another program: a death here is in the same one.
bpf_map* bpf_object__next_map(const bpf_object*, const bpf_map*) {
  return nullptr;
}
bool bpf_map__is_internal(const bpf_map*) {
  return false;
}
const char* bpf_map__name(const bpf_map* m) {
  return m->name.c_str();
}
int bpf_map__reuse_fd(bpf_map*, int) {
  return -1;
}
int bpf_link_update(int, int, const bpf_link_update_opts*) {
  return -1;
}
int bpf_link__fd(const bpf_link*) {
  return -1;
}
int bpf_obj_get_info_by_fd(int, void*, __u32*) {
  return -1;
}
libbpf_print_fn_t libbpf_set_print(libbpf_print_fn_t) {
  return nullptr;
}
int bpf_map_create(bpf_map_type, const char*, __u32, __u32, __u32, const bpf_map_create_opts*) {
  static int rings = 0;
  return kRingFd + rings++;
}

struct ring_buffer {
  ring_buffer_sample_fn call;
  void* context;
  uint32_t thread;
};
ring_buffer* ring_buffer__new(int fd, ring_buffer_sample_fn call, void* context, const ring_buffer_opts*) {
  return new ring_buffer{call, context, static_cast<uint32_t>(fd - kRingFd)};
}
void ring_buffer__free(ring_buffer* r) {
  delete r;
}
int ring_buffer__consume(ring_buffer* r) {
  const Call call("consume");
  auto& ring = g_maps.ring[r->thread];
  while (!ring.empty()) {
    penstock_event e = ring.front();
    ring.pop_front();
    r->call(r->context, &e, sizeof e);
  }
  return 0;
}

int bpf_map_update_elem(int fd, const void* key, const void* value, __u64) {
  const uint32_t index = *static_cast<const uint32_t*>(key);
  int error = 0;
  if (fd == kSources || fd == kTargets) {
    error = insert(fd == kSources ? g_maps.sources : g_maps.targets, fd == kSources, index,
                   static_cast<int>(*static_cast<const uint64_t*>(value)));
  } else if (fd == kFlows) {
    const Call call("bpf(show)");
    error = g_kernel->fault("bpf(show)", {ENOMEM, E2BIG});
    if (!error) g_maps.flows[*static_cast<const uint64_t*>(key)] = *static_cast<const penstock_flow*>(value);
  }
  errno = error;
  return error ? -error : 0;
}
int bpf_map_delete_elem(int fd, const void* key) {
  const Call call("bpf(delete)");
  if (fd == kFlows) return -sim_delete(kSimFlows, key);
  if (fd == kTargets) return -sim_delete(kSimTargets, key);
  return 0;
}
int bpf_map_lookup_elem(int fd, const void* key, void* value) {
  const Call call("bpf(lookup)");
  const uint32_t index = *static_cast<const uint32_t*>(key);
  const Socket* s = fd == kSources ? g_maps.sources[index] : g_maps.targets[index];
  if (s) *static_cast<uint64_t*>(value) = s->cookie;
  errno = ENOENT;
  return s ? 0 : -ENOENT;
}
int bpf_prog_test_run_opts(int fd, bpf_test_run_opts* o) {
  const Call call("bpf(run)");
  void* context = const_cast<void*>(o->ctx_in);
  const int result = fd == kEnter     ? sim_enter(context)
                     : fd == kEndFlow ? sim_end_flow(context)
                     : fd == kSettle  ? sim_settle(context)
                                      : sim_publish(context);
  o->retval = static_cast<uint32_t>(result);
  return 0;
}
}

namespace penstock::sockmap {
Result<OwnCgroup> OwnCgroup::enter() {
  return OwnCgroup();
}
OwnCgroup OwnCgroup::reopen(int, std::string, std::string, bool) {
  return OwnCgroup();
}
void OwnCgroup::leave() {}
void OwnCgroup::forget() {}
}  // namespace penstock::sockmap
