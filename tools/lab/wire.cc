// SPDX-License-Identifier: Apache-2.0
// lab-wire: a cable between two network namespaces that loses, repeats, reorders, delays, cuts. Two TUN
// devices, and what is sent into one comes out of the other. Needs no netem. At SIGTERM it prints what it
// did, and both devices go.
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <queue>
#include <random>
#include <string>
#include <system_error>

#include "base/fd.h"
#include "overlap.h"

namespace penstock::lab {
namespace {

constexpr size_t kPacketMax = 65536;
constexpr int kPacketsPerTurn = 64;
constexpr int64_t kRateQueueUs = 100'000;  // a link's buffer: what would wait longer is lost

struct Faults {
  double loss = 0, duplicate = 0, reorder = 0, overlap = 0;  // percent of packets
  int64_t delay_us = 0, late_us = 2000;                      // of every packet; of a reordered one besides
  double rate_mbps = 0;                                      // each way; 0: no limit
};

struct Counts {
  uint64_t packets = 0, lost = 0, duplicated = 0, reordered = 0, overlapped = 0, over_rate = 0;
};

volatile sig_atomic_t told_to_stop = 0, pulled_out = 0;

int64_t now_us() {
  using namespace std::chrono;
  return duration_cast<microseconds>(steady_clock::now().time_since_epoch()).count();
}

[[noreturn]] void fail(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

Fd open_tun(const std::string& netns, const std::string& device) {
  const Fd there(open(netns.c_str(), O_RDONLY | O_CLOEXEC));
  if (!there.valid() || setns(there.get(), CLONE_NEWNET) != 0) fail(netns);
  Fd tun(open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC));
  ifreq request{};
  device.copy(request.ifr_name, IFNAMSIZ - 1);
  request.ifr_flags = IFF_TUN | IFF_NO_PI;
  if (!tun.valid() || ioctl(tun.get(), TUNSETIFF, &request) != 0) fail("/dev/net/tun " + device);
  return tun;
}

class Wire {
 public:
  Wire(const Faults& faults, uint64_t seed, Fd a, Fd b)
      : faults_(faults), chance_(seed), ends_{std::move(a), std::move(b)} {}

  void run() {
    std::array<pollfd, 2> ends{pollfd{ends_[0].get(), POLLIN, 0}, pollfd{ends_[1].get(), POLLIN, 0}};
    sigset_t unblocked;
    sigemptyset(&unblocked);
    int carrier = 1;
    while (!told_to_stop) {
      if (carrier == pulled_out) {
        carrier = !carrier;
        for (const Fd& end : ends_) {
          if (ioctl(end.get(), TUNSETCARRIER, &carrier) != 0) fail("TUNSETCARRIER");
        }
      }
      timespec wait{};
      const int64_t us = due_.empty() ? 0 : std::max<int64_t>(0, due_.top().at_us - now_us());
      wait.tv_sec = us / 1'000'000;
      wait.tv_nsec = us % 1'000'000 * 1000;
      if (ppoll(ends.data(), ends.size(), due_.empty() ? nullptr : &wait, &unblocked) < 0 && errno != EINTR)
        fail("ppoll");
      for (size_t from = 0; from < ends.size(); ++from) {
        if (ends[from].revents) take(from);
      }
      while (!due_.empty() && due_.top().at_us <= now_us()) {
        give(due_.top().to, due_.top().packet);
        due_.pop();
      }
    }
  }
  const Counts& counts() const { return counts_; }

 private:
  struct Due {
    int64_t at_us;
    uint64_t number;  // of those due at once the first goes first
    size_t to;
    Packet packet;
    bool operator<(const Due& other) const {
      return at_us != other.at_us ? at_us > other.at_us : number > other.number;
    }
  };

  bool happens(double percent) {
    return percent > 0 && std::uniform_real_distribution<double>(0, 100)(chance_) < percent;
  }

  void take(size_t from) {
    for (int i = 0; i < kPacketsPerTurn; ++i) {
      const ssize_t n = read(ends_[from].get(), buffer_.data(), buffer_.size());
      if (n <= 0) return;
      pass(1 - from, Packet(buffer_.begin(), buffer_.begin() + n));
    }
  }

  void pass(size_t to, Packet packet) {
    ++counts_.packets;
    if (happens(faults_.loss)) {
      ++counts_.lost;
      return;
    }
    if (happens(faults_.overlap)) {
      auto [first, second] = cut_to_overlap(packet);
      if (!first.empty()) {
        ++counts_.overlapped;
        send(to, std::move(first), 0);
        return send(to, std::move(second), 0);
      }
    }
    if (happens(faults_.duplicate)) {
      ++counts_.duplicated;
      send(to, packet, 0);
    }
    const bool late = happens(faults_.reorder);
    counts_.reordered += late;
    send(to, std::move(packet), late ? faults_.late_us : 0);
  }

