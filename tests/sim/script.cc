// SPDX-License-Identifier: Apache-2.0
#include "sim/script.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <cerrno>

#include "sim/kernel.h"
#include "sim/life.h"

namespace penstock::sim {
namespace {

constexpr uint32_t kBytesMax =
    20'000;  // of one write: what waits everywhere fits into the buffers of a real socket

class Script {
 public:
  explicit Script(Kernel& kernel) : k_(kernel), map_(the_sockmap()) {
    k_.reset_maps();
    map_.globals().memory_limit_bytes = 1u << 30;
    for (int end : {0, 1}) {
      peer_[end] = k_.make_socket(false);
      ours_[end] = k_.make_socket(true);
      if (end == 0)
        k_.join(peer_[end], ours_[end]);
      else
        k_.join(ours_[end], peer_[end]);
      for (Socket* s : {peer_[end], ours_[end]}) s->send_buffer = s->receive_buffer = 4 << 20;
      fd_[end] = k_.open(Kind::tcp);
      k_.file(fd_[end])->socket = ours_[end];
      ours_[end]->fd = fd_[end];
    }
  }
  ~Script() {
    const uint64_t cookies[2] = {ours_[0]->cookie, ours_[1]->cookie};
    if (taken_) map_.leave(0, cookies);
  }

  // The next act, chosen among those that make sense now. Empty: the script is over.
  std::string next() {
    if (over_ || acts_++ == 25) return "";
    const auto e = static_cast<int>(k_.random.below(2));
    if (!taken_ && k_.random.chance(1, 3)) return "take";
    if (taken_ && !joined_[e]) return fmt::format("join {}", e);
    for (int tries = 0; tries < 100; tries++) {
      const bool both = joined_[0] && joined_[1];
      switch (k_.random.below(12)) {
        case 0:
        case 1:
        case 2:
          if (!peer_fin_[e]) return fmt::format("write {} {}", e, k_.random.log_between(1, kBytesMax));
          break;
        case 3:
        case 4:
          if (peer_[e]->readable())
            return fmt::format("read {} {}", e, k_.random.between(1, peer_[e]->readable()));
          break;
        case 5:
          if (!peer_fin_[e] && acts_ > 6) return fmt::format("fin {}", e);
          break;
        case 6:
          if (acts_ > 20) return fmt::format("reset {}", e);
          break;
        case 7:
          if (acts_ > 12 && !our_fin_[e]) return fmt::format("shut {}", e);
          break;
        case 8:
        case 9:
          if (both && map_.closed(static_cast<uint32_t>(e))) return fmt::format("open {}", e);
          break;
        case 10:
          if (both && !map_.closed(static_cast<uint32_t>(e))) return fmt::format("close {}", e);
          break;
        case 11:
          if (both) return fmt::format("kick {}", e);
          break;
      }
    }
    return "";
  }

  Observed play(const std::string& act) {
    char verb[16] = "";
    int e = 0;
    unsigned n = 0;
    sscanf(act.c_str(), "%15s %d %u", verb, &e, &n);
    const std::string v = verb;
    const auto index = static_cast<uint32_t>(e);
    Observed o;
    if (v == "write") {
      k_.write(peer_[e], Bytes(&stream_, 0, n));
    } else if (v == "read") {
      k_.read(peer_[e], n);
    } else if (v == "fin") {
      peer_fin_[e] = true;
      k_.shutdown_write(peer_[e]);
    } else if (v == "reset") {
      over_ = true;
      k_.reset(peer_[e]);
    } else if (v == "shut") {
      our_fin_[e] = true;
      o.result = shutdown(fd_[e], SHUT_WR) ? errno : 0;
    } else if (v == "take") {
      taken_ = true;
      const uint64_t cookies[2] = {ours_[0]->cookie, ours_[1]->cookie};
      o.result = map_.take(0, 0, cookies, {1u << 30, 1u << 30, 1u << 30});
    } else if (v == "join") {
      o.result = map_.attach_trim(fd_[e]);
      if (!o.result) o.result = map_.join(index, fd_[e]);
      if (o.result) over_ = true;
      joined_[e] = true;
    } else if (v == "open") {
      o.result = map_.open_valve(index, fd_[e], true);
    } else if (v == "close") {
      o.result = map_.close_valve(index, fd_[e]);
    } else if (v == "kick") {
      o.result = sockmap::Sockmap::kick(fd_[e]);
    }
    while (k_.step(UINT64_MAX)) {
    }
    look(&o);
    return o;
  }

 private:
  void look(Observed* o) {
    for (int e : {0, 1}) {
      auto& end = o->end[e];
      const Socket &s = *ours_[e], &p = *peer_[e];
      const uint32_t events = k_.poll(fd_[e]);
      end.state = s.state;
      end.hangup = events & POLLHUP;
      end.half_closed = events & POLLRDHUP;
      end.error = events & POLLERR;
      if (s.state != TCP_CLOSE) {
        end.received = s.received;
        end.written = s.acked + s.queued() - (e == 1);
        end.unread = end.error ? 0 : s.readable();  // asking would take the error
      }
      if (taken_) {
        const penstock_direction& d = map_.direction(static_cast<uint32_t>(e));
        end.redirected = d.redirected;
        end.charged = d.charged != 0;
        end.valve_closed = map_.closed(static_cast<uint32_t>(e));
      }
      if (over_) continue;
      end.peer_unread = p.readable();
      end.peer_eof = p.done;
      end.peer_reset = p.error != 0;
    }
  }

  Kernel& k_;
  sockmap::Sockmap& map_;
  Stream stream_{"script", ""};
  Socket *peer_[2], *ours_[2];
  int fd_[2];
  bool taken_ = false, joined_[2] = {}, peer_fin_[2] = {}, our_fin_[2] = {}, over_ = false;
  int acts_ = 0;
};

}  // namespace

void print_scripts(uint64_t seed, uint64_t count) {
  for (uint64_t n = 0; n < count; n++) {
    Kernel kernel(Random(seed ^ n << 32).next());
    kernel.title = fmt::format("penstock-sim --seed {} --scripts {}, the last one", seed, n + 1);
    Script script(kernel);
    fmt::print("script {}\n", n);
    for (std::string act; !(act = script.next()).empty();)
      fmt::print("{} = {}\n", act, script.play(act).text());
  }
}

}  // namespace penstock::sim
