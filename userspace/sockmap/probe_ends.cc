// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "sockmap/loopback_flow.h"
#include "sockmap/probe_checks.h"

namespace penstock::sockmap {
namespace {

int pending_error(int fd) {
  int error = 0;
  socklen_t length = sizeof error;
  ::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
  return error;
}

void require_fin(int fd) {
  wait_for(fd, POLLIN | POLLRDHUP, "a FIN");
  char byte;
  require(::recv(fd, &byte, 1, MSG_DONTWAIT) == 0, "recv() does not end at the FIN");
}

}  // namespace

std::string check_fin(Sockmap& sockmap, uint32_t slot) {
  LoopbackFlow flow(sockmap, slot);
  flow.hand_off();
  send_all(flow.client(), "last words");
  half_close(flow.client());
  wait_for(flow.ours(0), POLLRDHUP, "POLLRDHUP");
  require_fin(flow.ours(0));
  flow.wait_written(flow.up());
  flow.check_account(flow.up(), true);
  send_all(flow.server(), "still here");
  require(receive(flow.client(), 10) == "still here", "the other direction ended with the FIN");
  require(pending_error(flow.ours(1)) == 0, "the FIN broke the target");
  half_close(flow.ours(1));
  require(receive(flow.server(), 10) == "last words", "bytes before the FIN came out changed");
  require_fin(flow.server());
  return "";
}

std::string check_rst(Sockmap& sockmap, uint32_t slot) {
  LoopbackFlow flow(sockmap, slot);
  flow.hand_off();
  send_all(flow.client(), "1");
  require(receive(flow.server(), 1) == "1", "a byte came out changed");
  flow.reset_client();
  short events = wait_for(flow.ours(0), POLLRDHUP, "the RST");
  require(events & POLLERR && events & POLLHUP, fmt::format("poll says {:#x} after a RST", events));
  require(pending_error(flow.ours(0)) == ECONNRESET, "a RST is not reported as ECONNRESET");
  return "";
}

// Only an established socket can be inserted: what follows the valve's closing and a FIN must come out by
// recv().
std::string check_fin_while_closed(Sockmap& sockmap, uint32_t slot) {
  LoopbackFlow flow(sockmap, slot);
  flow.hand_off();
  send_all(flow.client(), "spliced ");
  require(receive(flow.server(), 8) == "spliced ", "bytes came out changed");
  flow.close_valve(flow.up());
  send_all(flow.client(), "held");
  half_close(flow.client());
  wait_for(flow.ours(0), POLLRDHUP, "the FIN");
  flow.check_account(flow.up(), true);
  int error = sockmap.open_valve(flow.up(), flow.ours(0), true);
  require(error == EOPNOTSUPP && sockmap.closed(flow.up()),
          fmt::format("a source with a FIN was inserted: {}", error ? strerror(error) : "no error"));
  require(receive(flow.ours(0), 4) == "held", "bytes behind a closed valve came out changed");
  require_fin(flow.ours(0));
  return "";
}

}  // namespace penstock::sockmap
