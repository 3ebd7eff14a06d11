// SPDX-License-Identifier: Apache-2.0
// daemon/listen.h: what the daemon listens on: one socket per thread, address, port and device
// (SO_REUSEPORT), so that the kernel spreads connections over the threads. It changes at run time without
// losing a connection: a socket that stays is not touched, one that goes takes no SYN any more, and is closed
// when whoever was in the middle of it has been accepted. What is not there yet is waited for.
#pragma once
#include <compare>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "config/config.h"
#include "daemon/audit.h"
#include "flow/worker.h"

namespace penstock::daemon {

// Thread-safe. REQUIRES: the workers outlive it.
class Listeners {
 public:
  // One address of a listener.
  struct State {
    uint32_t listener;    // slot
    std::string bind;     // as in the configuration
    std::string address;  // "192.0.2.1:25", "[::]:25"
    std::string device;   // empty: any
    std::string waits;    // empty: it listens; else for what
    bool optional;        // the half of ":port" whose family this host may not have
  };

  Listeners(std::vector<std::unique_ptr<flow::Worker>>& workers, sockmap::Sockmap* trim)
      : workers_(workers), trim_(trim) {}
  ~Listeners() { stop(); }

  // What a worker that died has listened on, to be found by the first apply(), which closes what it does not
  // want of it. The rest as there.
  void adopt(const std::vector<FoundListener>& found);
  // The listener by which a connection must have come in, of those that listen now. Nullopt: by none.
  // `device`: its number, 0: any.
  std::optional<uint32_t> listener_of(const Endpoint& local, unsigned device, Endpoint* bound);

  // From now on exactly the binds of `plan`, which new flows get. What cannot be had, though nothing is
  // missing that may come (a port that somebody else holds, no privilege), is returned, a sentence each. It
  // is tried again every second, and is `waiting` until then: the caller may also take it for its end.
  std::vector<std::string> apply(const std::shared_ptr<const flow::Plan>& plan);
  // Begins to watch for what is missing. REQUIRES: privileges are as they will stay.
  Status watch();
  void stop();  // nothing is opened, moved or closed from here on
  std::vector<State> states();

 private:
  struct Key {
    std::string device;
    int family;
    Endpoint where;
    auto operator<=>(const Key&) const = default;
  };
  struct Sockets {
    std::vector<int> fds;  // one per worker, which closes it; empty: not open
    unsigned device_index = 0;
  };
  struct Wanted {
    uint32_t listener;
    std::string listener_name, bind;
    uint32_t keepalive_ms;
    bool everywhere;  // of ":port"
    Sockets open;
    std::string waits;
  };
  struct Retired {
    Key key;
    Sockets open;
    uint64_t since_ns;
  };

  static bool is_awaited(int error, const Key& key, const Wanted& w);
  int probe(const Key& key) const;
  int open(const Key& key, Wanted* w);
  bool revive(const Key& key, Wanted* w);
  bool take_found(const Key& key, Wanted* w);
  void retire(const Key& key, Sockets* open);
  void remove_retired();
  void look(const Key& key, Wanted* w);
  void look_at_all();
  void tell(const Key& key, Wanted* w, std::string waits);
  bool holds_port(const Key& key) const;
  void run();
  int patience_ms();

  std::vector<std::unique_ptr<flow::Worker>>& workers_;
  sockmap::Sockmap* const trim_;
  std::mutex mutex_;  // of all below
  std::shared_ptr<const flow::Plan> plan_;
  std::map<Key, Wanted> wanted_;
  std::vector<Retired> retired_;
  std::map<Key, Sockets> found_;  // until the first apply() is over
  bool told_no_ipv6_ = false, stopped_ = false;
  Fd bell_;  // rtnetlink rings when a link or an address came or went; not valid: we look every second
  Fd wake_;
  std::thread watcher_;
};

}  // namespace penstock::daemon
