// SPDX-License-Identifier: Apache-2.0
#include "netns/edge.h"

#include <cerrno>

namespace penstock::test {
namespace {

// The first law: accepted = active + the sum of closed by reason.
void expect_accounts_add_up(const Json& counters, const std::string& of) {
  uint64_t closed = 0;
  const Json& by_reason = counters.at("closed");
  if (by_reason.is_number())
    closed = by_reason;
  else
    for (const auto& reason : by_reason) closed += reason.get<uint64_t>();
  EXPECT_EQ(counters.at("accepted").get<uint64_t>(), counters.at("active").get<uint64_t>() + closed)
      << of << ": " << counters;
}

}  // namespace

std::string Edge::mail_tables(const std::string& upstream_keys, const std::string& listener_keys) {
  return "[upstream.mailbox]\nservers = [\"127.0.0.1:" + std::to_string(kServerPort) + "\"]\n" +
         upstream_keys + "\n[[listener]]\nname = \"mail\"\nbind = [\"127.0.0.1:" + std::to_string(kMailPort) +
         "\"]\nupstream = \"mailbox\"\n" + listener_keys + "\n";
}

void Edge::start(const std::string& more) {
  DaemonOptions options;
  options.tables = more + "\n" + mail_tables();
  start_with(std::move(options));
}

void Edge::start_with(DaemonOptions options) {
  options.engine = GetParam().engine;
  if (GetParam().epoll) options.process.io_uring_refused = EPERM;
  daemon_.emplace(options);
  ASSERT_EQ(daemon_->status().at("io").get<std::string>().starts_with("epoll"), GetParam().epoll)
      << daemon_->log();
  at_start_ = daemon_->descriptors();
}

Pair Edge::open_flow(const TcpListener& server) const {
  TcpStream client = connect();
  TcpStream accepted = server.accept();
  daemon_->wait_flow("open");
  return {std::move(client), std::move(accepted)};
}

bool Edge::closed_for(const std::string& reason, uint64_t times) const {
  return wait_until([&] {
    const Json totals = daemon_->totals();
    return totals.at("active") == 0 && totals.at("closed").value(reason, uint64_t{0}) == times;
  });
}

void Edge::TearDown() {
  if (!daemon_) return;
  EXPECT_TRUE(daemon_->wait_active(0)) << daemon_->flows();
  const Json status = daemon_->status();
  expect_accounts_add_up(status.at("totals"), "totals");
  for (const auto& listener : status.at("listeners")) expect_accounts_add_up(listener, "listener");
  EXPECT_EQ(status.at("totals").at("closed").value("account_mismatch", 0), 0) << status;
  EXPECT_EQ(status.at("totals").at("closed").value("internal_error", 0), 0) << status;
  EXPECT_EQ(daemon_->pinned_flows().value_or(0), 0u);
  // Pipes are pooled, so they may be more than at the start; a socket that stays has leaked. (One more for
  // our question.)
  EXPECT_TRUE(wait_until([&] { return daemon_->descriptors().sockets <= at_start_.sockets; }))
      << daemon_->descriptors().sockets << " sockets, " << at_start_.sockets << " at the start";
  EXPECT_EQ(daemon_->stop(), 0);
  EXPECT_EQ(kernel_log_.complaints(), "");
  if (HasFailure()) std::fprintf(stderr, "---- the daemon said ----\n%s", daemon_->log().c_str());
}

}  // namespace penstock::test
