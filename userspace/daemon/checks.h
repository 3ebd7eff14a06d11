// SPDX-License-Identifier: Apache-2.0
// daemon/checks.h: where the checks meet the rest: what they find is told to the flows, and shown.
#pragma once
#include <string>

#include "check/checker.h"
#include "check/doctor.h"
#include "daemon/admin.h"
#include "daemon/json.h"
#include "flow/worker.h"

namespace penstock::daemon {

// Thread-safe: the server of this key is up or down from now on. One that no plan has is ignored.
void tell_flows(const flow::Shared& shared, const std::string& key, const check::Health& health);

// At the start, after a reload and when `srv` names others: every server of the plan that has a check is
// checked, and no other; one that has none any more is neither up nor down.
void check_servers_of(const flow::Plan& plan, check::Checker& checker);

Json health_json(config::CheckType type, const check::Health& health);

// {"command":"doctor","upstream":"mailbox"}, optionally "server" and "port". Replies when the dials are done.
void examine(check::Doctor& doctor, const flow::Plan& plan, const Json& request, const Admin::Reply& reply);

}  // namespace penstock::daemon
