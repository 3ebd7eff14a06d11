// SPDX-License-Identifier: Apache-2.0
#include "daemon/services.h"

#include <sys/eventfd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <utility>

#include "base/assert.h"
#include "base/fd.h"
#include "base/log.h"
#include "daemon/checks.h"

namespace penstock::daemon {
namespace {

constexpr std::chrono::seconds kAskAgain{1};
constexpr size_t kNamedMax = 8;  // in one line of the log

}  // namespace

// What comes from other threads; from the resolver's also when the services are gone.
struct Services::Inbox {
  struct Said {
    uint64_t plan;  // by plans_
    size_t service;
    dns::Answer answer;
  };
  std::mutex mutex;
  std::vector<Said> said;        // guarded by mutex
  bool servers_changed = false;  // guarded by mutex
  Fd wake;

  void wake_up() const { PENSTOCK_ASSERT(::eventfd_write(wake.get(), 1) == 0 || errno == EAGAIN); }
};

Services::Services(flow::Shared& shared, check::Checker& checker, std::shared_ptr<Inbox> inbox)
    : shared_(shared), checker_(checker), inbox_(std::move(inbox)) {}

Result<std::unique_ptr<Services>> Services::make(flow::Shared& shared, check::Checker& checker) {
  auto inbox = std::make_shared<Inbox>();
  inbox->wake.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!inbox->wake.valid()) return Error{std::string("services: eventfd: ") + std::strerror(errno)};
  return std::unique_ptr<Services>(new Services(shared, checker, std::move(inbox)));
}

int Services::wake_fd() const {
  return inbox_->wake.get();
}

void Services::wake() {
  inbox_->wake_up();
}

void Services::servers_changed(const config::Upstream& what, const flow::Upstream& servers) {
  std::string names;
  size_t count = 0;
  servers.for_each_server([&](const flow::Server& s) {
    if (count++ < kNamedMax) names += " " + s.what().text;
  });
  if (count > kNamedMax) names += fmt::format(" and {} more", count - kNamedMax);
  log::info("upstream {}: {} names {} server{}:{}", what.name, what.srv, count, count == 1 ? "" : "s", names);
  {
    std::lock_guard lock(inbox_->mutex);
    inbox_->servers_changed = true;
  }
  wake();
}

int Services::turn() {
  eventfd_t count;
  ::eventfd_read(inbox_->wake.get(), &count);
  if (auto plan = shared_.plan(); plan != plan_) follow(std::move(plan));
  std::vector<Inbox::Said> said;
  {
    std::lock_guard lock(inbox_->mutex);
    said.swap(inbox_->said);
  }
  const auto now = Clock::now();
  for (const Inbox::Said& s : said)
    if (s.plan == plans_) on_answer(services_[s.service], s.answer, now);
  bool changed = false;
  {
    std::lock_guard lock(inbox_->mutex);
    std::swap(changed, inbox_->servers_changed);
  }
  if (changed) check_servers_of(*plan_, checker_);
  auto until = Clock::time_point::max();
  for (size_t i = 0; i < services_.size(); i++) {
    const Service& s = services_[i];
    if (s.asking) continue;
    const auto due = nobody_is_up(s) ? std::min(s.next, s.asked + kAskAgain) : s.next;
    if (due <= now)
      ask(i, now);
    else
      until = std::min(until, due);
  }
  if (until == Clock::time_point::max()) return -1;
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - now);
  return static_cast<int>(std::min<std::chrono::milliseconds>(left, std::chrono::hours(1)).count());
}

// What is known of the same names is in the resolver's cache.
void Services::follow(std::shared_ptr<const flow::Plan> plan) {
  plan_ = std::move(plan);
  plans_++;
  services_.clear();
  const auto& upstreams = plan_->config().upstreams;
  for (size_t i = 0; i < upstreams.size(); i++)
    if (!upstreams[i].srv.empty()) services_.push_back({.upstream = i});
  std::lock_guard lock(inbox_->mutex);
  inbox_->servers_changed = true;  // by a flow of this plan, and what a reload has told the checker was older
}

void Services::ask(size_t index, Clock::time_point now) {
  Service& s = services_[index];
  s.asking = true;
  s.asked = now;
  const std::string& name = plan_->config().upstreams[s.upstream].srv;
  auto done = [inbox = inbox_, plan = plans_, index](const dns::Answer& answer) {
    {
      std::lock_guard lock(inbox->mutex);
      inbox->said.push_back({plan, index, answer});
    }
    inbox->wake_up();
  };
  if (nobody_is_up(s))
    shared_.resolver->renew_srv(name, std::move(done));
  else
    shared_.resolver->resolve_srv(name, std::move(done));
}

void Services::on_answer(Service& s, const dns::Answer& answer, Clock::time_point now) {
  const config::Upstream& what = plan_->config().upstreams[s.upstream];
  flow::Upstream& servers = plan_->servers_at(s.upstream);
  s.asking = false;
  s.next = now + kAskAgain;
  if (answer.found() && !answer.stale) s.next = std::max(s.next, answer.expires);
  if (const bool failed = !answer.error.empty(); failed != std::exchange(s.failing, failed) && failed)
    log::warn("upstream {}: {}: {}", what.name, what.srv, answer.error);
  if (servers.set_answer(answer)) servers_changed(what, servers);
}

bool Services::nobody_is_up(const Service& s) const {
  bool any = false, all_down = true;
  plan_->servers_at(s.upstream).for_each_server([&](const flow::Server& server) {
    any = true;
    all_down &= server.health == flow::Health::down;
  });
  return any && all_down;
}

}  // namespace penstock::daemon
