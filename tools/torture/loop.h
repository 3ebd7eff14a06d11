// SPDX-License-Identifier: Apache-2.0
// torture/loop.h: one thread's epoll loop. It starts clients and drives the ends of lives; the two ends of a
// life may be driven by two loops.
#pragma once
#include <list>
#include <map>
#include <vector>

#include "acceptor.h"
#include "end_run.h"

namespace penstock::torture {

class Loop {
 public:
  enum class Role { first, further };  // the first does what is to be done once
  // Throws std::system_error if it cannot listen.
  Loop(const Options& options, Registry& registry, Tally& tally, Role role);
  ~Loop();
  void run();  // until the registry has finished

 private:
  struct Runner;
  struct Closing {
    int64_t at_ms;
    int fd;
  };

  bool start_clients();  // true if there may be more to start at once
  void start_client(Life& life);
  void welcome(const Acceptor::Guest& guest);
  Runner& add(Life& life, Side side, int fd);
  void drive(Runner& runner, EndRun::After after);
  void finish(Runner& runner);
  void run_ready();
  void run_timers();
  void look_around();
  int wait_ms(bool hurry) const;

  const Options& options_;
  Registry& registry_;
  Tally& tally_;
  const Role role_;
  Fd epoll_;
  Acceptor acceptor_;
  int64_t next_look_ms_ = 0;
  bool asking_ = false;
  std::list<Runner> runners_, dead_;
  std::vector<Runner*> ready_;
  std::multimap<int64_t, Runner*> timers_;
  std::vector<Closing> closing_;  // of lives that hang: both ends look before either closes
};

}  // namespace penstock::torture
