// SPDX-License-Identifier: Apache-2.0
// flow/admit.cc: may this client have a flow? Asked once the client is known for certain: at accept, or
// when a PROXY header that we believe has said who it is.
#include "flow/worker.h"
#include "route/route.h"

namespace penstock::flow {

// Why not, or nothing: then it counts as its client's until it is released.
std::optional<CloseReason> Worker::admit(Flow& f) {
  FlowRecord& r = *f.record;
  const config::Listener& l = f.plan->listener(r.listener);
  if (!route::allows(l, r.client.address)) return CloseReason::denied;
  const auto refusal = shared_.clients->enter(r.client.address, r.listener, f.plan->config().limits, l.limits,
                                              now_ns_, &f.place);
  if (!refusal) r.admitted = 1;
  return refusal;
}

}  // namespace penstock::flow
