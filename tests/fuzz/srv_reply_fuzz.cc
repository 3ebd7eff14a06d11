// SPDX-License-Identifier: Apache-2.0
// Any bytes as a DNS message: its SRV records are those that c-ares' own parser finds, in our order, and what
// was understood can be said again. Where we refuse and c-ares does not, a name leads forwards or is too
// long.
#include "dns/srv_reply.h"

#include <ares.h>

#include <algorithm>
#include <string>

#include "dns/name.h"
#include "support/fuzz_text.h"

namespace {

using namespace penstock::dns;
using Bytes = std::vector<uint8_t>;

void append(Bytes* out, size_t value, int width) {
  while (width-- > 0) out->push_back(static_cast<uint8_t>(value >> 8 * width));
}

void append_name(Bytes* out, const std::string& name) {
  for (const std::string& label : penstock::test::labels_of(name)) {
    out->push_back(static_cast<uint8_t>(label.size()));
    out->insert(out->end(), label.begin(), label.end());
  }
  out->push_back(0);
}

void check_said_again(const SrvReply& reply) {
  Bytes message;
  append(&message, 0x000181800001, 6);
  append(&message, reply.targets.size(), 2);
  append(&message, 0, 4);
  append_name(&message, "_imap._tcp.example.net");
  append(&message, 33 << 16 | 1, 4);
  for (const SrvTarget& target : reply.targets) {
    append(&message, 0xc00c, 2);
    append(&message, 33 << 16 | 1, 4);
    append(&message, static_cast<size_t>(reply.ttl.count()), 4);
    append(&message, 6 + target.host.size() + 2, 2);
    append(&message, target.priority, 2);
    append(&message, target.weight, 2);
    append(&message, target.port, 2);
    append_name(&message, target.host);
  }
  const auto again = parse_srv_reply(message);
  PENSTOCK_ASSERT(again && again->targets == reply.targets);
  PENSTOCK_ASSERT(reply.targets.empty() || again->ttl == reply.ttl);
}

// c-ares takes messages with one question only, and none when a record before the last is broken.
void check_against_cares(std::span<const uint8_t> message, const SrvReply& reply) {
  ares_srv_reply* records = nullptr;
  if (ares_parse_srv_reply(message.data(), static_cast<int>(message.size()), &records) != ARES_SUCCESS)
    return;
  std::vector<SrvTarget> theirs;
  for (const ares_srv_reply* r = records; r != nullptr; r = r->next) {
    const auto host = canonical(r->host);
    const bool cut = host && host->ends_with('.');  // at a label of one NUL, where its strings end
    if (host && !cut && r->port != 0) theirs.push_back({r->priority, *host, r->port, r->weight});
  }
  ares_free_data(records);
  std::sort(theirs.begin(), theirs.end());
  theirs.erase(std::unique(theirs.begin(), theirs.end()), theirs.end());
  if (theirs.size() > kTargetsMax) theirs.resize(kTargetsMax);
  PENSTOCK_ASSERT(theirs == reply.targets);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const uint8_t> message(data, size);
  const auto reply = parse_srv_reply(message);
  if (!reply) return 0;
  PENSTOCK_ASSERT(reply->ttl.count() >= 0 && reply->ttl.count() <= 0x7fffffff);
  PENSTOCK_ASSERT(reply->targets.size() <= kTargetsMax);
  PENSTOCK_ASSERT(std::is_sorted(reply->targets.begin(), reply->targets.end()));
  for (const SrvTarget& target : reply->targets)
    PENSTOCK_ASSERT(target.port != 0 && penstock::test::is_name(target.host));
  check_said_again(*reply);
  check_against_cares(message, *reply);
  return 0;
}
