// SPDX-License-Identifier: Apache-2.0
#include "daemon/admin.h"

#include <grp.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <future>
#include <optional>
#include <vector>

#include "base/fd.h"
#include "client.h"

namespace penstock::daemon {
namespace {

using penstock::testing::Client;
using penstock::testing::TemporaryDirectory;
using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

constexpr const char* kNotAnObject =
    R"({"error":"a request is one JSON object on one line, at most 16 levels deep"})";

// Answers {"n":N} with {"twice":2N}; {"bytes":N} with that much; {"text":T} with T.
Json answer(const Json& request) {
  if (request.contains("bytes")) return {{"big", std::string(request.at("bytes").get<size_t>(), 'x')}};
  if (request.contains("text")) return {{"text", request.at("text")}};
  if (request.contains("bad")) return {{"text", "not \xff utf-8, \x1b[2J \n"}};
  return {{"twice", 2 * request.at("n").get<int>()}};
}

void reply_at_once(const Json& request, uid_t, const Admin::Reply& reply) {
  reply(answer(request));
}

class AdminTest : public ::testing::Test {
 protected:
  void SetUp() override { start(); }
  void start() {
    auto started = Admin::start(path_, reply_at_once);
    ASSERT_TRUE(started.ok()) << started.error().message;
    admin_ = std::move(started).value();
  }