  void send(size_t to, Packet packet, int64_t later_us) {
    int64_t at_us = 0;
    if (faults_.delay_us > 0 || later_us > 0 || faults_.rate_mbps > 0)
      at_us = now_us() + faults_.delay_us + later_us;
    if (faults_.rate_mbps > 0) {
      const auto takes_us = static_cast<int64_t>(static_cast<double>(packet.size() * 8) / faults_.rate_mbps);
      const int64_t begins_us = std::max(free_us_[to], now_us());
      if (begins_us - now_us() > kRateQueueUs) {
        ++counts_.over_rate;
        return;
      }
      free_us_[to] = begins_us + takes_us;
      at_us += free_us_[to] - now_us();
    }
    if (at_us == 0)
      give(to, packet);
    else
      due_.push({at_us, next_++, to, std::move(packet)});
  }

  // A device that is down, or has no room, loses what it is given.
  void give(size_t to, const Packet& packet) {
    if (write(ends_[to].get(), packet.data(), packet.size()) < 0) ++counts_.lost;
  }

  const Faults faults_;
  std::mt19937_64 chance_;
  std::array<Fd, 2> ends_;
  std::array<uint8_t, kPacketMax> buffer_;
  std::array<int64_t, 2> free_us_{};  // when the link to there has sent what it was given
  std::priority_queue<Due> due_;
  uint64_t next_ = 0;
  Counts counts_;
};

void listen_to_signals() {
  sigset_t stop;
  sigemptyset(&stop);
  sigaddset(&stop, SIGTERM);
  sigaddset(&stop, SIGINT);
  sigaddset(&stop, SIGUSR1);
  sigaddset(&stop, SIGUSR2);
  sigprocmask(SIG_BLOCK, &stop, nullptr);  // seen in ppoll() alone
  struct sigaction action {};
  action.sa_handler = [](int) { told_to_stop = 1; };
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
  action.sa_handler = [](int signal) { pulled_out = signal == SIGUSR1; };
  sigaction(SIGUSR1, &action, nullptr);
  sigaction(SIGUSR2, &action, nullptr);
}

int run(int argc, char** argv) {
  CLI::App app("A cable between two network namespaces that is as bad as it is told to be.");
  Faults faults;
  uint64_t seed = 1;
  double delay_ms = 0, late_ms = 2;
  std::string netns_a, device_a, netns_b, device_b;
  app.add_option("--loss", faults.loss, "percent of packets");
  app.add_option("--duplicate", faults.duplicate, "percent");
  app.add_option("--reorder", faults.reorder, "percent: come --late-ms later");
  app.add_option("--overlap", faults.overlap, "percent of TCP segments: come as two that overlap");
  app.add_option("--delay-ms", delay_ms, "of every packet");
  app.add_option("--late-ms", late_ms, "of a reordered one besides")->capture_default_str();
  app.add_option("--rate-mbps", faults.rate_mbps, "each way; 100 ms of it wait, the rest is lost");
  app.add_option("--seed", seed, "of the chances")->capture_default_str();
  app.add_option("netns_a", netns_a, "a file: /proc/PID/ns/net, ...")->required();
  app.add_option("device_a", device_a, "its name there")->required();
  app.add_option("netns_b", netns_b)->required();
  app.add_option("device_b", device_b)->required();
  CLI11_PARSE(app, argc, argv);
  faults.delay_us = static_cast<int64_t>(delay_ms * 1000);
  faults.late_us = static_cast<int64_t>(late_ms * 1000);

  listen_to_signals();
  Wire wire(faults, seed, open_tun(netns_a, device_a), open_tun(netns_b, device_b));
  fmt::print("open\n");
  std::fflush(stdout);
  wire.run();
  const Counts& c = wire.counts();
  fmt::print(
      R"({{"packets": {}, "lost": {}, "duplicated": {}, "reordered": {}, "overlapped": {}, "over_rate": {}}})"
      "\n",
      c.packets, c.lost, c.duplicated, c.reordered, c.overlapped, c.over_rate);
  return 0;
}

}  // namespace
}  // namespace penstock::lab

int main(int argc, char** argv) {
  try {
    return penstock::lab::run(argc, argv);
  } catch (const std::system_error& e) {
    fmt::print(stderr, "lab-wire: {}\n", e.what());
    return 1;
  }
}
