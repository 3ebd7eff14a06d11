// SPDX-License-Identifier: Apache-2.0
// daemon/services.h: the servers of upstreams with `srv` (RFC 2782), followed while no flow asks for them: so
// flows find them, checks and the doctor know them. DNS is asked when the TTL of what it said is over, after
// a second when it said nothing, and once a second while checks find every server of an upstream down. No
// thread of its own. tests/check/services_test.cc.
#pragma once
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "check/checker.h"
#include "dns/resolver.h"
#include "flow/worker.h"

namespace penstock::daemon {

class Services {
 public:
  // Of whatever plan `shared` has. It, its resolver and `checker` outlive the services, but for answers on
  // their way.
  static Result<std::unique_ptr<Services>> make(flow::Shared& shared, check::Checker& checker);

  // Takes what was answered, asks what is due. Returns in how many ms it wants its next turn (-1: never), if
  // wake_fd() does not get readable before.
  int turn();
  int wake_fd() const;

  // Thread-safe, both.
  void wake();  // the plan is another one, or the health of a server
  // A flow has heard of them first.
  void servers_changed(const config::Upstream& what, const flow::Upstream& servers);

 private:
  using Clock = std::chrono::steady_clock;
  struct Inbox;
  struct Service {
    size_t upstream = 0;  // index in the plan
    bool asking = false;
    bool failing = false;
    Clock::time_point asked, next;
  };

  Services(flow::Shared& shared, check::Checker& checker, std::shared_ptr<Inbox> inbox);
  void follow(std::shared_ptr<const flow::Plan> plan);
  void on_answer(Service& s, const dns::Answer& answer, Clock::time_point now);
  bool nobody_is_up(const Service& s) const;
  void ask(size_t index, Clock::time_point now);

  flow::Shared& shared_;
  check::Checker& checker_;
  const std::shared_ptr<Inbox> inbox_;
  std::shared_ptr<const flow::Plan> plan_;
  uint64_t plans_ = 0;  // followed so far
  std::vector<Service> services_;
};

}  // namespace penstock::daemon
