// SPDX-License-Identifier: Apache-2.0
#include "daemon/privileges.h"

#include <fmt/format.h>
#include <grp.h>
#include <pwd.h>
#include <sys/capability.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace penstock::daemon {
namespace {

constexpr const char* kKept =
    "cap_bpf,cap_net_admin,cap_perfmon,cap_net_bind_service,cap_net_raw,cap_sys_resource";

}  // namespace

uint64_t raise_descriptor_limit(uint64_t wanted) {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  rlimit more = limit;
  more.rlim_cur = std::max<rlim_t>(limit.rlim_cur, wanted);
  more.rlim_max = std::max(more.rlim_max, more.rlim_cur);
  if (setrlimit(RLIMIT_NOFILE, &more)) {  // without CAP_SYS_RESOURCE the hard limit is the end
    more = {std::min<rlim_t>(limit.rlim_max, std::max<rlim_t>(limit.rlim_cur, wanted)), limit.rlim_max};
    setrlimit(RLIMIT_NOFILE, &more);
  }
  getrlimit(RLIMIT_NOFILE, &limit);
  return limit.rlim_cur;
}

Status become(const std::string& user, const std::string& group) {
  if (user.empty() && group.empty()) return Nothing{};
  passwd* p = user.empty() ? nullptr : getpwnam(user.c_str());
  if (!user.empty() && !p) return Error{fmt::format("daemon.user: no such user: {}", user)};
  struct group* g = group.empty() ? nullptr : getgrnam(group.c_str());
  if (!group.empty() && !g) return Error{fmt::format("daemon.group: no such group: {}", group)};
  gid_t gid = g ? g->gr_gid : p->pw_gid;
  if (setgroups(0, nullptr) || setresgid(gid, gid, gid))
    return Error{fmt::format("cannot become group {}: {}", gid, strerror(errno))};
  if (!p) return Nothing{};
  prctl(PR_SET_KEEPCAPS, 1);
  if (setresuid(p->pw_uid, p->pw_uid, p->pw_uid))
    return Error{fmt::format("cannot become {}: {}", user, strerror(errno))};
  cap_t had = cap_get_proc(), keep = cap_from_text(fmt::format("{}=ep", kKept).c_str());
  // Only what we had: asking for more would fail as a whole.
  for (cap_value_t c = 0; c < cap_max_bits(); c++) {
    cap_flag_value_t value = CAP_CLEAR;
    cap_get_flag(had, c, CAP_PERMITTED, &value);
    if (value == CAP_CLEAR)
      for (cap_flag_t which : {CAP_PERMITTED, CAP_EFFECTIVE}) cap_set_flag(keep, which, 1, &c, CAP_CLEAR);
  }
  int failed = cap_set_proc(keep);
  cap_free(had);
  cap_free(keep);
  if (failed) return Error{fmt::format("cannot keep capabilities: {}", strerror(errno))};
  return Nothing{};
}

}  // namespace penstock::daemon