  TemporaryDirectory directory_;
  std::string path_ = directory_ / "run/penstock/admin.sock";
  std::unique_ptr<Admin> admin_;
};

TEST_F(AdminTest, answers_each_line_in_order) {
  Client client(path_);
  client.send("{\"n\":1}\n{\"n\":2}\n{\"n\":3}\n");
  EXPECT_EQ(client.line(), R"({"twice":2})");
  EXPECT_EQ(client.line(), R"({"twice":4})");
  EXPECT_EQ(client.line(), R"({"twice":6})");
  client.send("{\"n\":4}\n");
  EXPECT_EQ(client.line(), R"({"twice":8})");
}

TEST_F(AdminTest, answers_a_client_that_has_ended_its_side) {
  Client client(path_);
  client.send("{\"bytes\":1000000}\n{\"n\":2}\n");
  client.shut_down();
  EXPECT_EQ(client.line().size(), 1'000'000u + std::string_view(R"({"big":""})").size());
  EXPECT_EQ(client.line(), R"({"twice":4})");
  EXPECT_EQ(client.line(), "(closed)");
}

TEST_F(AdminTest, puts_fragments_together) {
  Client client(path_);
  for (char c : std::string_view("{\"n\" : 21}\n")) client.send({&c, 1});
  EXPECT_EQ(client.line(), R"({"twice":42})");
}

TEST_F(AdminTest, says_what_a_request_is) {
  Client client(path_);
  for (const char* bad :
       {"", "status", "[1]", "17", "\"n\"", "{\"n\":1", "{\"n\":1}}", "\xff\xfe", "{\"n\":1e999}"}) {
    client.send(std::string(bad) + "\n");
    EXPECT_EQ(client.line(), kNotAnObject) << bad;
  }
  client.send(std::string("{\"\0\":1}\n", 8));
  EXPECT_EQ(client.line(), kNotAnObject);
  client.send("{\"n\":1}\n");
  EXPECT_EQ(client.line(), R"({"twice":2})");
}

TEST_F(AdminTest, says_that_a_member_is_wrong) {
  Client client(path_);
  client.send("{\"n\":\"one\"}\n{}\n");
  EXPECT_NE(client.line().find("malformed request: "), std::string::npos);
  EXPECT_NE(client.line().find("malformed request: "), std::string::npos);
}

TEST_F(AdminTest, survives_depth) {
  Client client(path_);
  client.send(std::string(10'000, '[') + "\n");
  EXPECT_EQ(client.line(), kNotAnObject);
  client.send("{\"text\":" + std::string(10'000, '[') + std::string(10'000, ']') + "}\n");
  EXPECT_EQ(client.line(), kNotAnObject);
  std::string deepest = std::string(15, '[') + std::string(15, ']');
  client.send("{\"text\":" + deepest + "}\n{\"text\":[" + deepest + "]}\n");
  EXPECT_EQ(client.line(), "{\"text\":" + deepest + "}");
  EXPECT_EQ(client.line(), kNotAnObject);
  std::string brackets =
      "\"\\\"" + std::string(100, '[') + "\"";  // within a string, after a quote that does not end it
  client.send("{\"text\":" + brackets + "}\n");
  EXPECT_EQ(client.line(), "{\"text\":" + brackets + "}");
}

TEST_F(AdminTest, ends_a_client_whose_request_is_too_long) {
  Client longest(path_), longer(path_);
  std::string frame = "{\"text\":\"\"}", text(kAdminRequestBytesMax - frame.size(), 'x');
  longest.send("{\"text\":\"" + text + "\"}\n");
  EXPECT_EQ(longest.line(), "{\"text\":\"" + text + "\"}");
  longer.send("{\"text\":\"" + text + "y\"}");
  EXPECT_EQ(longer.line(), R"({"error":"a request is at most 65536 bytes"})");
  EXPECT_EQ(longer.line(), "(closed)");
}

TEST_F(AdminTest, answers_are_one_printable_line) {
  Client client(path_);
  client.send("{\"bad\":1}\n");
  EXPECT_EQ(client.line(), R"({"text":"not \ufffd utf-8, \u001b[2J \n"})");
}

TEST_F(AdminTest, a_slow_reader_delays_nobody_and_gets_everything) {
  Client slow(path_), other(path_);
  slow.send("{\"bytes\":20000000}\n{\"n\":7}\n");
  for (int i = 0; i < 100; ++i) {
    other.send("{\"n\":1}\n");
    ASSERT_EQ(other.line(), R"({"twice":2})");
  }
  EXPECT_EQ(slow.line().size(), 20'000'000u + std::string_view(R"({"big":""})").size());
  EXPECT_EQ(slow.line(), R"({"twice":14})");
}

TEST_F(AdminTest, a_silent_client_and_one_that_never_ends_its_line_are_closed) {
  Client silent(path_), endless(path_);
  auto before = Clock::now();
  endless.send("{");
  EXPECT_EQ(silent.line(), "(closed)");
  EXPECT_EQ(endless.line(), "(closed)");
  EXPECT_GE(Clock::now() - before, kAdminIdleMax - 100ms);
  EXPECT_LE(Clock::now() - before, kAdminIdleMax + 2s);
}

TEST_F(AdminTest, unread_answers_are_bounded) {
  Client greedy(path_), other(path_);
  greedy.send("{\"bytes\":" + std::to_string(kAdminUnreadBytesMax) + "}\n");
  // The daemon answers clients in the order they came: with the next answer, the first one is waiting.
  other.send("{\"n\":1}\n");
  std::string line = other.line();
  while (line == R"({"twice":2})") {
    other.send("{\"n\":1}\n");
    line = other.line();
  }
  EXPECT_NE(line.find("other clients have yet to read"), std::string::npos) << line;
  EXPECT_GT(greedy.line().size(), kAdminUnreadBytesMax);
  other.send("{\"n\":1}\n");
  EXPECT_EQ(other.line(), R"({"twice":2})");
}

TEST_F(AdminTest, one_client_too_many_is_told) {
  std::vector<std::unique_ptr<Client>> clients;
  for (size_t i = 0; i < kAdminConnectionsMax; ++i) {
    clients.push_back(std::make_unique<Client>(path_));
    clients.back()->send("{\"n\":1}\n");
    ASSERT_EQ(clients.back()->line(), R"({"twice":2})");
  }
  Client late(path_);
  EXPECT_EQ(late.line(), R"({"error":"too many connections to the admin socket: at most 64"})");
  EXPECT_EQ(late.line(), "(closed)");
}

// Every descriptor is taken, and whoever else runs out of them takes three of those we give back for a
// client.
TEST_F(AdminTest, answers_where_there_is_no_descriptor) {
  constexpr size_t kTaken = 3;
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit few{64, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &few), 0);
  const Fd client(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  std::vector<Fd> taken;
  for (int fd; (fd = ::dup(client.get())) >= 0;) taken.emplace_back(fd);
  std::atomic<bool> over = false;
  auto thief = std::async(std::launch::async, [&] {
    std::vector<Fd> stolen;
    while (!over && stolen.size() < kTaken)
      if (Fd fd(::dup(client.get())); fd.valid()) stolen.push_back(std::move(fd));
    over.wait(false);
  });
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path_.copy(address.sun_path, sizeof address.sun_path - 1);
  const timeval patience{5, 0};
  ::setsockopt(client.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  EXPECT_EQ(::connect(client.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  EXPECT_EQ(::send(client.get(), "{\"n\":1}\n", 8, MSG_NOSIGNAL), 8);
  char answer[64] = {};
  EXPECT_GT(::recv(client.get(), answer, sizeof answer - 1, 0), 0) << strerror(errno);
  EXPECT_STREQ(answer, "{\"twice\":2}\n");
  over = true;
  over.notify_all();
  thief.get();
  ::setrlimit(RLIMIT_NOFILE, &before);
}

TEST_F(AdminTest, has_the_rights_it_should) {
  struct stat s;
  ASSERT_EQ(::lstat(path_.c_str(), &s), 0);
  EXPECT_EQ(s.st_mode, static_cast<mode_t>(S_IFSOCK | 0660));
  const group* penstock = ::getgrnam("penstock");
  EXPECT_EQ(s.st_gid, penstock != nullptr && ::geteuid() == 0 ? penstock->gr_gid : ::getegid());
  ASSERT_EQ(::lstat((directory_ / "run/penstock").c_str(), &s), 0);
  EXPECT_EQ(s.st_mode, static_cast<mode_t>(S_IFDIR | 0755));
}

TEST_F(AdminTest, refuses_to_start_beside_a_live_one) {
  auto second = Admin::start(path_, reply_at_once);
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().message, "another penstockd is running (socket " + path_ + ")");
  Client client(path_);
  client.send("{\"n\":1}\n");
  EXPECT_EQ(client.line(), R"({"twice":2})");
}

TEST_F(AdminTest, replaces_the_socket_of_a_dead_one) {
  admin_.reset();
  {
    Fd dead(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path_.copy(address.sun_path, sizeof address.sun_path - 1);
    ASSERT_EQ(::bind(dead.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    ASSERT_EQ(::listen(dead.get(), 1), 0);
  }
  ASSERT_TRUE(std::filesystem::exists(path_));
  start();
  Client client(path_);
  client.send("{\"n\":1}\n");
  EXPECT_EQ(client.line(), R"({"twice":2})");
}

TEST_F(AdminTest, touches_no_file_that_is_not_a_socket) {
  admin_.reset();
  std::ofstream(path_) << "precious";
  auto started = Admin::start(path_, reply_at_once);
  ASSERT_FALSE(started.ok());
  EXPECT_EQ(started.error().message, "admin socket " + path_ + ": exists and is not a socket");
  EXPECT_EQ(std::filesystem::file_size(path_), 8u);
}

TEST_F(AdminTest, says_who_asks) {
  admin_.reset();
  auto started = Admin::start(path_, [](const Json&, uid_t asker, const Admin::Reply& reply) {
    reply({{"asker", asker}});
  });
  ASSERT_TRUE(started.ok());
  Client client(path_);
  client.send("{}\n");
  EXPECT_EQ(client.line(), "{\"asker\":" + std::to_string(geteuid()) + "}");
}

TEST_F(AdminTest, removes_its_own_socket_only) {
  std::filesystem::rename(path_, path_ + ".old");
  auto successor = Admin::start(path_, reply_at_once);
  ASSERT_TRUE(successor.ok());
  admin_.reset();
  EXPECT_TRUE(std::filesystem::exists(path_));
  successor.value().reset();
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(AdminTest, says_which_path_is_impossible) {
  for (const std::string& path :
       {std::string(), std::string(200, 'a'), std::string("/dev/null/admin.sock")}) {
    auto started = Admin::start(path, reply_at_once);
    ASSERT_FALSE(started.ok()) << path;
    EXPECT_NE(started.error().message.find("admin socket "), std::string::npos);
  }
}

// {"later":N} is answered when the test says so, from its thread.
class LateAdminTest : public AdminTest {
 protected:
  void SetUp() override {
    auto started = Admin::start(path_, [this](const Json& request, uid_t, const Admin::Reply& reply) {
      if (!request.contains("later")) return reply(answer(request));
      owed_.set_value(reply);
    });
    ASSERT_TRUE(started.ok()) << started.error().message;
    admin_ = std::move(started).value();
  }
  std::promise<Admin::Reply> owed_;
};

TEST_F(LateAdminTest, an_answer_may_come_later_and_delays_nobody_else) {
  Client waiting(path_), other(path_);
  waiting.send("{\"later\":1}\n{\"n\":2}\n");
  waiting.shut_down();
  auto reply = owed_.get_future().get();
  other.send("{\"n\":1}\n");
  EXPECT_EQ(other.line(), R"({"twice":2})");
  reply({{"at", "last"}});
  EXPECT_EQ(waiting.line(), R"({"at":"last"})");
  EXPECT_EQ(waiting.line(), R"({"twice":4})");  // in order
}

TEST_F(LateAdminTest, who_waits_for_an_answer_is_not_idle) {
  Client waiting(path_), silent(path_);
  waiting.send("{\"later\":1}\n");
  auto reply = owed_.get_future().get();
  EXPECT_EQ(silent.line(), "(closed)");  // kAdminIdleMax has passed
  reply({{"at", "last"}});
  EXPECT_EQ(waiting.line(), R"({"at":"last"})");
}

TEST_F(LateAdminTest, an_answer_may_come_when_client_or_admin_is_gone) {
  std::optional<Client> waiting(path_);
  waiting->send("{\"later\":1}\n");
  auto reply = owed_.get_future().get();
  waiting.reset();
  Client other(path_);
  other.send("{\"n\":1}\n");
  EXPECT_EQ(other.line(), R"({"twice":2})");
  reply({{"for", "nobody"}});
  other.send("{\"n\":2}\n");
  EXPECT_EQ(other.line(), R"({"twice":4})");
  admin_.reset();
  reply({{"for", "nobody"}});
}

TEST_F(AdminTest, closes_its_clients_when_it_ends) {
  Client client(path_), slow(path_);
  slow.send("{\"bytes\":20000000}\n");
  client.send("{\"n\":1}\n");
  EXPECT_EQ(client.line(), R"({"twice":2})");
  admin_.reset();
  EXPECT_EQ(client.line(), "(closed)");
}

}  // namespace
}  // namespace penstock::daemon
