// SPDX-License-Identifier: Apache-2.0
// What DNS says of a service, and the servers it makes.
#include "flow/upstream.h"

#include <gtest/gtest.h>

namespace penstock::flow {
namespace {

using dns::SrvTarget;

// {priority, host, port, weight}
dns::Answer answer(const std::vector<SrvTarget>& targets, const std::string& error = "") {
  dns::Answer a;
  a.targets = targets;
  a.error = error;
  return a;
}

class BySrv : public testing::Test {
 protected:
  BySrv() {
    what_.name = "imap";
    what_.srv = "_imap._tcp.example.net";
    upstream_.emplace(what_, nullptr);
  }
  // "a.example.net:143 1", and "backup".
  std::vector<std::string> servers() const {
    std::vector<std::string> all;
    upstream_->for_each_server([&](const Server& s) {
      all.push_back(s.what().text + " " + std::to_string(s.what().weight) +
                    (s.what().backup ? " backup" : ""));
    });
    return all;
  }
  Server* choose() { return upstream_->choose(*IpAddress::parse("192.0.2.1"), {}, 0); }

  config::Upstream what_;
  std::optional<Upstream> upstream_;
};

using Texts = std::vector<std::string>;

TEST_F(BySrv, ThePriorityMakesBackups) {
  EXPECT_EQ(choose(), nullptr);
  EXPECT_TRUE(upstream_->set_answer(answer({{10, "a", 143, 0}, {10, "b", 143, 256}, {20, "c", 993, 7}})));
  EXPECT_EQ(servers(), (Texts{"a:143 1", "b:143 256", "c:993 7 backup"}));
}

TEST_F(BySrv, GreatWeightsAreScaledDownWithinTheirPriority) {
  upstream_->set_answer(
      answer({{10, "a", 143, 1}, {10, "b", 143, 65'535}, {20, "c", 993, 20'000}, {20, "d", 993, 60'000}}));
  EXPECT_EQ(servers(), (Texts{"a:143 1", "b:143 255", "c:993 85 backup", "d:993 256 backup"}));
}

TEST_F(BySrv, ATargetOfTwoPrioritiesIsOneServer) {
  upstream_->set_answer(answer({{0, "a", 143, 5}, {1, "a", 143, 7}}));
  EXPECT_EQ(servers(), (Texts{"a:143 5"}));
}

TEST_F(BySrv, WithoutTargetsTheFormerOnesStay) {
  const dns::Answer both = answer({{10, "a", 143, 1}, {10, "b", 143, 1}});
  EXPECT_FALSE(upstream_->set_answer(answer({}, "timeout")));
  EXPECT_EQ(upstream_->error(), "timeout");
  EXPECT_TRUE(upstream_->set_answer(both));
  EXPECT_EQ(upstream_->error(), "");
  EXPECT_FALSE(upstream_->set_answer(both));
  EXPECT_FALSE(upstream_->set_answer(answer({}, "no such name")));
  EXPECT_EQ(upstream_->size(), 2u);
  EXPECT_EQ(upstream_->error(), "no such name");
}

TEST_F(BySrv, NobodyChecksAServerThatIsGone) {
  upstream_->set_answer(answer({{10, "a", 143, 1}}));
  Server* const server = choose();
  server->health = Health::down;
  upstream_->set_answer(answer({{10, "b", 143, 1}}));
  EXPECT_EQ(servers(), (Texts{"b:143 1"}));
  EXPECT_EQ(server->health, Health::unknown);
}

}  // namespace
}  // namespace penstock::flow
