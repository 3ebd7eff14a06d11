// SPDX-License-Identifier: Apache-2.0
#include "daemon/listen.h"

#include <fmt/format.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/log.h"
#include "flow/socket_options.h"
#include "io/io.h"

namespace penstock::daemon {
namespace {

constexpr int kBacklog = 4096;  // the kernel cuts it to net.core.somaxconn
constexpr int kLookMs = 1000;
// How long a handshake that began before a socket was retired has for its last ACK: a second, as long as a
// first SYN-ACK waits for its answer (RFC 6298 2).
constexpr uint64_t kRetireNs = 1'000'000'000;
constexpr const char* kNoIpv6 = "this host has no IPv6 address";

int set(int fd, int level, int option) {
  int one = 1;
  return setsockopt(fd, level, option, &one, sizeof one);
}

int set_device(int fd, const std::string& device) {
  if (device.empty()) return 0;
  return setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, device.c_str(),
                    static_cast<socklen_t>(device.size() + 1));
}

int bind_to(int fd, int family, const Endpoint& where) {
  sockaddr_storage a{};
  socklen_t size;
  if (family == AF_INET6) {  // also ::ffff:0:0/96 and ::, as they are
    sockaddr_in6 v6{};
    v6.sin6_family = AF_INET6;
    memcpy(&v6.sin6_addr, where.address.bytes.data(), 16);
    v6.sin6_port = htons(where.port);
    memcpy(&a, &v6, size = sizeof v6);
  } else {
    size = where.to_sockaddr(&a);
  }
  return bind(fd, reinterpret_cast<sockaddr*>(&a), size);
}

// 0, or an errno. `shared`: with SO_REUSEPORT.
int bound_socket(int family, const Endpoint& where, const std::string& device, bool shared, Fd* out) {
  Fd fd(socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return errno;
  set(fd.get(), SOL_SOCKET, SO_REUSEADDR);
  if (shared) set(fd.get(), SOL_SOCKET, SO_REUSEPORT);
  set(fd.get(), IPPROTO_IP, IP_FREEBIND);  // an address that is not there yet
  if (family == AF_INET6) set(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY);
  if (set_device(fd.get(), device) || bind_to(fd.get(), family, where)) return errno;
  *out = std::move(fd);
  return 0;
}

// Whether the host has this address now, found by trying: so local routes and nonlocal_bind count too.
bool is_here(int family, const IpAddress& address, const std::string& device) {
  Fd fd(socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return errno != EAFNOSUPPORT;  // for want of a descriptor: nobody knows
  Endpoint where;
  where.address = address;
  return set_device(fd.get(), device) == 0 && bind_to(fd.get(), family, where) == 0;
}

bool has_ipv6() {
  return is_here(AF_INET6, *IpAddress::parse("::1"), {});
}

bool is_any(const IpAddress& a) {
  return a == IpAddress::v4(INADDR_ANY) || a == IpAddress{};
}

const char* hint(int error) {
  return error == EADDRINUSE ? " (see who: ss -ltnp)"
         : error == EACCES   ? " (ports below 1024 need CAP_NET_BIND_SERVICE)"
                             : "";
}

}  // namespace

std::vector<std::string> Listeners::apply(const std::shared_ptr<const flow::Plan>& plan) {
  std::lock_guard lock(mutex_);
  if (stopped_) return {};  // a reload that the end has overtaken
  plan_ = plan;
  const config::Config& config = plan->config();
  std::map<Key, Wanted> next;
  std::vector<Key> fresh;
  for (uint32_t index = 0; index < config.listeners.size(); index++) {
    const config::Listener& l = config.listeners[index];
    const uint32_t slot = plan->listener_slot(index);
    const auto keepalive = l.timeouts.keepalive ? l.timeouts.keepalive : config.timeouts.keepalive;
    for (const config::Bind& b : l.bind) {
      const auto want = [&](int family, const IpAddress& address) {
        Key key{l.interface, family, {.address = address, .port = b.port}};
        Wanted w{slot, l.name, b.text, static_cast<uint32_t>(keepalive->count()), !b.address, {}, {}};
        if (const auto now = wanted_.find(key); now != wanted_.end()) {
          w.waits = now->second.waits;
          w.open = now->second.open;
          for (size_t t = 0; t < w.open.fds.size(); t++) {
            flow::set_keepalive(w.open.fds[t], w.keepalive_ms);
            workers_[t]->assign_listener(w.open.fds[t], slot, plan);
          }
        }
        if (w.open.fds.empty()) fresh.push_back(key);
        next.emplace(std::move(key), std::move(w));
      };
      if (b.address) {
        want(b.address->is_v4() ? AF_INET : AF_INET6, *b.address);
      } else {
        want(AF_INET, IpAddress::v4(INADDR_ANY));
        want(AF_INET6, IpAddress{});
      }
    }
  }

  // All are tried before any is opened, or our own would look like somebody else's.
  std::vector<std::string> failures;
  std::map<Key, int> errors;
  for (const Key& key : fresh)
    if (!found_.contains(key)) errors[key] = probe(key);
  wanted_.swap(next);
  for (const Key& key : fresh) {
    Wanted& w = wanted_.at(key);
    int error = errors[key];
    if (!error) error = open(key, &w);
    if (!error || is_awaited(error, key, w)) {
      look(key, &w);
      continue;
    }
    w.waits = fmt::format("{}{}", strerror(error), hint(error));
    failures.push_back(fmt::format("listener {}: cannot listen on {}: {}", w.listener_name, w.bind, w.waits));
  }
  // Only now: who comes meanwhile finds the new ones.
  for (auto& [key, w] : next)
    if (!wanted_.contains(key)) retire(key, &w.open);
  for (auto& [key, open] : found_)
    for (const int fd : open.fds) close(fd);
  found_.clear();
  if (wake_.valid()) eventfd_write(wake_.get(), 1);  // the watcher's patience is another
  return failures;
}

// A device, or IPv6 where a bind is of both families: that they are missing is no mistake.
bool Listeners::is_awaited(int error, const Key& key, const Wanted& w) {
  if (error == ENODEV) return !key.device.empty();
  return (error == EAFNOSUPPORT || error == EADDRNOTAVAIL) && w.everywhere && key.family == AF_INET6;
}

// Sharing a port needs the consent of both; without ours, one that somebody holds shows. 0, or an errno.
int Listeners::probe(const Key& key) const {
  Fd alone;
  return bound_socket(key.family, key.where, key.device, holds_port(key), &alone);
}

bool Listeners::holds_port(const Key& key) const {
  const auto same = [&](const Key& other, const Sockets& open) {
    return other.family == key.family && other.where.port == key.where.port && !open.fds.empty();
  };
  return std::any_of(wanted_.begin(), wanted_.end(),
                     [&](const auto& w) { return same(w.first, w.second.open); }) ||
         std::any_of(retired_.begin(), retired_.end(), [&](const auto& r) { return same(r.key, r.open); });
}

// 0, or an errno.
int Listeners::open(const Key& key, Wanted* w) {
  const unsigned device_index = key.device.empty() ? 0 : if_nametoindex(key.device.c_str());
  if (take_found(key, w) || revive(key, w)) return 0;
  std::vector<Fd> sockets(workers_.size());
  for (Fd& fd : sockets) {
    if (int error = bound_socket(key.family, key.where, key.device, true, &fd)) return error;
    flow::set_no_delay(fd.get());
    flow::set_keepalive(fd.get(), w->keepalive_ms);
    if (int error = trim_ ? trim_->attach_trim(fd.get()) : 0) return error;
    if (listen(fd.get(), kBacklog)) return errno;
  }
  w->open.device_index = device_index;
  for (size_t t = 0; t < sockets.size(); t++) {
    w->open.fds.push_back(sockets[t].release());
    workers_[t]->add_listener(
        {w->open.fds[t], w->listener, is_any(key.where.address) ? Endpoint{} : key.where, plan_});
  }
  return 0;
}

void Listeners::adopt(const std::vector<FoundListener>& found) {
  std::lock_guard lock(mutex_);
  for (const FoundListener& f : found) {
    Sockets& open = found_[Key{f.device, f.family, f.where}];
    open.device_index = f.device_index;
    open.fds.push_back(f.fd);
  }
  // A worker that died while it opened them has not come to the last; one that died while it moved them
  // has more.
  for (auto& [key, open] : found_)
    for (; open.fds.size() != workers_.size() && !open.fds.empty(); open.fds.pop_back())
      close(open.fds.back());
}

bool Listeners::take_found(const Key& key, Wanted* w) {
  const auto found = found_.find(key);
  if (found == found_.end() || found->second.fds.empty()) return false;
  w->open = std::move(found->second);
  found_.erase(found);
  for (size_t t = 0; t < w->open.fds.size(); t++) {
    flow::set_keepalive(w->open.fds[t], w->keepalive_ms);
    workers_[t]->add_listener(
        {w->open.fds[t], w->listener, is_any(key.where.address) ? Endpoint{} : key.where, plan_, true});
    workers_[t]->assign_listener(w->open.fds[t], w->listener, plan_);  // it may have been about to be retired
  }
  return true;
}

std::optional<uint32_t> Listeners::listener_of(const Endpoint& local, unsigned device, Endpoint* bound) {
  std::lock_guard lock(mutex_);
  const Wanted* best = nullptr;
  for (const auto& [key, w] : wanted_) {
    if (w.open.fds.empty() || key.where.port != local.port || w.open.device_index != device) continue;
    if (key.where == local) {
      *bound = key.where;
      return w.listener;
    }
    if (is_any(key.where.address) && (key.family == AF_INET) == local.address.is_v4()) best = &w;
  }
  if (!best) return std::nullopt;
  *bound = {};
  return best->listener;
}

// What has just been retired still has its place, and its queue.
bool Listeners::revive(const Key& key, Wanted* w) {
  const unsigned device_index = key.device.empty() ? 0 : if_nametoindex(key.device.c_str());
  const auto found = std::find_if(retired_.begin(), retired_.end(), [&](const Retired& r) {
    return r.key == key && r.open.device_index == device_index;
  });
  if (found == retired_.end()) return false;
  w->open = std::move(found->open);
  retired_.erase(found);
  for (size_t t = 0; t < w->open.fds.size(); t++) {
    flow::set_keepalive(w->open.fds[t], w->keepalive_ms);
    workers_[t]->assign_listener(w->open.fds[t], w->listener, plan_);
  }
  return true;
}

void Listeners::retire(const Key& key, Sockets* open) {
  if (open->fds.empty()) return;
  for (size_t t = 0; t < open->fds.size(); t++) workers_[t]->retire_listener(open->fds[t]);
  retired_.push_back({key, std::exchange(*open, {}), io::now_ns()});
}

void Listeners::remove_retired() {
  const uint64_t now = io::now_ns();
  std::erase_if(retired_, [&](const Retired& r) {
    if (now < r.since_ns + kRetireNs) return false;
    for (size_t t = 0; t < r.open.fds.size(); t++) workers_[t]->remove_listener(r.open.fds[t]);
    return true;
  });
}

// Brings the sockets of one address, and what is said of them, in line with the host as it is now.
void Listeners::look(const Key& key, Wanted* w) {
  if (!key.device.empty()) {
    // A socket is bound to a device's number: one that came back under its name is another.
    const unsigned index = if_nametoindex(key.device.c_str());
    if (index != w->open.device_index) retire(key, &w->open);
    if (index == 0) return tell(key, w, fmt::format("no device {}", key.device));
  }
  if (w->open.fds.empty()) {
    int error = probe(key);
    if (!error) error = open(key, w);
    if (error == ENODEV) return tell(key, w, fmt::format("no device {}", key.device));
    if (error && is_awaited(error, key, *w)) return tell(key, w, kNoIpv6);
    if (error) return tell(key, w, fmt::format("{}{}", strerror(error), hint(error)));
  }
  if (w->everywhere && key.family == AF_INET6 && !has_ipv6()) return tell(key, w, kNoIpv6);
  if (!is_any(key.where.address) && !is_here(key.family, key.where.address, key.device))
    return tell(key, w, fmt::format("{} is no address of this host", key.where.address.text()));
  tell(key, w, {});
}

void Listeners::look_at_all() {
  if (stopped_) return;
  for (auto& [key, w] : wanted_) look(key, &w);
  remove_retired();
}

// One line for each change.
void Listeners::tell(const Key& key, Wanted* w, std::string waits) {
  if (w->waits == waits) return;
  const std::string before = std::exchange(w->waits, std::move(waits));
  if (w->everywhere && key.family == AF_INET6 && (w->waits == kNoIpv6 || before == kNoIpv6)) {
    const bool none = w->waits == kNoIpv6;
    if (std::exchange(told_no_ipv6_, none) == none) return;
    if (none)
      log::warn("{}: listening on IPv4 only until it has one", kNoIpv6);
    else
      log::info("this host has IPv6 now: listening on it too");
  } else if (w->waits.empty()) {
    log::info("listener {}: {}: listening", w->listener_name, w->bind);
  } else {
    log::warn("listener {}: {}: waiting: {}", w->listener_name, w->bind, w->waits);
  }
}

std::vector<Listeners::State> Listeners::states() {
  std::lock_guard lock(mutex_);
  look_at_all();
  std::vector<State> all;
  for (const auto& [key, w] : wanted_) {
    all.push_back({w.listener, w.bind, key.where.text(), key.device, w.waits,
                   w.everywhere && key.family == AF_INET6 && w.waits == kNoIpv6});
  }
  return all;
}

// ---- the watcher ----

Status Listeners::watch() {
  wake_.reset(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  if (!wake_.valid()) return Error{fmt::format("no descriptor to watch devices with: {}", strerror(errno))};
  bell_.reset(socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, NETLINK_ROUTE));
  sockaddr_nl groups{};
  groups.nl_family = AF_NETLINK;
  groups.nl_groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR;
  if (bell_.valid() && bind(bell_.get(), reinterpret_cast<sockaddr*>(&groups), sizeof groups)) bell_.reset();
  watcher_ = std::thread([this] {
    pthread_setname_np(pthread_self(), "listeners");
    run();
  });
  return Nothing{};
}

void Listeners::stop() {
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  if (!watcher_.joinable()) return;
  eventfd_write(wake_.get(), 1);
  watcher_.join();
}

void Listeners::run() {
  for (;;) {
    {
      std::lock_guard lock(mutex_);
      if (stopped_) return;
      look_at_all();
    }
    pollfd events[] = {{wake_.get(), POLLIN, 0}, {bell_.get(), POLLIN, 0}};
    poll(events, 2, patience_ms());
    eventfd_t woken;
    eventfd_read(wake_.get(), &woken);
    // What has changed does not matter, nor that some of it may be lost (ENOBUFS): we look at all.
    char message[8192];
    while (bell_.valid() && (recv(bell_.get(), message, sizeof message, 0) >= 0 || errno == ENOBUFS)) {
    }
  }
}

// -1: only the bell can bring news.
int Listeners::patience_ms() {
  std::lock_guard lock(mutex_);
  bool look = !retired_.empty();
  for (const auto& [key, w] : wanted_) {
    const bool may_change = !key.device.empty() || !is_any(key.where.address) || w.everywhere;
    look |= w.open.fds.empty() || (!bell_.valid() && may_change);
  }
  return look ? kLookMs : -1;
}

}  // namespace penstock::daemon
