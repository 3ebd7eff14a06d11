// SPDX-License-Identifier: Apache-2.0
#include "daemon/drained.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <string>

#include "base/log.h"

namespace penstock::daemon {
namespace {

std::string full_name(const flow::Server& s) {
  return s.upstream() + "/" + s.what().text;
}

// Of the upstream at `index` as a server of its own; empty: it means none of these.
std::string_view server_in(const flow::Plan& plan, size_t index, std::string_view name) {
  const std::string prefix = plan.config().upstreams[index].name + "/";
  return name.starts_with(prefix) ? name.substr(prefix.size()) : std::string_view();
}

}  // namespace

bool set_drained(const flow::Plan& plan, std::string_view name, bool drained,
                 std::vector<DrainedServer>* servers) {
  bool known = false;
  for (size_t i = 0; i < plan.config().upstreams.size(); i++) {
    if (name == plan.config().upstreams[i].name) {
      plan.servers_at(i).set_drained(drained);
      known = true;
    }
    plan.servers_at(i).for_each_server([&](flow::Server& s) {
      if (name != s.upstream() && name != full_name(s)) return;
      known = true;
      const bool changed = s.drained.exchange(drained) != drained;
      if (servers) servers->push_back({&s, changed});
      if (name != s.upstream()) plan.servers_at(i).keep_drained(s.what().text, drained);
    });
    // DNS may not name it now.
    if (const std::string_view server = server_in(plan, i, name); !server.empty() && !drained)
      known |= plan.servers_at(i).keep_drained(server, false);
  }
  return known;
}

void keep_drained(DrainedNames& names, const flow::Plan& plan) {
  static std::mutex mutex;  // not in `names`: who dies with it would keep it
  const std::lock_guard lock(mutex);
  std::string text;
  for (size_t i = 0; i < plan.config().upstreams.size(); i++) {
    if (plan.servers_at(i).is_drained()) text += plan.config().upstreams[i].name + "\n";
    auto servers = plan.servers_at(i).kept_drained();
    plan.servers_at(i).for_each_server([&](flow::Server& s) {
      if (s.drained) servers.insert(s.what().text);
    });
    for (const std::string& s : servers) text += plan.config().upstreams[i].name + "/" + s + "\n";
  }
  if (text.size() > DrainedNames::kBytesMax) {
    log::warn("{} bytes of names are drained: those beyond {} serve again when a worker dies", text.size(),
              DrainedNames::kBytesMax);
    text.resize(text.rfind('\n', DrainedNames::kBytesMax - 1) + 1);
  }
  const uint32_t next = names.current ^ 1;
  DrainedNames::List& list = names.lists[next & 1];
  list.bytes = static_cast<uint32_t>(text.size());
  std::copy(text.begin(), text.end(), list.text);
  names.current.store(next & 1, std::memory_order_release);
}

void drain_again(const DrainedNames& names, const flow::Plan& plan) {
  const DrainedNames::List& list = names.lists[names.current & 1];
  std::string_view rest(list.text, std::min<size_t>(list.bytes, DrainedNames::kBytesMax));
  for (size_t end; (end = rest.find('\n')) != rest.npos; rest.remove_prefix(end + 1)) {
    const std::string_view name = rest.substr(0, end);
    if (set_drained(plan, name, true, nullptr)) continue;
    for (size_t i = 0; i < plan.config().upstreams.size(); i++)
      if (const std::string_view server = server_in(plan, i, name); !server.empty())
        plan.servers_at(i).keep_drained(server, true);
  }
}

}  // namespace penstock::daemon
