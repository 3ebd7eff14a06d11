// SPDX-License-Identifier: Apache-2.0
#include "daemon/listen.h"

#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "base/log.h"
#include "flow/socket_options.h"

namespace penstock::daemon {
namespace {

constexpr int kBacklog = 4096;  // the kernel cuts it to net.core.somaxconn

int set(int fd, int level, int option) {
  int one = 1;
  return setsockopt(fd, level, option, &one, sizeof one);
}

// 0, or an errno. `shared`: with SO_REUSEPORT.
int bound_socket(int family, const Endpoint& where, bool shared, Fd* out) {
  Fd fd(socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return errno;
  set(fd.get(), SOL_SOCKET, SO_REUSEADDR);
  if (shared) set(fd.get(), SOL_SOCKET, SO_REUSEPORT);
  set(fd.get(), IPPROTO_IP, IP_FREEBIND);
  sockaddr_storage a{};
  socklen_t size;
  if (family == AF_INET6) {
    set(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY);
    sockaddr_in6 v6{};
    v6.sin6_family = AF_INET6;
    memcpy(&v6.sin6_addr, where.address.bytes.data(), 16);
    v6.sin6_port = htons(where.port);
    memcpy(&a, &v6, size = sizeof v6);
  } else {
    size = where.to_sockaddr(&a);
  }
  if (bind(fd.get(), reinterpret_cast<sockaddr*>(&a), size)) return errno;
  *out = std::move(fd);
  return 0;
}

bool is_exact(const Endpoint& e) {
  return e.port && e.address != IpAddress::v4(INADDR_ANY) && e.address != IpAddress{};
}

}  // namespace

Result<std::vector<std::vector<flow::ListenerSocket>>> listen_all(
    const std::shared_ptr<const flow::Plan>& plan, unsigned threads, sockmap::Sockmap* trim) {
  const config::Config& config = plan->config();
  std::vector<std::vector<flow::ListenerSocket>> sockets(threads);
  bool told = false;
  auto fail = [&](std::string message) {
    for (auto& v : sockets)
      for (auto& s : v) close(s.fd);
    return Error{std::move(message)};
  };
  for (uint32_t index = 0; index < config.listeners.size(); index++) {
    const config::Listener& l = config.listeners[index];
    auto keepalive = l.timeouts.keepalive ? l.timeouts.keepalive : config.timeouts.keepalive;
    for (const config::Bind& b : l.bind) {
      struct Where {
        int family;
        Endpoint endpoint;
      };
      std::vector<Where> wheres;
      Endpoint e;
      e.port = b.port;
      if (b.address) {
        e.address = *b.address;
        wheres.push_back({b.address->is_v4() ? AF_INET : AF_INET6, e});
      } else {
        e.address = IpAddress::v4(INADDR_ANY);
        wheres.push_back({AF_INET, e});
        e.address = IpAddress{};
        wheres.push_back({AF_INET6, e});
      }
      for (const Where& w : wheres) {
        // Sharing a port needs the consent of both; without ours, one that somebody holds shows.
        Fd probe;
        int error = bound_socket(w.family, w.endpoint, false, &probe);
        probe.reset();
        if (w.family == AF_INET6 && !b.address && (error == EAFNOSUPPORT || error == EADDRNOTAVAIL)) {
          if (!told) log::warn("this host has no IPv6: listening on IPv4 only");
          told = true;
          continue;
        }
        for (unsigned t = 0; t < threads && !error; t++) {
          Fd fd;
          error = bound_socket(w.family, w.endpoint, true, &fd);
          if (error) break;
          flow::set_no_delay(fd.get());
          flow::set_keepalive(fd.get(), static_cast<uint32_t>(keepalive->count()));
          if (trim) trim->attach_trim(fd.get());
          if (listen(fd.get(), kBacklog)) error = errno;
          if (!error)
            sockets[t].push_back({fd.release(), plan->listener_slot(index),
                                  is_exact(w.endpoint) ? w.endpoint : Endpoint{}, plan});
        }
        if (error) {
          const char* hint = error == EADDRINUSE ? " (see who: ss -ltnp)"
                             : error == EACCES   ? " (ports below 1024 need CAP_NET_BIND_SERVICE)"
                                                 : "";
          return fail(
              fmt::format("listener {}: cannot listen on {}: {}{}", l.name, b.text, strerror(error), hint));
        }
      }
    }
  }
  return sockets;
}

}  // namespace penstock::daemon
