// SPDX-License-Identifier: Apache-2.0
// The operator's command as it is installed: what it prints, what it says when something is wrong, its exit
// code.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "base/assert.h"
#include "client.h"
#include "daemon/admin.h"

namespace penstock {
namespace {

using testing::TemporaryDirectory;

struct Ran {
  int exit_code = -1;
  std::string out, err;
};

struct Pipe {
  Fd read, write;
  Pipe() {
    int fds[2];
    PENSTOCK_ASSERT(::pipe2(fds, O_CLOEXEC) == 0);
    read.reset(fds[0]);
    write.reset(fds[1]);
  }
};

Ran run(
    const std::string& program, std::vector<std::string> words,
    const std::function<void()>& in_child = [] {}) {
  words.insert(words.begin(), "penstock");
  std::vector<char*> argv;
  for (auto& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  Pipe out, err;
  // Opened here: `in_child` may become somebody who may not enter the directory it lies in.
  Fd opened(::open(program.c_str(), O_PATH | O_CLOEXEC));
  pid_t pid = ::fork();
  PENSTOCK_ASSERT(pid >= 0);
  if (pid == 0) {
    in_child();
    ::dup2(out.write.get(), STDOUT_FILENO);
    ::dup2(err.write.get(), STDERR_FILENO);
    ::execveat(opened.get(), "", argv.data(), environ, AT_EMPTY_PATH);
    ::_exit(127);
  }
  out.write.reset();
  err.write.reset();
  Ran ran;
  auto drain = [](pollfd* p, std::string* text) {
    if (p->revents == 0) return;
    char buffer[4096];
    ssize_t n = ::read(p->fd, buffer, sizeof buffer);
    if (n <= 0) p->fd = -1;
    if (n > 0) text->append(buffer, static_cast<size_t>(n));
  };
  pollfd polled[] = {{out.read.get(), POLLIN, 0}, {err.read.get(), POLLIN, 0}};
  while (polled[0].fd >= 0 || polled[1].fd >= 0) {
    ::poll(polled, 2, -1);
    drain(&polled[0], &ran.out);
    drain(&polled[1], &ran.err);
  }
  int wait_status = 0;
  ::waitpid(pid, &wait_status, 0);
  ran.exit_code = WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : 128 + WTERMSIG(wait_status);
  return ran;
}

Ran penstock(std::vector<std::string> words) {
  return run(PENSTOCK_COMMAND, std::move(words));
}

// A daemon that gives one answer to everything, or the one made up for a request, and remembers what it was
// asked.
class CommandTest : public ::testing::Test {
 protected:
  void daemon_answers(Json answer) {
    daemon_answers_by([answer = std::move(answer)](const Json&) { return answer; });
  }
  void daemon_answers_by(std::function<Json(const Json&)> answer) {
    auto started = daemon::Admin::start(
        socket_,
        [this, answer = std::move(answer)](const Json& request, uid_t, const daemon::Admin::Reply& reply) {
          std::lock_guard lock(mutex_);
          asked_ = request;
          reply(answer(request));
        });
    ASSERT_TRUE(started.ok()) << started.error().message;
    admin_ = std::move(started).value();
  }
  Ran ask(std::vector<std::string> words) {
    words.insert(words.end(), {"--socket", socket_});
    return penstock(std::move(words));
  }
  Json asked() {
    std::lock_guard lock(mutex_);
    return asked_;
  }
  std::string write(const std::string& name, const std::string& content) {
    std::ofstream(directory_ / name) << content;
    return directory_ / name;
  }

  TemporaryDirectory directory_;
  std::string socket_ = directory_ / "admin.sock";
  std::mutex mutex_;
  Json asked_;
  std::unique_ptr<daemon::Admin> admin_;
};

const Json kStatus = Json::parse(R"({
  "version": "0.1.0", "pid": 4711, "uptime_s": 7265, "engine": "sockmap", "engine_reason": "every capability is there",
  "io": "epoll, as the daemon says",
  "kernel": "6.1.0", "threads": 2, "http": {"address": "127.0.0.1:9464", "state": "waiting", "reason": "in use"}, "news": {"from": ["a", "later", "version"]},
  "configuration": {"file": "/etc/penstock/penstock.toml", "reloads": 3, "pending": ["daemon.threads", "admin.http"], "error": "a mistake in the configuration"},
  "listeners": [
    {"name": "web", "bind": ["[::]:443"], "state": "waiting", "reason": "address in use", "accepted": 0, "active": 0, "closed": 0},
    {"name": "mail", "bind": ["0.0.0.0:25", "[::]:25"], "state": "listening", "accepted": 1200, "active": 12, "closed": 1188}],
  "upstreams": [{"name": "mailbox", "servers": [
    {"server": "mailbox.example", "state": "unchecked", "addresses": ["2001:db8::1", "192.0.2.1"], "flows": 12},
    {"server": "gone.example", "addresses": [], "error": "no such name"}], "active": 12, "dialed": 1190, "dial_failed": 3}],
  "totals": {"accepted": 1200, "active": 12, "closed": {"client_reset": 8, "done": 1180, "idle": 0},
    "bytes": {"splice": 1610612736, "relay": 1023}, "lane_changes": {"backlog": 5}, "fallbacks": {"map_full": 0},
    "held_bytes": 0, "pipe_bytes": 65536, "memory_limit_bytes": 268435456}})");

TEST_F(CommandTest, status_shows_listeners_upstreams_and_totals) {
  daemon_answers(kStatus);
  auto ran = ask({"status"});
  EXPECT_EQ(ran.exit_code, 0);
  EXPECT_EQ(ran.err, "");
  EXPECT_EQ(ran.out, R"(penstockd 0.1.0  pid 4711  up 2h01m  threads 2  kernel 6.1.0
engine  sockmap (every capability is there)
io      epoll, as the daemon says
flows   1200 accepted = 12 active + 1188 closed
bytes   1.5 GiB in splice, 1023 B in relay
memory  0 B held, 64.0 KiB in pipes, limit 256.0 MiB
http    127.0.0.1:9464 waiting: in use
config  /etc/penstock/penstock.toml  read - ago  reloads 3
        the last reload, - ago, changed nothing: a mistake in the configuration
        pending until a restart: daemon.threads, admin.http

LISTENER  BIND                 STATE      ACCEPTED  ACTIVE  CLOSED  REASON
mail      0.0.0.0:25, [::]:25  listening      1200      12    1188
web       [::]:443             waiting           0       0       0  address in use

UPSTREAM, SERVERS  STATE      ACTIVE  DIALED  FAILED  ADDRESSES               CHECK
mailbox                           12    1190       3
  mailbox.example  unchecked      12                  2001:db8::1, 192.0.2.1
  gone.example     -               -                  no such name

CLOSED BY     COUNT
done           1180
client_reset      8

LANE CHANGED BY  COUNT
backlog              5
)");
  EXPECT_EQ(asked(), Json({{"command", "status"}}));
}

TEST_F(CommandTest, status_shows_what_there_is_of_an_answer) {
  daemon_answers(
      {{"version", 7}, {"listeners", "none"}, {"upstreams", {1, nullptr}}, {"totals", {{"closed", -1}}}});
  auto ran = ask({"status"});
  EXPECT_EQ(ran.exit_code, 0);
  EXPECT_NE(ran.out.find("penstockd 7  pid -  up -"), std::string::npos) << ran.out;
}

TEST_F(CommandTest, status_names_each_address_that_is_waited_for) {
  const auto socket = [](const char* address, const char* state, const char* reason) {
    return Json{{"address", address}, {"state", state}, {"reason", reason}};
  };
  Json on_device = socket("192.0.2.2:26", "waiting", "no device wg0");
  on_device["interface"] = "wg0";
  Json optional = socket("[::]:25", "waiting", "this host has no IPv6 address");
  optional["optional"] = true;
  const Json web = {{"name", "web"}, {"state", "listening"}, {"sockets", Json::array({optional})}};
  const Json mail = {
      {"name", "mail"},
      {"bind", {":25", "192.0.2.1:26", "192.0.2.2:26"}},
      {"state", "waiting"},
      {"reason", "all of them in one"},
      {"sockets", Json::array({socket("0.0.0.0:25", "listening", ""), optional, on_device,
                               socket("192.0.2.1:26", "waiting", "192.0.2.1 is no\x1b address")})}};
  daemon_answers({{"listeners", {web, mail}}});
  auto out = ask({"status"}).out;
  // clang-format off
  EXPECT_NE(out.find(R"(
LISTENER  BIND                             STATE               ACCEPTED  ACTIVE  CLOSED  REASON
mail      :25, 192.0.2.1:26, 192.0.2.2:26  waiting for 2 of 3         -       -       -  IPv4 only: this host has no IPv6 address
            192.0.2.2:26 on wg0              waiting                                     no device wg0
            192.0.2.1:26                     waiting                                     192.0.2.1 is no? address
web       -                                listening                  -       -       -  IPv4 only: this host has no IPv6 address
)"), std::string::npos) << out;
  // clang-format on
}

// Seconds since the epoch.
double ago(int seconds) {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count() -
         seconds - 0.3;
}

TEST_F(CommandTest, status_says_what_the_last_check_found) {
  const auto server = [](const char* name, const char* state, Json health) {
    return Json{{"server", name}, {"state", state}, {"flows", 1}, {"health", std::move(health)}};
  };
  const Json certificate = {{"issuer", "CN=R11,O=Let\"s Encrypt"}, {"days_left", 63}, {"self_signed", false}};
  const Json expired = {{"issuer", "CN=edge"}, {"days_left", -2}, {"self_signed", true}};
  Json stale = server("named", "failing", nullptr);
  stale.update({{"failed_dials", 4}, {"addresses", {"192.0.2.1"}}, {"error", "timeout"}});
  daemon_answers(
      {{"configuration",
        {{"file", "f"},
         {"reloads", 0},
         {"loaded_unix_s", ago(7200)},
         {"refused_unix_s", ago(60)},
         {"error", "e"}}},
       {"upstreams",
        {{{"name", "mailbox"},
          {"servers",
           {server("new", "unchecked", {{"type", "smtp"}, {"state", "unknown"}, {"address", "192.0.2.9:25"}}),
            server("well", "up",
                   {{"type", "tls"},
                    {"state", "up"},
                    {"since", 1000000000.7},
                    {"checked", ago(3)},
                    {"took_ms", 12},
                    {"failed_in_a_row", 0},
                    {"reason", "of long ago"},
                    {"certificate", certificate}}),
            server("gone", "down",
                   {{"type", "tls"},
                    {"state", "down"},
                    {"since", ago(312)},
                    {"checked", ago(4)},
                    {"failed_in_a_row", 9},
                    {"reason", "connection refused"},
                    {"certificate", expired}}),
            stale}}}}}});
  auto out = ask({"status"}).out;
  const auto says = [&](const std::string& what) {
    EXPECT_NE(out.find(what), std::string::npos) << what << "\n" << out;
  };
  says("config  f  read 2h00m ago  reloads 0\n        the last reload, 1m00s ago, changed nothing: e\n");
  says("  192.0.2.9:25  smtp check: none has ended yet\n");
  says("up since 2001-09-09T01:46:40Z (");
  says("): tls check 3s ago, passed in 12ms; certificate by CN=R11,O=Let\"s Encrypt, 63 days left\n");
  says("down since 2");
  says(
      " (5m12s): connection refused; tls check 4s ago, 9 failed in a row; certificate SELF-SIGNED by "
      "CN=edge, "
      "EXPIRED 2 days ago\n");
  says("192.0.2.1     failed dials in a row: 4; DNS: timeout, an old answer serves\n");
  EXPECT_EQ(out.find("of long ago"), std::string::npos) << out;
}

TEST_F(CommandTest, status_shows_which_srv_record_an_upstream_follows) {
  const Json server = {
      {"server", "a.example:25"}, {"state", "up"}, {"addresses", {"192.0.2.1"}}, {"flows", 0}};
  const auto upstream = [](const char* name, Json servers) {
    return Json{
        {"name", name}, {"srv", "_smtp._tcp.example"}, {"error", "timeout"}, {"servers", std::move(servers)}};
  };
  daemon_answers(
      {{"upstreams", {upstream("found", Json::array({server})), upstream("lost", Json::array())}}});
  auto out = ask({"status"}).out;
  // clang-format off
  EXPECT_NE(out.find(R"(
UPSTREAM, SERVERS  STATE    ACTIVE  DIALED  FAILED  ADDRESSES               CHECK
found                            -       -       -  SRV _smtp._tcp.example  DNS: timeout, an old answer serves
  a.example:25     up            0                  192.0.2.1
lost               waiting       -       -       -  SRV _smtp._tcp.example  DNS: timeout
)"), std::string::npos) << out;
  // clang-format on
}

const Json kFlows = Json::parse(R"({"flows": [
  {"cookie": "18446744073709551615", "listener": "web", "client": "[2001:db8::7]:40000", "sni": "mta-sts.example.net",
   "upstream": "mailbox-https", "server": "192.0.2.1:443", "phase": "open", "age_ms": 900, "idle_ms": 5,
   "directions": {"up": {"lane": "splice", "bytes": 517}, "down": {"lane": "relay", "bytes": 10485760}}},
  {"cookie": "9", "listener": "mail", "client": "198.51.100.4:5000", "sni": "", "upstream": "mailbox", "server": null,
   "phase": "dialing", "age_ms": 65000, "idle_ms": 65000, "directions": {"up": {"lane": "held"}}}]})");

TEST_F(CommandTest, flows_shows_the_oldest_first) {
  daemon_answers(kFlows);
  auto ran = ask({"flows"});
  EXPECT_EQ(ran.exit_code, 0);
  EXPECT_EQ(ran.err, "");
  // clang-format off
  EXPECT_EQ(ran.out,
            "              COOKIE  CLIENT               SNI                  UPSTREAM       SERVER         PHASE    UP      BYTES  DOWN      BYTES    AGE   IDLE\n"
            "                   9  198.51.100.4:5000    -                    mailbox        -              dialing  held        -  -             -  1m05s  1m05s\n"
            "18446744073709551615  [2001:db8::7]:40000  mta-sts.example.net  mailbox-https  192.0.2.1:443  open     splice  517 B  relay  10.0 MiB  900ms    5ms\n");
  // clang-format on
  EXPECT_EQ(asked(), Json({{"command", "flows"}}));
}

TEST_F(CommandTest, flows_has_a_column_for_proxies_where_there_are_any) {
  Json answer = kFlows;
  answer["flows"][0]["proxy"] = "192.0.2.8:4000";
  answer["flows"][1]["proxy"] = "";
  daemon_answers(answer);
  auto out = ask({"flows"}).out;
  // clang-format off
  EXPECT_EQ(out,
            "              COOKIE  CLIENT               BY PROXY        SNI                  UPSTREAM       SERVER         PHASE    UP      BYTES  DOWN      BYTES    AGE   IDLE\n"
            "                   9  198.51.100.4:5000    -               -                    mailbox        -              dialing  held        -  -             -  1m05s  1m05s\n"
            "18446744073709551615  [2001:db8::7]:40000  192.0.2.8:4000  mta-sts.example.net  mailbox-https  192.0.2.1:443  open     splice  517 B  relay  10.0 MiB  900ms    5ms\n");
  // clang-format on
}

TEST_F(CommandTest, flows_passes_its_filters_on) {
  daemon_answers({{"flows", Json::array()}});
  auto ran = ask({"flows", "--listener", "mail", "--client", "10.0.0.0/8"});
  EXPECT_EQ(ran.exit_code, 0);
  EXPECT_EQ(ran.out, "no live flows\n");
  EXPECT_EQ(asked(), Json({{"command", "flows"}, {"listener", "mail"}, {"client", "10.0.0.0/8"}}));
}

TEST_F(CommandTest, flows_refuses_what_is_no_network) {
  auto ran = ask({"flows", "--client", "10.0.0.0/40\x1b"});
  EXPECT_EQ(ran.exit_code, 2);
  EXPECT_EQ(ran.out, "");
  EXPECT_NE(ran.err.find(R"(10.0.0.0/40\x1b is no network (accepted: 192.0.2.0/24, 2001:db8::1))"),
            std::string::npos)
      << ran.err;
}

TEST_F(CommandTest, json_is_the_answer_on_one_line) {
  daemon_answers(kFlows);
  auto ran = ask({"flows", "--json"});
  EXPECT_EQ(ran.exit_code, 0);
  EXPECT_EQ(ran.out, kFlows.dump() + "\n");
}

TEST_F(CommandTest, a_great_many_flows_arrive) {
  Json flow = kFlows["flows"][0], all = {{"flows", Json::array()}};
  for (int i = 0; i < 20'000; ++i) all["flows"].push_back(flow);
  daemon_answers(all);
  auto ran = ask({"flows"});
  EXPECT_EQ(ran.exit_code, 0);
  EXPECT_EQ(std::count(ran.out.begin(), ran.out.end(), '\n'), 20'001);
}

TEST_F(CommandTest, bytes_from_outside_are_escaped) {
  Json answer = kFlows;
  answer["flows"][0]["sni"] = "evil\x1b[2J\n.example";
  daemon_answers(answer);
  auto ran = ask({"flows"});
  EXPECT_NE(ran.out.find(R"(evil\x1b[2J\x0a.example)"), std::string::npos) << ran.out;
  EXPECT_EQ(std::count(ran.out.begin(), ran.out.end(), '\n'), 3);
  EXPECT_EQ(ask({"flows", "--json"}).out.find('\x1b'), std::string::npos);
}

TEST_F(CommandTest, lane_asks_for_a_lane) {
  daemon_answers({{"ok", true}});
  auto ran = ask({"lane", "18446744073709551615", "up", "relay"});
  EXPECT_EQ(ran.exit_code, 0);
  EXPECT_EQ(ran.out, "ok\n");
  EXPECT_EQ(
      asked(),
      Json({{"command", "lane"}, {"cookie", "18446744073709551615"}, {"direction", "up"}, {"to", "relay"}}));
  for (const auto& words : {std::vector<std::string>{"lane"},
                            {"lane", "x", "up", "relay"},
                            {"lane", "-1", "up", "relay"},
                            {"lane", "1", "left", "relay"},
                            {"lane", "1", "up", "fast"}}) {
    EXPECT_EQ(ask(words).exit_code, 2) << ::testing::PrintToString(words);
  }
}

TEST_F(CommandTest, kill_says_what_it_killed) {
  daemon_answers({{"killed", {"31", "18446744073709551615"}}, {"not_found", Json::array()}});
  auto ran = ask({"kill", "sk:1f", "0xffffffffffffffff"});
  EXPECT_EQ(ran.exit_code, 0);
  EXPECT_EQ(ran.out, "killed 31\nkilled 18446744073709551615\n");
  EXPECT_EQ(ran.err, "");
  EXPECT_EQ(asked(), Json({{"command", "kill"}, {"cookies", {"31", "18446744073709551615"}}}));
}

TEST_F(CommandTest, kill_says_which_flows_are_not_there) {
  daemon_answers({{"killed", {"31"}}, {"not_found", {"7", "8"}}});
  auto ran = ask({"kill", "31", "7", "8"});
  EXPECT_EQ(ran.exit_code, 1);
  EXPECT_EQ(ran.out, "killed 31\n");
  EXPECT_EQ(ran.err, "penstock: no live flow has this cookie: 7, 8\n");
  ran = ask({"kill", "--json", "31", "7", "8"});
  EXPECT_EQ(ran.exit_code, 1);
  EXPECT_EQ(Json::parse(ran.out), Json({{"killed", {"31"}}, {"not_found", {"7", "8"}}}));
}

TEST_F(CommandTest, kill_asks_for_a_great_many_in_parts) {
  daemon_answers({{"killed", {"1"}}, {"not_found", Json::array()}});
  std::vector<std::string> words = {"kill"};
  for (int i = 1; i <= 2500; ++i) words.push_back(std::to_string(i));
  auto ran = ask(words);
  EXPECT_EQ(ran.exit_code, 0) << ran.err;
  EXPECT_EQ(ran.out, "killed 1\nkilled 1\nkilled 1\n");
  EXPECT_EQ(asked().at("cookies").size(), 500u);
}

TEST_F(CommandTest, kill_refuses_what_is_no_cookie) {
  for (const char* bad : {"0", "1f", "sk:", "sk:xyz", "0x", "1 2", "18446744073709551616", "0xsk:1"}) {
    auto ran = ask({"kill", bad});
    EXPECT_EQ(ran.exit_code, 2) << bad;
    EXPECT_EQ(ran.out, "");
  }
  EXPECT_EQ(ask({"kill"}).exit_code, 2);
}

TEST_F(CommandTest, an_error_of_the_daemon_is_ours) {
  daemon_answers({{"error", "no such listener: \x1b[1m"}});
  for (const auto& words :
       {std::vector<std::string>{"status"}, {"flows"}, {"lane", "1", "up", "held"}, {"status", "--json"}}) {
    auto ran = ask(words);
    EXPECT_EQ(ran.exit_code, 1);
    EXPECT_EQ(ran.out, "");
    EXPECT_EQ(ran.err, "penstock: penstockd: no such listener: \\x1b[1m\n");
  }
}

TEST_F(CommandTest, says_that_there_is_no_daemon) {
  auto ran = ask({"status"});
  EXPECT_EQ(ran.exit_code, 1);
  EXPECT_EQ(ran.err, "penstock: penstockd is not running: there is no socket " + socket_ +
                         " (if its [admin].socket is another path, give that with --socket)\n");
}

// A listening Unix socket of some other program.
Fd listening(const std::string& path) {
  Fd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  PENSTOCK_ASSERT(::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  PENSTOCK_ASSERT(::listen(socket.get(), 1) == 0);
  return socket;
}

TEST_F(CommandTest, says_that_nobody_listens) {
  listening(socket_).reset();
  auto ran = ask({"flows"});
  EXPECT_EQ(ran.exit_code, 1);
  EXPECT_EQ(ran.err, "penstock: penstockd is not running: nobody listens on " + socket_ +
                         " (if its [admin].socket is another path, give that with --socket)\n");
}

TEST_F(CommandTest, says_that_the_path_is_no_socket) {
  write("admin.sock", "");
  auto ran = ask({"status"});
  EXPECT_EQ(ran.exit_code, 1);
  EXPECT_EQ(ran.err, "penstock: " + socket_ + " is not a socket\n");
  EXPECT_EQ(penstock({"status", "--socket", std::string(200, 'x')}).exit_code, 1);
}

TEST_F(CommandTest, says_that_permission_is_missing) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root: runs the command as somebody else";
  daemon_answers(kStatus);
  std::filesystem::permissions(directory_ / "", std::filesystem::perms::all);
  auto ran = run(PENSTOCK_COMMAND, {"status", "--socket", socket_},
                 [] { PENSTOCK_ASSERT(::setgid(65534) == 0 && ::setuid(65534) == 0); });
  EXPECT_EQ(ran.exit_code, 1);
  EXPECT_EQ(ran.err,
            "penstock: no permission to use " + socket_ + ": run as root or as a member of group penstock\n");
}

TEST_F(CommandTest, says_that_another_program_answers) {
  for (const auto& [said, expected] :
       {std::pair<std::string, std::string>{
            "220 \x1b[1m ESMTP\r\n",
            "what answers on " + socket_ + " is not penstockd: \"220 \\x1b[1m ESMTP\\x0d\""},
        {"", "penstockd closed " + socket_ + " before its answer was complete"},
        {"{\"version\":", "penstockd closed " + socket_ + " before its answer was complete"},
        {std::string(100'000, '[') + "\n",
         "what answers on " + socket_ + " is not penstockd: \"" + std::string(80, '[')}}) {
    Fd server = listening(socket_);
    std::thread other([&, text = said] {
      Fd connection(::accept4(server.get(), nullptr, nullptr, SOCK_CLOEXEC));
      char request[4096];
      EXPECT_GT(::recv(connection.get(), request, sizeof request, 0), 0);
      ::send(connection.get(), text.data(), text.size(), MSG_NOSIGNAL);
    });
    auto ran = ask({"status"});
    other.join();
    EXPECT_EQ(ran.exit_code, 1);
    EXPECT_TRUE(ran.err.starts_with("penstock: " + expected)) << ran.err;
    std::filesystem::remove(socket_);
  }
}

TEST_F(CommandTest, check_says_that_a_file_is_good) {
  auto file = write("penstock.toml", R"([upstream.mailbox]
servers = ["${HOST}"]
[[listener]]
name = "mail"
bind = [":25"]
upstream = "mailbox"
)");
  auto env = write("other.env", "HOST=mailbox.example\n");
  auto ran = penstock({"check", "-c", file, "--env-file", env});
  EXPECT_EQ(ran.exit_code, 0) << ran.err;
  EXPECT_EQ(ran.out, file + ": ok (1 listener, 1 upstream)\n");
  ran = penstock({"check", "-c", file, "--env-file", env, "--json"});
  EXPECT_EQ(ran.exit_code, 0);
  EXPECT_EQ(Json::parse(ran.out), Json({{"file", file},
                                        {"ok", true},
                                        {"diagnostics", Json::array()},
                                        {"listeners", 1},
                                        {"upstreams", 1}}));
}

TEST_F(CommandTest, check_prints_every_error_and_ends_with_2) {
  auto file = write("bad.toml", "[upstream.mailbox]\nserver = [\"a\"]\n[[listener]]\nnam = \"mail\"\n");
  auto ran = penstock({"check", "-c", file});
  EXPECT_EQ(ran.exit_code, 2);
  EXPECT_EQ(ran.out, "");
  EXPECT_NE(ran.err.find(file + ":2:1: error: "), std::string::npos) << ran.err;
  EXPECT_NE(ran.err.find(file + ":4:1: error: "), std::string::npos) << ran.err;
  ran = penstock({"check", "-c", file, "--json"});
  EXPECT_EQ(ran.exit_code, 2);
  auto report = Json::parse(ran.out);
  EXPECT_EQ(report["ok"], false);
  EXPECT_GE(report["diagnostics"].size(), 2u);
  EXPECT_EQ(report["diagnostics"][0]["is_error"], true);
}

TEST_F(CommandTest, check_says_that_there_is_no_file) {
  auto ran = penstock({"check", "-c", directory_ / "none.toml"});
  EXPECT_EQ(ran.exit_code, 2);
  EXPECT_NE(ran.err.find(directory_ / "none.toml"), std::string::npos) << ran.err;
}

// A copy of the command beside a penstockd that says how it was called.
TEST_F(CommandTest, probe_is_the_daemon_beside_the_command) {
  auto command = directory_ / "penstock";
  std::filesystem::copy_file(PENSTOCK_COMMAND, command);
  auto daemon = write("penstockd", "#!/bin/sh\necho \"$0 $*\"\nexit 7\n");
  ASSERT_EQ(::chmod(daemon.c_str(), 0755), 0);
  auto ran = run(command, {"probe", "--json"});
  EXPECT_EQ(ran.exit_code, 7);
  EXPECT_EQ(ran.out, daemon + " --probe --json\n");
  EXPECT_EQ(run(command, {"probe"}).out, daemon + " --probe\n");
}

TEST_F(CommandTest, probe_looks_in_path_next) {
  auto command = directory_ / "penstock";
  std::filesystem::copy_file(PENSTOCK_COMMAND, command);
  std::filesystem::create_directory(directory_ / "sbin");
  auto daemon = write("sbin/penstockd", "#!/bin/sh\necho \"$0 $*\"\n");
  ASSERT_EQ(::chmod(daemon.c_str(), 0755), 0);
  auto ran = run(command, {"probe"}, [&] { ::setenv("PATH", (directory_ / "sbin").c_str(), 1); });
  EXPECT_EQ(ran.exit_code, 0);
  EXPECT_EQ(ran.out, daemon + " --probe\n");
  ran = run(command, {"probe"}, [&] { ::setenv("PATH", (directory_ / "none").c_str(), 1); });
  EXPECT_EQ(ran.exit_code, 1);
  EXPECT_NE(ran.err.find("there is no penstockd beside this command or in PATH"), std::string::npos)
      << ran.err;
}

constexpr const char* kExplained = R"([upstream.mailbox]
servers = ["192.0.2.10", { address = "192.0.2.11:2525", weight = 3 }, { address = "192.0.2.12", backup = true }]
proxy_protocol = "v2"
source = "192.0.2.9"
[upstream.v1]
servers = "[2001:db8::10]:443"
proxy_protocol = "v1"
[[listener]]
name = "mail"
bind = [":25", "192.0.2.1:25", "192.0.2.1:26", "192.0.2.2:26"]
upstream = "mailbox"
[[listener]]
name = "web"
bind = ":443"
upstream = "v1"
  [[listener.route]]
  sni = "mta-sts.*"
  upstream = "mailbox"
  [[listener.route]]
  source = "198.51.100.0/24"
  action = "reject"
)";

TEST_F(CommandTest, explain_shows_everything_a_client_meets) {
  auto file = write("penstock.toml", kExplained);
  auto ran = penstock({"explain", "-c", file, "--to", "203.0.113.1:443", "--from", "198.51.100.7:40000",
                       "--sni", "MTA-STS.example.net", "--alpn", "h2,http/1.1"});
  EXPECT_EQ(ran.err, "");
  EXPECT_EQ(ran.exit_code, 0);
  // clang-format off
  EXPECT_EQ(ran.out, R"(listener  web, line 12, bind :443
client    198.51.100.7:40000 to 203.0.113.1:443: allowed
route     1 of 2, line 16
upstream  mailbox, round_robin
servers   next in turn, first of
  SERVER           ADDRESSES NOW    WEIGHT
  192.0.2.11:2525  192.0.2.11:2525       3
  192.0.2.10       192.0.2.10:443        1
  192.0.2.12       192.0.2.12:443        1  backup
source    192.0.2.9
header    v2, 55 bytes
  0000  0d 0a 0d 0a 00 0d 0a 51 55 49 54 0a              signature
  000c  21                                               version 2, command PROXY
  000d  11                                               TCP over IPv4
  000e  00 27                                            39 bytes follow
  0010  c6 33 64 07                                      source address 198.51.100.7
  0014  cb 00 71 01                                      destination address 203.0.113.1
  0018  9c 40                                            source port 40000
  001a  01 bb                                            destination port 443
  001c  01                                               TLV 0x01, ALPN
  001d  00 02                                            2 bytes
  001f  68 32                                            "h2"
  0021  02                                               TLV 0x02, AUTHORITY
  0022  00 13                                            19 bytes
  0024  6d 74 61 2d 73 74 73 2e 65 78 61 6d 70 6c 65 2e  "mta-sts.example.net"
  0034  6e 65 74
note      servers that the daemon knows to be down or drained are passed over: penstock status
)");
  // clang-format on
}

TEST_F(CommandTest, explain_shows_version_1_as_text) {
  auto file = write("penstock.toml", kExplained);
  auto ran = penstock({"explain", "-c", file, "--to", "[2001:db8::1]:443", "--from", "[2001:db8::7]:40000"});
  EXPECT_EQ(ran.exit_code, 0) << ran.err;
  EXPECT_EQ(ran.out, R"(listener  web, line 12, bind :443
client    [2001:db8::7]:40000 to [2001:db8::1]:443: allowed
route     none matches: the listener's own upstream
upstream  v1, round_robin
servers   the only one
  SERVER              ADDRESSES NOW       WEIGHT
  [2001:db8::10]:443  [2001:db8::10]:443       1
source    as the kernel chooses
header    v1, 46 bytes
  PROXY TCP6 2001:db8::7 2001:db8::1 40000 443\r\n
)");
}

TEST_F(CommandTest, explain_says_what_it_was_not_told) {
  auto file = write("penstock.toml", kExplained);
  auto ran = penstock({"explain", "-c", file, "--to", ":25", "--from", "198.51.100.7", "--sni", "a.example"});
  EXPECT_EQ(ran.exit_code, 0) << ran.err;
  EXPECT_NE(ran.out.find("bind :25\nclient    198.51.100.7 to :25: allowed\n"), std::string::npos) << ran.out;
  for (const char* note :
       {"note      no route of this listener asks for SNI or ALPN: the daemon does not look at them\n",
        "note      the destination is not known; with it: --to ADDRESS:25\n",
        "note      the client's port is not known; with it: --from ADDRESS:PORT\n"}) {
    EXPECT_NE(ran.out.find(note), std::string::npos) << ran.out;
  }
}

TEST_F(CommandTest, explain_finds_the_nearer_bind) {
  auto file = write("penstock.toml", kExplained);
  const auto bind = [&](const char* to) {
    auto ran = penstock({"explain", "-c", file, "--to", to, "--from", "198.51.100.7"});
    return ran.out.substr(0, ran.out.find('\n')) + ran.err;
  };
  EXPECT_EQ(bind("192.0.2.1:25"), "listener  mail, line 8, bind 192.0.2.1:25");
  EXPECT_EQ(bind("192.0.2.2:25"), "listener  mail, line 8, bind :25");
  EXPECT_EQ(bind("192.0.2.2:26"), "listener  mail, line 8, bind 192.0.2.2:26");
  EXPECT_EQ(bind("192.0.2.3:26"), "penstock: nothing listens on 192.0.2.3:26 for clients of IPv4\n");
  EXPECT_EQ(
      bind(":26"),
      "penstock: --to :26: more than one address listens there, 192.0.2.1:26 and 192.0.2.2:26: say which\n");
}

TEST_F(CommandTest, explain_ends_with_1_for_who_is_turned_away) {
  auto file = write("penstock.toml", kExplained);
  auto ran =
      penstock({"explain", "-c", file, "--to", ":443", "--from", "198.51.100.7", "--sni", "www.example.net"});
  EXPECT_EQ(ran.exit_code, 1);
  EXPECT_NE(ran.out.find("route     2 of 2, line 19\n          closed, route_rejected: the route says action "
                         "= \"reject\"\n"),
            std::string::npos)
      << ran.out;
  ran = penstock({"explain", "-c", file, "--to", ":443", "--from", "192.0.2.7", "--via", "192.0.2.8"});
  EXPECT_EQ(ran.exit_code, 1);
  EXPECT_NE(ran.out.find("client    192.0.2.7 by proxy 192.0.2.8 to :443: closed, proxy_not_trusted: "
                         "192.0.2.8 is not in accept_proxy.from: a "
                         "PROXY header of its is not believed, the connection is closed\n"),
            std::string::npos)
      << ran.out;
}

TEST_F(CommandTest, explain_says_in_a_sentence_why_somebody_is_turned_away) {
  auto file = write("penstock.toml", R"([upstream.u]
servers = "192.0.2.10:25"
[[listener]]
bind = ":25"
upstream = "u"
allow = "10.0.0.0/8"
deny = "10.1.0.0/16"
[[listener]]
bind = ":26"
upstream = "u"
accept_proxy = { from = "192.0.2.8" }
)");
  const auto closed = [&](const char* to, const char* from) {
    auto ran = penstock({"explain", "--json", "-c", file, "--to", to, "--from", from});
    EXPECT_EQ(ran.exit_code, 1) << ran.err;
    const Json says = Json::parse(ran.out);
    return says.at("closed").get<std::string>() + ": " + says.at("reason").get<std::string>();
  };
  EXPECT_EQ(closed(":25", "10.1.2.3"), "denied: 10.1.2.3 is in deny of this listener");
  EXPECT_EQ(closed(":25", "192.0.2.7"), "denied: 192.0.2.7 is not in allow of this listener");
  EXPECT_EQ(closed(":26", "192.0.2.7"),
            "proxy_not_trusted: 192.0.2.7 is not in accept_proxy.from, and others are rejected");
}

TEST_F(CommandTest, explain_shows_a_unique_id_as_a_placeholder) {
  auto file = write("penstock.toml", R"([upstream.u]
servers = "192.0.2.10:25"
proxy_protocol = "v2"
tlvs = ["unique_id", "crc32c"]
[[listener]]
bind = ":25"
upstream = "u"
accept_proxy = { from = "192.0.2.8" }
)");
  std::vector<std::string> words = {
      "explain", "-c", file, "--to", "203.0.113.1:25", "--from", "198.51.100.7:40000", "--via", "192.0.2.8"};
  auto ran = penstock(words);
  EXPECT_EQ(ran.exit_code, 0) << ran.err;
  // clang-format off
  EXPECT_NE(ran.out.find(R"(header    v2, 70 bytes
  0000  0d 0a 0d 0a 00 0d 0a 51 55 49 54 0a              signature
  000c  21                                               version 2, command PROXY
  000d  11                                               TCP over IPv4
  000e  00 36                                            54 bytes follow
  0010  c6 33 64 07                                      source address 198.51.100.7
  0014  cb 00 71 01                                      destination address 203.0.113.1
  0018  9c 40                                            source port 40000
  001a  00 19                                            destination port 25
  001c  03                                               TLV 0x03, CRC32C
  001d  00 04                                            4 bytes
  001f  ?? ?? ?? ??                                      of the whole header with these four bytes zero: not known, as UNIQUE_ID is not
  0023  05                                               TLV 0x05, UNIQUE_ID
  0024  00 20                                            32 bytes
  0026  ?? ?? ?? ?? ?? ?? ?? ?? ?? ?? ?? ?? ?? ?? ?? ??  placeholder: each flow has its own
  0036  ?? ?? ?? ?? ?? ?? ?? ?? ?? ?? ?? ?? ?? ?? ?? ??
note      the header's destination is the one that 192.0.2.8 tells: here that of --to
note      UNIQUE_ID differs for each flow: "??" stands for its 32 bytes, and for CRC32C, which cannot be computed without it
note      TLVs that 192.0.2.8 sends are passed on, its UNIQUE_ID in the place of ours: they are not in this header
)"), std::string::npos) << ran.out;
  // clang-format on
  words.push_back("--json");
  const Json fields = Json::parse(penstock(words).out).at("header").at("fields");
  EXPECT_EQ(fields.at(10).at("known"), false);
  EXPECT_EQ(fields.at(12).at("known"), true);
  EXPECT_EQ(fields.at(13).at("bytes"), std::string(64, '?'));
}

TEST_F(CommandTest, explain_by_the_device_a_client_comes_in_by) {
  auto file = write("penstock.toml", R"(upstream.u.servers = "192.0.2.10:25"
[[listener]]
name = "any"
bind = ":25"
upstream = "u"
accept_proxy = { from = "192.0.2.8" }
[[listener]]
name = "overlay"
bind = [":25", ":26"]
interface = "wg0"
upstream = "u"
)");
  const auto listener = [&](std::vector<std::string> more) {
    std::vector<std::string> words = {"explain", "-c", file, "--json"};
    words.insert(words.end(), more.begin(), more.end());
    const auto ran = penstock(words);
    return ran.exit_code == 2 ? ran.err : Json::parse(ran.out).at("listener").at("name").get<std::string>();
  };
  EXPECT_EQ(listener({"--to", ":25", "--from", "192.0.2.7"}), "any");
  EXPECT_EQ(listener({"--to", ":25", "--from", "192.0.2.7", "--interface", "wg0"}), "overlay");
  EXPECT_EQ(listener({"--to", ":25", "--from", "192.0.2.7", "--interface", "eth0"}), "any");
  EXPECT_EQ(listener({"--to", ":26", "--from", "192.0.2.7"}), "overlay");  // there is no other
  // The families of a client and of the proxy that tells of it are each their own.
  EXPECT_EQ(listener({"--to", "203.0.113.1:25", "--from", "2001:db8::7", "--via", "192.0.2.8"}), "any");
  EXPECT_NE(listener({"--to", "203.0.113.1:25", "--from", "192.0.2.7", "--via", "2001:db8::8"})
                .find("--to and --via are of two families"),
            std::string::npos);
}

TEST_F(CommandTest, explain_refuses_what_no_client_is) {
  auto file = write("penstock.toml", kExplained);
  for (const auto& words : {std::vector<std::string>{"--to", ":443"},
                            {"--from", "192.0.2.7"},
                            {"--to", "443", "--from", "192.0.2.7"},
                            {"--to", ":443", "--from", "a.example"},
                            {"--to", "[2001:db8::1]:443", "--from", "192.0.2.7"},
                            {"--to", ":443", "--from", "192.0.2.7", "--sni", "a b"},
                            {"--to", ":443", "--from", "192.0.2.7", "--alpn", std::string(256, 'h')},
                            {"--to", ":443", "--from", "192.0.2.7", "--via", "proxy"}}) {
    std::vector<std::string> all = {"explain", "-c", file};
    all.insert(all.end(), words.begin(), words.end());
    auto ran = penstock(all);
    EXPECT_EQ(ran.exit_code, 2) << ::testing::PrintToString(words);
    EXPECT_EQ(ran.out, "");
  }
  auto ran = penstock({"explain", "-c", write("bad.toml", "x = 1\n"), "--to", ":443", "--from", "192.0.2.7"});
  EXPECT_EQ(ran.exit_code, 2);
  EXPECT_NE(ran.err.find("bad.toml:1:1: error: unknown key"), std::string::npos) << ran.err;
}

TEST_F(CommandTest, what_is_not_there_yet_says_so) {
  for (const auto& words : {std::vector<std::string>{"top"}, {"ban", "add", "192.0.2.0/24", "--for", "1h"}}) {
    auto ran = ask(words);
    EXPECT_EQ(ran.exit_code, 2);
    EXPECT_EQ(ran.err, "penstock: " + words[0] + " is not available in this version\n");
  }
}

TEST_F(CommandTest, reload_shows_mistakes_as_the_daemon_words_them) {
  daemon_answers({{"reloaded", false},
                  {"reason", "a mistake in the configuration"},
                  {"diagnostics",
                   {"penstock.toml:1:1: error: unknown key \"x\" at the \x1b"
                    "top level"}}});
  auto ran = ask({"reload"});
  EXPECT_EQ(ran.exit_code, 2);
  EXPECT_EQ(ran.out, "penstock.toml:1:1: error: unknown key \"x\" at the ?top level\n");
  EXPECT_EQ(ran.err, "penstock: nothing has changed: a mistake in the configuration\n");
}

// A daemon that is asked for an upgrade, and the next worker, which says what came of it. Its first answers
// are those of one that begins.
class UpgradeCommandTest : public CommandTest {
 protected:
  void daemon_upgrades(Json upgrade, int silent = 2) {
    upgrade["answered"] = 4;
    daemon_answers_by(
        [=, this, wanted = false, status = kStatus, left = silent](const Json& request) mutable {
          if (request.at("command") == "upgrade") {
            wanted = true;
            upgrade_asked_ = request;
            return Json{{"asked", true}};
          }
          if (wanted && left-- > 0) return left % 2 ? Json{{"error", "penstockd is still starting"}} : status;
          status["worker"]["upgrade"] = wanted ? upgrade : Json{{"answered", 3}, {"result", "none"}};
          return status;
        });
  }
  Json upgrade_asked() {
    std::lock_guard lock(mutex_);
    return upgrade_asked_;
  }
  Json upgrade_asked_;
};

TEST_F(UpgradeCommandTest, waits_for_the_next_worker_and_says_who_serves) {
  daemon_upgrades({{"result", "done"}}, 5);
  auto ran = ask({"upgrade", write("penstockd", "")});
  EXPECT_EQ(ran.out, "upgraded: penstockd 0.1.0, 12 flows went on\n");
  EXPECT_EQ(ran.err, "");
  EXPECT_EQ(ran.exit_code, 0);
  EXPECT_EQ(upgrade_asked(),
            (Json{{"command", "upgrade"}, {"program", directory_ / "penstockd"}, {"patience_s", 60}}));
}

TEST_F(UpgradeCommandTest, asks_for_whole_paths_and_for_none) {
  daemon_upgrades({{"result", "done"}});
  write("penstockd", "");
  std::filesystem::create_symlink("penstockd", directory_ / "newest");
  EXPECT_EQ(ask({"upgrade", directory_ / "./newest", "--patience", "5"}).exit_code, 0);
  EXPECT_EQ(upgrade_asked().at("program"), directory_ / "penstockd");
  EXPECT_EQ(upgrade_asked().at("patience_s"), 5);
  admin_.reset();
  daemon_upgrades({{"result", "done"}});
  EXPECT_EQ(ask({"upgrade"}).exit_code, 0);
  EXPECT_EQ(upgrade_asked().at("program"), "");
}

TEST_F(UpgradeCommandTest, says_why_the_old_program_goes_on) {
  daemon_upgrades({{"result", "trial_killed"}, {"reason", "it was killed by signal 11 on trial\x1b"}});
  auto ran = ask({"upgrade"});
  EXPECT_EQ(ran.out, "");
  EXPECT_EQ(ran.err, "penstock: penstockd is as it was: it was killed by signal 11 on trial?\n");
  EXPECT_EQ(ran.exit_code, 1);
}

TEST_F(UpgradeCommandTest, json_is_what_came_of_it) {
  daemon_upgrades({{"result", "missing"}, {"reason", "it is not there"}});
  auto ran = ask({"upgrade", "--json"});
  EXPECT_EQ(ran.out, "{\"answered\":4,\"reason\":\"it is not there\",\"result\":\"missing\"}\n");
  EXPECT_EQ(ran.err, "penstock: penstockd is as it was: it is not there\n");
  EXPECT_EQ(ran.exit_code, 1);
}

TEST_F(UpgradeCommandTest, refuses_what_it_cannot_ask_for) {
  daemon_upgrades({{"result", "done"}});
  auto missing = ask({"upgrade", directory_ / "nowhere"});
  EXPECT_EQ(missing.err, "penstock: " + (directory_ / "nowhere") + ": No such file or directory\n");
  EXPECT_EQ(missing.exit_code, 1);
  for (const char* patience : {"0", "3601", "soon"})
    EXPECT_EQ(ask({"upgrade", "--patience", patience}).exit_code, 2) << patience;
  EXPECT_EQ(ask({"upgrade", "one", "two"}).exit_code, 2);
  EXPECT_EQ(upgrade_asked(), Json());
}

TEST_F(UpgradeCommandTest, an_upgrade_under_way_is_the_daemons_answer) {
  daemon_answers_by([](const Json& request) {
    return request.at("command") == "upgrade" ? Json{{"error", "an upgrade is under way"}} : kStatus;
  });
  auto ran = ask({"upgrade"});
  EXPECT_EQ(ran.err, "penstock: penstockd: an upgrade is under way\n");
  EXPECT_EQ(ran.exit_code, 1);
}

TEST_F(CommandTest, doctor_asks_and_tells_the_verdict) {
  daemon_answers(
      {{"verdict", "mismatch"},
       {"says", "the server expects no PROXY header and gets v2"},
       {"advice", "set proxy_protocol = \"off\""},
       {"dials", Json::array({{{"proxy_protocol", "v2"}, {"ok", false}, {"reason", "\x1b[2J"}}})}});
  auto ran = ask({"doctor", "mailbox", "10.0.0.2", "--port", "25"});
  EXPECT_EQ(ran.exit_code, 1);
  EXPECT_EQ(asked(),
            (Json{{"command", "doctor"}, {"upstream", "mailbox"}, {"server", "10.0.0.2"}, {"port", 25}}));
  EXPECT_NE(ran.out.find("change: set proxy_protocol = \"off\"\n"), std::string::npos) << ran.out;
  EXPECT_NE(ran.out.find("?[2J"), std::string::npos) << ran.out;
  admin_.reset();
  daemon_answers({{"verdict", "as_configured"}});
  EXPECT_EQ(ask({"doctor", "mailbox"}).exit_code, 0);
  EXPECT_EQ(penstock({"doctor", "mailbox", "--port", "0"}).exit_code, 2);
}

TEST_F(CommandTest, bad_usage_ends_with_2) {
  for (const auto& words : {std::vector<std::string>{},
                            {"stats"},
                            {"status", "--verbose"},
                            {"status", "now"},
                            {"flows", "--listener"}}) {
    auto ran = penstock(words);
    EXPECT_EQ(ran.exit_code, 2) << ::testing::PrintToString(words);
    EXPECT_NE(ran.err, "");
    EXPECT_EQ(ran.out, "");
  }
  EXPECT_EQ(penstock({"--help"}).exit_code, 0);
  EXPECT_EQ(penstock({"flows", "--help"}).exit_code, 0);
  EXPECT_EQ(penstock({"--version"}).out.rfind("penstock ", 0), 0u);
}

TEST_F(CommandTest, a_full_disk_is_not_silent) {
  daemon_answers(kStatus);
  auto ran = run("/bin/sh", {"-c", std::string("exec ") + PENSTOCK_COMMAND + " status --socket " + socket_ +
                                       " >/dev/full"});
  EXPECT_EQ(ran.exit_code, 1);
  EXPECT_NE(ran.err.find("cannot write to standard output"), std::string::npos) << ran.err;
}

}  // namespace
}  // namespace penstock
