// SPDX-License-Identifier: Apache-2.0
// sockmap/probe_checks.h: the self-test's checks, one fault of some kernel each. A check has slot `slot` and
// its event ring to itself, runs on a thread of its own, throws CheckFailed with the reason, and returns what
// is worth telling.
#pragma once
#include <cstdint>
#include <string>

#include "sockmap/sockmap.h"

namespace penstock::sockmap {

// probe_bytes.cc: what is sent arrives, once and in order
std::string check_splice(Sockmap& sockmap, uint32_t slot);
std::string check_splice_v6(Sockmap& sockmap, uint32_t slot);
std::string check_kick(Sockmap& sockmap, uint32_t slot);
std::string check_partial_send(Sockmap& sockmap, uint32_t slot);
std::string check_overlap(Sockmap& sockmap, uint32_t slot);
std::string check_pull(Sockmap& sockmap, uint32_t slot);
std::string check_accounts(Sockmap& sockmap, uint32_t slot);
std::string check_publish(Sockmap& sockmap, uint32_t slot);

// probe_ends.cc: a FIN is a FIN, a RST is a RST
std::string check_fin(Sockmap& sockmap, uint32_t slot);
std::string check_rst(Sockmap& sockmap, uint32_t slot);
std::string check_fin_while_closed(Sockmap& sockmap, uint32_t slot);

// probe_valve.cc: a direction leaves the splice without loss, and memory is bounded
std::string check_valve(Sockmap& sockmap, uint32_t slot);
std::string check_kernel_close(Sockmap& sockmap, uint32_t slot);
std::string check_trim(Sockmap& sockmap, uint32_t slot);

}  // namespace penstock::sockmap
