// SPDX-License-Identifier: Apache-2.0
// torture/acceptor.h: the server's door: listens, accepts, and finds out whose connection it has, from the
// PROXY header, the client's id or the peer address. What belongs to nobody is told to the registry and
// reset. Belongs to one loop, which listens beside the others (SO_REUSEPORT).
#pragma once
#include <functional>
#include <list>
#include <string>

#include "base/fd.h"
#include "registry.h"
#include "watched.h"

namespace penstock::torture {

class Acceptor {
 public:
  struct Guest {
    int fd;
    Life* life;
    std::string_view early;  // stream bytes read along with the header; valid during the call
    bool wrong_header;
    std::string remark;
  };
  using Welcome = std::function<void(const Guest&)>;  // takes the fd, still in the epoll set

  // Throws std::system_error if it cannot listen.
  Acceptor(const Options& options, Registry& registry, int epoll_fd, Welcome welcome);
  ~Acceptor();
  // A client's thread may not have told the registry yet: unknown clients are looked for again, for a second.
  // Returns whether there are any.
  bool ask_again();
  void drop_silent(int64_t now_ms);  // those that have not said who they are for --hang-s
  void free_dead();                  // when no event of this round can mean them any more

 private:
  struct Listener;
  struct Arrival;
  void accept_all(Listener& listener);
  void read_more(Arrival& arrival);
  bool read_preamble(Arrival& arrival);
  void identify(Arrival& arrival);
  void drop(Arrival& arrival, Failure failure, const std::string& reason);
  void forget(Arrival& arrival);

  const Options& options_;
  Registry& registry_;
  const int epoll_fd_;
  const Welcome welcome_;
  std::list<Listener> listeners_;
  std::list<Arrival> arrivals_, dead_;
};

}  // namespace penstock::torture
