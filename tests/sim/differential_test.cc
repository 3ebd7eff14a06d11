// SPDX-License-Identifier: Apache-2.0
// The simulated kernel is no authority: each script that `penstock-sim --scripts` plays in it is played again
// on the kernel at hand, through the same Sockmap, and after every act the same must be seen.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cerrno>
#include <memory>
#include <sstream>
#include <vector>

#include "sim/script.h"
#include "sockmap/loopback_flow.h"
#include "support/netns.h"
#include "support/process.h"
#include "support/wait.h"

namespace penstock::sim {
namespace {

using sockmap::LoopbackFlow;
using sockmap::Sockmap;

constexpr int kTcpClose = 7;  // TCP_CLOSE, net/tcp_states.h

class Player {
 public:
  explicit Player(Sockmap& map) : map_(map), flow_(map, 0) {}
  ~Player() {
    const uint64_t cookies[2] = {flow_.cookie(0), flow_.cookie(1)};
    if (taken_) map_.leave(0, cookies);
  }

  int play(const std::string& act) {
    char verb[16] = "";
    int e = 0;
    unsigned n = 0;
    sscanf(act.c_str(), "%15s %d %u", verb, &e, &n);
    const std::string v = verb;
    const int peer = e == 0 ? flow_.client() : flow_.server();
    const auto index = static_cast<uint32_t>(e);
    if (v == "write") sockmap::send_all(peer, std::string(n, 'x'));
    if (v == "read") sockmap::receive(peer, n);
    if (v == "fin") sockmap::half_close(peer);
    if (v == "reset") {
      over_ = true;
      const linger rst{1, 0};
      setsockopt(peer, SOL_SOCKET, SO_LINGER, &rst, sizeof rst);
      sockaddr nowhere{};
      nowhere.sa_family = AF_UNSPEC;
      connect(peer, &nowhere, sizeof nowhere);  // disconnects, with a RST; the descriptor stays
    }
    if (v == "shut") return shutdown(flow_.ours(e), SHUT_WR) ? errno : 0;
    if (v == "take") {
      taken_ = true;
      const uint64_t cookies[2] = {flow_.cookie(0), flow_.cookie(1)};
      return map_.take(0, 0, cookies, {1u << 30, 1u << 30, 1u << 30});
    }
    if (v == "join") {
      int error = map_.attach_trim(flow_.ours(e));
      if (!error) error = map_.join(index, flow_.ours(e));
      over_ |= error != 0;
      return error;
    }
    if (v == "open") return map_.open_valve(index, flow_.ours(e), true);
    if (v == "close") return map_.close_valve(index, flow_.ours(e));
    if (v == "kick") return Sockmap::kick(flow_.ours(e));
    return 0;
  }

  Observed look(int result) {
    Observed o;
    o.result = result;
    for (int e : {0, 1}) {
      auto& end = o.end[e];
      const short events = poll_of(flow_.ours(e));
      tcp_info info{};
      socklen_t size = sizeof info;
      getsockopt(flow_.ours(e), IPPROTO_TCP, TCP_INFO, &info, &size);
      end.state = info.tcpi_state;
      end.hangup = events & POLLHUP;
      end.half_closed = events & POLLRDHUP;
      end.error = events & POLLERR;
      if (end.state != kTcpClose) {
        int queued = 0;
        ioctl(flow_.ours(e), SIOCOUTQ, &queued);
        end.received = info.tcpi_bytes_received;
        end.written = info.tcpi_bytes_acked + static_cast<uint64_t>(queued) - (e == 1);
        end.unread = end.error ? 0 : sockmap::unread_bytes(flow_.ours(e));
      }
      if (taken_) {
        const penstock_direction& d = map_.direction(static_cast<uint32_t>(e));
        end.redirected = d.redirected;
        end.charged = d.charged != 0;
        end.valve_closed = map_.closed(static_cast<uint32_t>(e));
      }
      if (over_) continue;
      const int peer = e == 0 ? flow_.client() : flow_.server();
      int unread = 0;
      ioctl(peer, SIOCINQ, &unread);
      const short heard = poll_of(peer);
      end.peer_reset = heard & POLLERR;
      end.peer_eof = (heard & POLLRDHUP) && !end.peer_reset;
      end.peer_unread = static_cast<uint64_t>(unread);
    }
    return o;
  }

 private:
  static short poll_of(int fd) {
    pollfd p{fd, POLLRDHUP, 0};
    poll(&p, 1, 0);
    return p.revents;
  }
  Sockmap& map_;
  LoopbackFlow flow_;
  bool taken_ = false, over_ = false;
};

TEST(Differential, TheSimulatedKernelDoesWhatThisOneDoes) {
  test::Netns netns;
  test::Netns::Inside inside(netns);
  test::Process sim({PENSTOCK_SIM, "--seed", "7", "--scripts", "150"});
  ASSERT_EQ(sim.wait_exit(), 0) << sim.output();
  const std::string printed = sim.output();
  sockmap::Options options;
  options.flows_max = 8;
  options.memory_limit_bytes = 1u << 30;
  auto map = Sockmap::open(options);
  ASSERT_TRUE(map) << map.error().message;
  std::unique_ptr<Player> player;
  std::istringstream lines(printed);
  std::string story;
  int acts = 0;
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("script")) {
      player.reset();
      player = std::make_unique<Player>(**map);
      story = "";
      continue;
    }
    const size_t at = line.find(" = ");
    ASSERT_NE(at, line.npos) << line;
    const std::string act = line.substr(0, at), expected = line.substr(at + 3);
    story += act + "\n";
    const int result = player->play(act);
    acts++;
    std::string seen;
    EXPECT_TRUE(test::wait_until([&] { return (seen = player->look(result).text()) == expected; }))
        << story << "simulated: " << expected << "\nhere:      " << seen;
    if (HasFailure()) return;
  }
  EXPECT_GT(acts, 1500);
}

}  // namespace
}  // namespace penstock::sim
