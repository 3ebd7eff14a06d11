// SPDX-License-Identifier: Apache-2.0
// dns/channel.h: c-ares' sockets and timeouts. One thread polls and calls everything here. Each lookup()
// reads the hosts file first; resolv.conf is read once, by open().
#pragma once
#include <poll.h>

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "dns/resolver.h"

struct ares_channeldata;

namespace penstock::dns {

// The servers of one channel, all tries together, are silent for at most this long before a name is given up.
// Walking a search list with slow servers may take longer: the resolver's own deadline bounds that.
inline constexpr std::chrono::milliseconds kChannelTimeout{4500};

class Channel {
 public:
  struct Outcome {
    Answer answer;
    bool answered = false;        // by DNS or the hosts file, if only that there is nothing
    std::chrono::seconds ttl{0};  // the shortest of the records that led here; 0 for the hosts file, errors
  };
  using Done = std::function<void(Outcome)>;

  // `servers`: empty: those of resolv.conf. Errors: out of memory or descriptors.
  static Result<std::unique_ptr<Channel>> open(const std::vector<Endpoint>& servers);
  ~Channel();  // runs the Done of every outstanding lookup, with an error
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  // `done` runs once, in here, in process() or in the destructor.
  void lookup(const std::string& name, Family family, Done done);
  void lookup_srv(const std::string& name, Done done);
  bool idle() const { return outstanding_ == 0; }

  void add_to(std::vector<pollfd>* wanted) const;
  std::chrono::milliseconds next_timeout(std::chrono::milliseconds most) const;
  // After every poll, with what add_to() asked for (others' descriptors among them are skipped).
  void process(std::span<const pollfd> polled);

 private:
  struct Lookup;
  struct SrvLookup;
  Channel() = default;
  static void on_socket_state(void* self, int fd, int readable, int writable);

  ares_channeldata* ares_ = nullptr;
  std::map<int, short> sockets_;  // what poll() should watch, by descriptor; c-ares opens and closes them
  size_t outstanding_ = 0;
};

}  // namespace penstock::dns
