// SPDX-License-Identifier: Apache-2.0
#include "sockmap/sockmap.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpedantic"
#pragma GCC diagnostic ignored "-Wshadow"
#include "penstock.skel.h"
#pragma GCC diagnostic pop

#include "base/assert.h"
#include "base/layout.h"
#include "base/log.h"
#include "sockmap/cgroup.h"

namespace penstock::sockmap {
namespace {

constexpr uint32_t kEventRingBytes = 256 << 10;
constexpr long kBpfFsMagic = 0xcafe4a11;  // BPF_FS_MAGIC, include/uapi/linux/magic.h
constexpr std::chrono::milliseconds kPinPatience{500};
constexpr const char* kPinned[] = {"flows", "listeners", "upstreams", "totals"};

// libbpf talks on stderr; keep what it says for the error we return.
thread_local std::string t_libbpf_said;
int on_libbpf_print(libbpf_print_level level, const char* format, va_list arguments) {
  if (level == LIBBPF_DEBUG) return 0;
  char line[512];
  vsnprintf(line, sizeof line, format, arguments);
  if (level == LIBBPF_WARN && t_libbpf_said.size() < 2048) t_libbpf_said += line;
  return 0;
}

std::string first_line(const std::string& text) {
  return text.substr(0, text.find('\n'));
}

Error refused(const char* step, int error) {
  const char* hint = error == EPERM ? "; CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are needed" : "";
  std::string said = t_libbpf_said.empty() ? "" : " (" + first_line(t_libbpf_said) + ")";
  return Error{fmt::format("{}: {}{}{}", step, strerror(error), hint, said)};
}

template <typename T>
T* map_memory(int fd, size_t bytes) {
  size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* p = mmap(nullptr, (bytes + page - 1) / page * page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  return p == MAP_FAILED ? nullptr : static_cast<T*>(p);
}

// The directory of the pins, made and locked for as long as the descriptor is open, which ends with the
// process however that ends. Invalid: errno says why, EWOULDBLOCK that another holds it. A daemon that has
// just ended may still be removing its own.
Fd lock_pins(const std::string& directory, std::chrono::milliseconds patience) {
  const auto end = std::chrono::steady_clock::now() + patience;
  for (;; std::this_thread::sleep_for(std::chrono::milliseconds(10))) {
    const bool made = mkdir(directory.c_str(), 0755) == 0;
    if (!made && errno != EEXIST) return Fd();
    Fd lock(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    int error = lock.valid() ? 0 : errno;
    if (error && made) rmdir(directory.c_str());
    if (!error && flock(lock.get(), LOCK_EX | LOCK_NB)) error = errno;
    // Whoever held it may have removed it.
    struct stat locked {
    }, there{};
    if (!error && fstat(lock.get(), &locked) == 0) {
      if (stat(directory.c_str(), &there) == 0 && locked.st_ino == there.st_ino) return lock;
      error = ENOENT;
    }
    if ((error != EWOULDBLOCK && error != ENOENT) || std::chrono::steady_clock::now() >= end) {
      lock.reset();
      errno = error;
      return lock;
    }
  }
}

// Those that are run from here.
enum Program { kTrim, kPublish, kEnter, kEndFlow, kSettle, kPrograms };
static_assert(kPrograms <= Handles::kProgramsMax);

std::array<int, kPrograms> programs_of(const penstock_bpf* skeleton) {
  const auto& p = skeleton->progs;
  return {bpf_program__fd(p.trim), bpf_program__fd(p.publish), bpf_program__fd(p.enter),
          bpf_program__fd(p.end_flow), bpf_program__fd(p.settle)};
}

size_t pages(size_t bytes) {
  size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return (bytes + page - 1) / page * page;
}

}  // namespace

struct Sockmap::Impl {
  Options options;
  penstock_bpf* skeleton = nullptr;
  bpf_link* socket_ops = nullptr;
  bool kept = false;  // by somebody else: reopened
  Handles handles{};  // of that
  OwnCgroup cgroup;
  std::string pin_error;
  bool pinned = false;
  Fd pin_lock;
  int sources = -1, targets = -1, direction_of = -1, flows = -1;
  penstock_direction* directions = nullptr;
  penstock_globals* globals = nullptr;
  penstock_totals* totals = nullptr;
  penstock_listener* listeners = nullptr;
  penstock_upstream* upstreams = nullptr;
  struct Ring {
    Fd map;
    ring_buffer* buffer = nullptr;
    const std::function<void(const penstock_event&)>* on_event = nullptr;
  };
  std::vector<std::unique_ptr<Ring>> rings;

  ~Impl() {
    if (kept) {
      pinned = false;
      cgroup.forget();
    }
    unpin();
    for (auto& r : rings) ring_buffer__free(r->buffer);
    if (socket_ops) bpf_link__destroy(socket_ops);
    cgroup.leave();
    if (directions) munmap(directions, pages(sizeof(penstock_direction) * 2 * options.flows_max));
    if (globals) munmap(globals, pages(sizeof *globals));
    if (totals) munmap(totals, pages(sizeof *totals));
    if (listeners) munmap(listeners, pages(sizeof *listeners * PENSTOCK_LISTENERS_MAX));
    if (upstreams) munmap(upstreams, pages(sizeof *upstreams * PENSTOCK_UPSTREAMS_MAX));
    penstock_bpf__destroy(skeleton);
  }

  Status load();
  Status reuse_maps();
  Status hand_down();
  Status use();
  int map_fd(const char* name) const;
  int program(Program which) const { return handles.programs[which]; }
  Status attach();
  Status attach_again();
  void pin();
  void unpin();
};

Status Sockmap::Impl::load() {
  skeleton = penstock_bpf__open();
  if (!skeleton) return refused("cannot open the BPF object", errno);
  skeleton->rodata->pull_enabled = options.pull;
  skeleton->rodata->cut_enabled = options.cut;
  auto& maps = skeleton->maps;
  for (bpf_map* m : {maps.sources, maps.targets, maps.direction_of, maps.directions})
    bpf_map__set_max_entries(m, 2 * options.flows_max);
  bpf_map__set_max_entries(maps.flows, options.flows_max);
  if (kept)
    if (auto s = reuse_maps(); !s) return s;
  if (int e = penstock_bpf__load(skeleton)) return refused("the kernel refused the BPF programs", -e);
  return Nothing{};
}

// What is loaded, mapped into this process.
Status Sockmap::Impl::use() {
  sources = map_fd("sources");
  targets = map_fd("targets");
  direction_of = map_fd("direction_of");
  flows = map_fd("flows");
  directions = map_memory<penstock_direction>(map_fd("directions"),
                                              sizeof(penstock_direction) * 2 * options.flows_max);
  globals = map_memory<penstock_globals>(map_fd("globals"), sizeof *globals);
  totals = map_memory<penstock_totals>(map_fd("totals"), sizeof *totals);
  listeners = map_memory<penstock_listener>(map_fd("listeners"), sizeof *listeners * PENSTOCK_LISTENERS_MAX);
  upstreams = map_memory<penstock_upstream>(map_fd("upstreams"), sizeof *upstreams * PENSTOCK_UPSTREAMS_MAX);
  if (!directions || !globals || !totals || !listeners || !upstreams)
    return refused("cannot map the BPF maps", errno);
  if (!kept) globals->memory_limit_bytes = options.memory_limit_bytes;
  for (uint32_t t = 0; t < options.threads; t++) {
    auto ring = std::make_unique<Ring>();
    ring->map =
        Fd(kept ? fcntl(handles.rings[t], F_DUPFD_CLOEXEC, 3)
                : bpf_map_create(BPF_MAP_TYPE_RINGBUF, "penstock_events", 0, 0, kEventRingBytes, nullptr));
    int fd = ring->map.get();
    if (fd < 0 || (!kept && bpf_map_update_elem(map_fd("events"), &t, &fd, BPF_ANY)))
      return refused("cannot make an event ring", errno);
    ring->buffer = ring_buffer__new(
        fd,
        [](void* context, void* data, size_t size) {
          auto* r = static_cast<Ring*>(context);
          if (size >= sizeof(penstock_event)) (*r->on_event)(*static_cast<penstock_event*>(data));
          return 0;
        },
        ring.get(), nullptr);
    if (!ring->buffer) return refused("cannot read an event ring", errno);
    rings.push_back(std::move(ring));
  }
  return Nothing{};
}

// All but those libbpf makes of the programs' own data.
template <typename Visit>
void for_each_own_map(bpf_object* object, Visit visit) {
  bpf_map* m = nullptr;
  bpf_object__for_each_map(m, object) {
    if (!bpf_map__is_internal(m)) visit(m);
  }
}

// -1: none of that name, of which the kernel keeps the first 15 characters.
int kept_map(const Handles& handles, const char* name) {
  for (const int fd : handles.maps) {
    bpf_map_info info{};
    uint32_t size = sizeof info;
    if (fd >= 0 && !bpf_obj_get_info_by_fd(fd, &info, &size) &&
        !strncmp(info.name, name, sizeof info.name - 1))
      return fd;
  }
  return -1;
}

int Sockmap::Impl::map_fd(const char* name) const {
  return skeleton ? bpf_map__fd(bpf_object__find_map_by_name(skeleton->obj, name)) : kept_map(handles, name);
}

// Of those that are there; another layout may have one more.
Status Sockmap::Impl::reuse_maps() {
  Status all = Nothing{};
  for_each_own_map(skeleton->obj, [&](bpf_map* m) {
    const int fd = kept_map(handles, bpf_map__name(m));
    if (all && fd >= 0 && bpf_map__reuse_fd(m, fd))
      all = refused(fmt::format("cannot take over the map {}", bpf_map__name(m)).c_str(), errno);
  });
  return all;
}

// To workers of this program: what was loaded, in descriptors of its own.
Status Sockmap::Impl::hand_down() {
  bool all = true;
  const auto keep = [&](int fd) {
    const int own = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    all = all && own >= 0;
    return own;
  };
  for_each_own_map(skeleton->obj, [&](bpf_map* m) {
    if (kept_map(handles, bpf_map__name(m)) >= 0) return;
    int* place = std::find(std::begin(handles.maps), std::end(handles.maps), -1);
    PENSTOCK_ASSERT(place != std::end(handles.maps));
    *place = keep(bpf_map__fd(m));
  });
  const auto programs = programs_of(skeleton);
  std::transform(programs.begin(), programs.end(), handles.programs, keep);
  if (!all) return refused("no descriptor for what was loaded", errno);
  handles.layout = PENSTOCK_LAYOUT;
  penstock_bpf__destroy(std::exchange(skeleton, nullptr));
  return Nothing{};
}

// Each in one step: there is no moment without a program.
Status Sockmap::Impl::attach_again() {
  if (bpf_prog_attach(bpf_program__fd(skeleton->progs.verdict), map_fd("sources"), BPF_SK_SKB_STREAM_VERDICT,
                      0))
    return refused("cannot attach the verdict program", errno);
  if (bpf_link_update(handles.socket_ops, bpf_program__fd(skeleton->progs.socket_ops), nullptr))
    return refused("cannot put the sock_ops program in the place of the other one", errno);
  return Nothing{};
}

Status Sockmap::Impl::attach() {
  if (bpf_prog_attach(bpf_program__fd(skeleton->progs.verdict), sources, BPF_SK_SKB_STREAM_VERDICT, 0))
    return refused("cannot attach the verdict program", errno);
  auto entered = OwnCgroup::enter();
  if (!entered) return entered.error();
  cgroup = std::move(*entered);
  socket_ops = bpf_program__attach_cgroup(skeleton->progs.socket_ops, cgroup.fd());
  if (!socket_ops) return refused("cannot attach the sock_ops program to our cgroup", errno);
  return Nothing{};
}

// As bpftool does: a bpffs is mounted at /sys/fs/bpf where none is. Pins are for the operator's eyes; without
// them every promise still holds, so a failure is told, not fatal.
void Sockmap::Impl::pin() {
  if (options.pin.empty()) return;
  std::string parent = options.pin.substr(0, options.pin.rfind('/'));
  struct statfs fs {};
  if (parent == "/sys/fs/bpf" && statfs(parent.c_str(), &fs) == 0 && fs.f_type != kBpfFsMagic)
    mount("bpf", parent.c_str(), "bpf", 0, "mode=0700");
  if (statfs(parent.c_str(), &fs)) {
    pin_error = fmt::format("cannot make {}: {}", options.pin, strerror(errno));
    return;
  }
  if (fs.f_type != kBpfFsMagic) {
    pin_error = fmt::format("{} is not on a bpffs (mount -t bpf bpf /sys/fs/bpf)", options.pin);
    return;
  }
  pin_lock = lock_pins(options.pin, kPinPatience);
  if (!pin_lock.valid()) {
    pin_error = errno == EWOULDBLOCK ? fmt::format("cannot pin in {}: another penstock does", options.pin)
                                     : fmt::format("cannot make {}: {}", options.pin, strerror(errno));
    return;
  }
  pinned = true;
  for (const char* name : kPinned) {
    std::string path = options.pin + "/" + name;
    ::unlink(path.c_str());  // of a daemon that was killed
    bpf_map* m = bpf_object__find_map_by_name(skeleton->obj, name);
    if (bpf_obj_pin(bpf_map__fd(m), path.c_str()))
      pin_error = fmt::format("cannot pin {}: {}", path, strerror(errno));
  }
}

void Sockmap::Impl::unpin() {
  if (!pinned) return;
  for (const char* name : kPinned) ::unlink((options.pin + "/" + name).c_str());
  rmdir(options.pin.c_str());
  pinned = false;
}

Sockmap::Sockmap(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Sockmap::~Sockmap() = default;

namespace {

void put_path(char (&out)[Handles::kPathBytes], const std::string& path) {
  PENSTOCK_ASSERT(path.size() < sizeof out);
  path.copy(out, sizeof out - 1);
}

}  // namespace

Handles Sockmap::handles() const {
  if (impl_->kept) return impl_->handles;
  Handles h = impl_->handles;
  h.layout = PENSTOCK_LAYOUT;
  h.flows_max = impl_->options.flows_max;
  h.threads = impl_->options.threads;
  std::fill(std::begin(h.maps), std::end(h.maps), -1);
  size_t maps = 0;
  for_each_own_map(impl_->skeleton->obj, [&](bpf_map* m) {
    PENSTOCK_ASSERT(maps < Handles::kMapsMax);
    h.maps[maps++] = bpf_map__fd(m);
  });
  for (size_t t = 0; t < impl_->rings.size(); t++) h.rings[t] = impl_->rings[t]->map.get();
  h.socket_ops = bpf_link__fd(impl_->socket_ops);
  h.cgroup = impl_->cgroup.fd();
  h.pin_lock = impl_->pin_lock.valid() ? impl_->pin_lock.get() : -1;
  h.pull = impl_->options.pull;
  h.pinned = impl_->pinned;
  h.cgroup_made = impl_->cgroup.made();
  put_path(h.pin, impl_->options.pin);
  put_path(h.cgroup_path, impl_->cgroup.path());
  put_path(h.came_from, impl_->cgroup.came_from());
  return h;
}

Result<std::unique_ptr<Sockmap>> Sockmap::reopen(const Handles& handles, bool loaded) {
  if (!can_take_over(handles.layout, PENSTOCK_LAYOUT))
    return Error{fmt::format("the BPF maps have layout {}, not {}", handles.layout, PENSTOCK_LAYOUT)};
  libbpf_set_print(on_libbpf_print);
  t_libbpf_said.clear();
  auto impl = std::make_unique<Impl>();
  impl->kept = true;
  impl->handles = handles;
  impl->cgroup =
      OwnCgroup::reopen(handles.cgroup, handles.cgroup_path, handles.came_from, handles.cgroup_made);
  impl->options = {.flows_max = handles.flows_max,
                   .threads = handles.threads,
                   .pin = handles.pin,
                   .pull = handles.pull != 0};
  if (!loaded) {
    if (auto s = impl->load(); !s) return s.error();
    if (auto s = impl->attach_again(); !s) return s.error();
    if (auto s = impl->hand_down(); !s) return s.error();
  }
  if (auto s = impl->use(); !s) return s.error();
  return std::unique_ptr<Sockmap>(new Sockmap(std::move(impl)));
}

void Sockmap::remove(const Handles& handles) {
  if (handles.pinned) {
    for (const char* name : kPinned) ::unlink((std::string(handles.pin) + "/" + name).c_str());
    rmdir(handles.pin);
  }
  OwnCgroup::reopen(-1, handles.cgroup_path, handles.came_from, handles.cgroup_made).leave();
}

Result<std::unique_ptr<Sockmap>> Sockmap::open(const Options& options) {
  PENSTOCK_ASSERT(options.threads <= PENSTOCK_THREADS_MAX);
  libbpf_set_print(on_libbpf_print);
  t_libbpf_said.clear();
  auto impl = std::make_unique<Impl>();
  impl->options = options;
  if (auto s = impl->load(); !s) return s.error();
  const auto programs = programs_of(impl->skeleton);
  std::copy(programs.begin(), programs.end(), impl->handles.programs);
  if (auto s = impl->use(); !s) return s.error();
  if (auto s = impl->attach(); !s) return s.error();
  impl->pin();
  return std::unique_ptr<Sockmap>(new Sockmap(std::move(impl)));
}

penstock_direction& Sockmap::direction(uint32_t index) {
  return impl_->directions[index];
}
penstock_globals& Sockmap::globals() {
  return *impl_->globals;
}
penstock_totals& Sockmap::totals() {
  return *impl_->totals;
}
penstock_listener* Sockmap::listeners() {
  return impl_->listeners;
}
penstock_upstream* Sockmap::upstreams() {
  return impl_->upstreams;
}
const std::string& Sockmap::cgroup() const {
  return impl_->cgroup.path();
}
const std::string& Sockmap::pin_error() const {
  return impl_->pin_error;
}
const std::string& Sockmap::pin() const {
  return impl_->options.pin;
}

namespace {

// 0, or an errno: the kernel's, or what the program returned.
// What it writes into its context comes back.
template <typename Context>
int run_program(int program, Context* context) {
  bpf_test_run_opts o{};
  o.sz = sizeof o;
  o.ctx_in = context;
  o.ctx_size_in = sizeof *context;
  if (bpf_prog_test_run_opts(program, &o)) return errno;
  return static_cast<int>(o.retval);
}

}  // namespace

void Sockmap::clear(uint32_t slot, uint32_t thread, uint64_t cookie, const Thresholds& thresholds) {
  for (uint32_t i : {2 * slot, 2 * slot + 1}) {
    penstock_direction& d = direction(i);
    d.redirected = d.base_redirected = d.active_ns = 0;
    d.base_seq = d.over_epoch = d.broken = d.truesize = d.marks = d.trimmed = d.backlog = 0;
    d.flow_cookie = cookie;
    std::fill(std::begin(d.reserved1), std::end(d.reserved1), 0u);  // a later layout's: as before
#if PENSTOCK_LAYOUT_STEP
    d.verdicts = 0;
#endif
    d.epoch++;
    d.closed_epoch = d.epoch;
    d.want_close = d.epoch - 1;
    d.base_taken = d.base_epoch;
    d.over_epoch = d.epoch - 1;
    d.high_bytes = thresholds.high_bytes;
    d.bulk_bytes = thresholds.bulk_bytes;
    d.limit_bytes = thresholds.limit_bytes;
    d.thread = thread;
    d.opening = d.epoch - 1;
  }
}

int Sockmap::enter(uint32_t slot, const uint64_t cookies[2]) {
  penstock_names names{{cookies[0], cookies[1]}, slot, 0};
  return run_program(impl_->program(kEnter), &names);
}

int Sockmap::join(uint32_t index, int fd) {
  uint64_t value = static_cast<uint64_t>(fd);
  return bpf_map_update_elem(impl_->targets, &index, &value, BPF_ANY) ? errno : 0;
}

int Sockmap::open_valve(uint32_t index, int fd, bool fresh) {
  penstock_direction& d = direction(index);
  PENSTOCK_ASSERT(closed(index));
  if (fresh) d.base_epoch++;
  std::atomic_ref(d.backlog).store(0, std::memory_order_relaxed);
  // closed_epoch != epoch from here on: what the programs see once the socket is in must say "open".
  std::atomic_ref(d.epoch).fetch_add(1, std::memory_order_seq_cst);
  uint64_t value = static_cast<uint64_t>(fd);
  if (bpf_map_update_elem(impl_->sources, &index, &value, BPF_ANY) == 0) return 0;
  int error = errno;
  std::atomic_ref(d.closed_epoch).store(d.epoch, std::memory_order_seq_cst);
  return error;
}

void Sockmap::prepare_valve(uint32_t index, uint32_t queued_bytes) {
  penstock_direction& d = direction(index);
  std::atomic_ref(d.opening_bytes).store(queued_bytes, std::memory_order_seq_cst);
  std::atomic_ref(d.opening).store(d.epoch, std::memory_order_seq_cst);
}

void Sockmap::count_queued(uint32_t index, uint32_t bytes) {
  std::atomic_ref(direction(index).opening_bytes).fetch_add(bytes, std::memory_order_seq_cst);
}

void Sockmap::abandon_valve(uint32_t index) {
  penstock_direction& d = direction(index);
  std::atomic_ref(d.opening).store(d.epoch - 1, std::memory_order_seq_cst);
}

int Sockmap::kick(int fd) {
  int one = 1;  // tcp_set_rcvlowat() ends in tcp_data_ready(), and that in the verdict
  return setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof one) ? errno : 0;
}

bool Sockmap::close_valve(uint32_t index, int fd) {
  if (closed(index)) return true;
  penstock_direction& d = direction(index);
  std::atomic_ref(d.want_close).store(d.epoch, std::memory_order_seq_cst);
  // tcp_sendmsg() computes the MSS, and so calls socket_ops, under the lock before it looks at the length.
  // After our own FIN it fails earlier with EPIPE: then nothing was closed, and only the flag can tell.
  (void)!::send(fd, "", 0, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (closed(index)) return true;
  std::atomic_ref(d.want_close).store(d.epoch - 1, std::memory_order_seq_cst);
  return closed(index);
}

bool Sockmap::closed(uint32_t index) {
  penstock_direction& d = direction(index);
  return std::atomic_ref(d.closed_epoch).load(std::memory_order_seq_cst) == d.epoch;
}

int Sockmap::attach_trim(int fd) {
  const int trim = impl_->program(kTrim);
  return setsockopt(fd, SOL_SOCKET, SO_ATTACH_BPF, &trim, sizeof trim) ? errno : 0;
}

bool Sockmap::end(penstock_end* e) {
  const int error = run_program(impl_->program(kEndFlow), e);
  PENSTOCK_ASSERT(error == 0);
  return e->counted;
}

void Sockmap::leave(uint32_t slot, const uint64_t cookies[2]) {
  penstock_end e{};
  e.cookie[0] = cookies[0];
  e.cookie[1] = cookies[1];
  e.slot = slot;
  e.generation = direction(2 * slot).ended;
  e.upstream = UINT32_MAX;
  e.spliced = 1;
  end(&e);
}

void Sockmap::settle(uint32_t slot) {
  if (!std::atomic_ref(direction(2 * slot).charged).load() &&
      !std::atomic_ref(direction(2 * slot + 1).charged).load())
    return;
  penstock_names names{{0, 0}, slot, 0};
  run_program(impl_->program(kSettle), &names);
}

bool Sockmap::recover(uint32_t index, uint64_t cookie) {
  penstock_direction& d = direction(index);
  uint64_t there = 0;  // a cookie: net/core/sock_map.c, sock_map_lookup_sys()
  if (bpf_map_lookup_elem(impl_->sources, &index, &there)) there = 0;
  abandon_valve(index);
  std::atomic_ref(d.want_close).store(d.epoch - 1, std::memory_order_seq_cst);
  if (there == cookie) return !closed(index);  // the programs may close it while we look
  std::atomic_ref(d.closed_epoch).store(d.epoch, std::memory_order_seq_cst);
  return false;
}

void Sockmap::part(uint32_t index) {
  bpf_map_delete_elem(impl_->targets, &index);
}

bool Sockmap::ended(uint32_t slot, uint32_t generation) {
  return std::atomic_ref(direction(2 * slot).ended).load() == generation;
}

int Sockmap::show(uint64_t cookie, const penstock_flow& flow) {
  return bpf_map_update_elem(impl_->flows, &cookie, &flow, BPF_ANY) ? errno : 0;
}

int Sockmap::publish(const penstock_publish& what) {
  penstock_publish context = what;
  return run_program(impl_->program(kPublish), &context);
}

void Sockmap::hide(uint64_t cookie) {
  bpf_map_delete_elem(impl_->flows, &cookie);
}

int Sockmap::event_fd(uint32_t thread) const {
  return impl_->rings[thread]->map.get();
}

void Sockmap::consume(uint32_t thread, const std::function<void(const penstock_event&)>& on_event) {
  auto& r = *impl_->rings[thread];
  r.on_event = &on_event;
  ring_buffer__consume(r.buffer);
  r.on_event = nullptr;
}

}  // namespace penstock::sockmap
