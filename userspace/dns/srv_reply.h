// SPDX-License-Identifier: Apache-2.0
// dns/srv_reply.h: the SRV records of a DNS message (RFC 2782). Its bytes come from outside: any are
// accepted. c-ares' own parser leaves out the TTL. Kept true by tests/dns/srv_test.cc.
#pragma once
#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "dns/resolver.h"

namespace penstock::dns {

struct SrvReply {
  // By priority, then host: the order of the records, which servers change from answer to answer, does not
  // show. Without those that cannot be dialled: no host name, port 0. The first kTargetsMax.
  std::vector<SrvTarget> targets;
  bool no_service = false;      // the target is ".": decidedly not available here
  std::chrono::seconds ttl{0};  // the shortest of the answer section, CNAMEs included
};

// Nothing when the message is malformed.
std::optional<SrvReply> parse_srv_reply(std::span<const uint8_t> message);

}  // namespace penstock::dns
