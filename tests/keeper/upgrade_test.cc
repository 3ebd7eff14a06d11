// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "keeper/kept.h"
#include "keeper/scene.h"

namespace penstock::keeper::test {
namespace {

using std::to_string;

constexpr milliseconds kHangs{PENSTOCK_SLOWNESS * 500};  // long enough for what does not hang

// A directory of programs that differ by what they are called.
class Programs {
 public:
  Programs() {
    char name[] = "/tmp/keeper-programs-XXXXXX";
    directory_ = mkdtemp(name);
  }
  ~Programs() { std::filesystem::remove_all(directory_); }
  std::string path(const std::string& name) const { return directory_ + "/" + name; }
  std::string version(int v, const std::string& name, mode_t mode = 0755) const {
    std::filesystem::copy_file(scene(v), path(name));
    chmod(path(name).c_str(), mode);
    return path(name);
  }
  std::string text(const std::string& name, mode_t mode) const {
    std::ofstream(path(name)) << "no program\n";
    chmod(path(name).c_str(), mode);
    return path(name);
  }

 private:
  std::string directory_;
};

// Numbered words go in at one end for as long as it lives, and come out at the other; each is compared.
class Stream {
 public:
  Stream(Fd in, Fd out)
      : in_(std::move(in)),
        out_(std::move(out)),
        writer_([this] { write_words(); }),
        reader_([this] { read_words(); }) {}
  ~Stream() { end(); }
  // Words that came out, all right and none missing; 0 if not so.
  uint64_t end() {
    over_ = true;
    if (writer_.joinable()) writer_.join();
    if (reader_.joinable()) reader_.join();
    return wrong_ || received_ != sent_ ? 0 : received_.load();
  }
  uint64_t received() const { return received_; }

 private:
  void write_words() {
    while (!over_) {
      uint64_t words[64];
      for (uint64_t& word : words) word = sent_++ * 0x9e37'79b9'7f4a'7c15;
      for (size_t done = 0; done < sizeof words;) {
        const ssize_t n = write(in_.get(), reinterpret_cast<char*>(words) + done, sizeof words - done);
        if (n <= 0) return;
        done += static_cast<size_t>(n);
      }
    }
  }
  void read_words() {
    char bytes[4096];
    size_t have = 0;
    for (;;) {
      pollfd readable{out_.get(), POLLIN, 0};
      if (over_ && received_ == sent_) return;
      if (poll(&readable, 1, over_ ? static_cast<int>(kPatience.count()) : 100) <= 0) {
        if (over_) return;
        continue;
      }
      const ssize_t n = read(out_.get(), bytes + have, sizeof bytes - have);
      if (n <= 0) return;
      have += static_cast<size_t>(n);
      size_t at = 0;
      for (uint64_t word; at + sizeof word <= have; at += sizeof word) {
        memcpy(&word, bytes + at, sizeof word);
        wrong_ = wrong_ || word != received_ * 0x9e37'79b9'7f4a'7c15;
        received_++;
      }
      memmove(bytes, bytes + at, have -= at);
    }
  }

  Fd in_, out_;
  std::atomic<bool> over_ = false, wrong_ = false;
  std::atomic<uint64_t> sent_ = 0, received_ = 0;
  std::thread writer_, reader_;
};

struct Ends {
  Fd first, second;
};

Ends new_pipe() {
  int ends[2];
  EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0);
  return {Fd(ends[0]), Fd(ends[1])};
}

Ends new_connection() {
  Fd listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)),
      client(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
  socklen_t size = sizeof address;
  EXPECT_EQ(bind(listener.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
  EXPECT_EQ(listen(listener.get(), 1), 0);
  getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &size);
  EXPECT_EQ(connect(client.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
  Fd server(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  return {std::move(client), std::move(server)};
}

// A relaying worker: bytes through two pipes, and from one TCP connection to another.
class Upgrade : public testing::Test {
 protected:
  explicit Upgrade(milliseconds quiesce = kPatience) {
    Ends in = new_pipe(), out = new_pipe(), between = new_pipe();
    Ends from = new_connection(), to = new_connection();
    kept_.emplace("ready", std::vector<std::string>{"steady=0", "quiesce=" + to_string(quiesce.count())},
                  std::map<std::string, std::string>{},
                  std::map<int, int>{{kPipeIn, in.first.get()},
                                     {kPipeOut, out.second.get()},
                                     {kTcpIn, from.second.get()},
                                     {kTcpOut, to.second.get()},
                                     {kBetweenIn, between.second.get()},
                                     {kBetweenOut, between.first.get()}});
    EXPECT_TRUE(kept_->ready(1));
    pipe_.emplace(std::move(in.second), std::move(out.first));
    tcp_.emplace(std::move(from.first), std::move(to.first));
  }

  // Both streams have moved since.
  void expect_progress() {
    const uint64_t pipe = pipe_->received(), tcp = tcp_->received();
    EXPECT_TRUE(wait_until([&] { return pipe_->received() > pipe && tcp_->received() > tcp; }))
        << kept_->process().output();
  }
  void expect_nothing_lost() {
    EXPECT_GT(pipe_->end(), 0u);
    EXPECT_GT(tcp_->end(), 0u);
    kept_->process().signal(SIGTERM);
    EXPECT_EQ(kept_->exit_code(), 0);
    EXPECT_TRUE(kept_->says("cleaned up stopping"));
  }
  // Twenty times: the answer is `result`, the same worker or another of the old program goes on.
  void expect_refusals(const std::string& path, UpgradeResult result, int detail,
                       milliseconds patience = kPatience) {
    constexpr int kTimes = 20;
    const pid_t keeper = kept_->process().pid();
    const auto before = descriptors(keeper);
    for (int i = 0; i < kTimes; i++) {
      UpgradeResult answer = kept_->upgrade(path, patience);
      while (answer == UpgradeResult::trial_timed_out && answer != result)
        answer = kept_->upgrade(path, patience);
      ASSERT_EQ(name(answer), name(result)) << kept_->process().output();
      EXPECT_EQ(kept_->state().result_detail, detail);
      ASSERT_TRUE(wait_until([&] { return kept_->state().phase == Phase::serving; }));
      expect_progress();
      EXPECT_EQ(std::filesystem::read_symlink("/proc/" + to_string(keeper) + "/exe"), scene(1));
    }
    EXPECT_TRUE(wait_until([&] { return descriptors(keeper) == before; })) << describe(before);
    EXPECT_EQ(threads(keeper).size(), 2u);
    EXPECT_EQ(kept_->state().upgrades, 0u);
    expect_nothing_lost();
  }
  std::string describe(const std::map<int, std::string>& before) {
    std::string text;
    for (const auto& [fd, what] : before) text += to_string(fd) + " was " + what + "\n";
    for (const auto& [fd, what] : descriptors(kept_->process().pid()))
      text += to_string(fd) + " is " + what + "\n";
    return text;
  }

  Programs programs_;
  std::optional<Kept> kept_;
  std::optional<Stream> pipe_, tcp_;
};

TEST_F(Upgrade, a_hundred_times_between_two_programs_of_different_layouts) {
  constexpr uint64_t kUpgrades = 100;
  const pid_t keeper = kept_->process().pid();
  const auto before = descriptors(keeper);
  for (uint64_t i = 1; i <= kUpgrades; i++) {
    const int version = i % 2 ? 2 : 1;
    ASSERT_EQ(name(kept_->upgrade(scene(version))), "done") << kept_->process().output();
    ASSERT_TRUE(kept_->says("ready " + to_string(1 + i) + " version " + to_string(version)));
    EXPECT_EQ(std::filesystem::read_symlink("/proc/" + to_string(keeper) + "/exe"), scene(version));
    EXPECT_STREQ(kept_->state().program, scene(version).c_str());
    expect_progress();
  }
  EXPECT_EQ(kept_->state().upgrades, kUpgrades);
  EXPECT_EQ(kept_->state().crashes, 0u);
  EXPECT_TRUE(wait_until([&] { return descriptors(keeper) == before; })) << describe(before);
  EXPECT_EQ(threads(keeper).size(), 2u);
  expect_nothing_lost();
}

TEST_F(Upgrade, by_signal_takes_what_lies_at_the_daemons_own_path) {
  for (uint64_t i = 1; i <= 3; i++) {
    kept_->process().signal(SIGUSR2);
    ASSERT_TRUE(wait_until([&] { return kept_->state().upgrades == i; })) << kept_->process().output();
    ASSERT_TRUE(kept_->ready(1 + i));
  }
  expect_nothing_lost();
}

TEST_F(Upgrade, between_deaths) {
  for (int i = 0; i < 20; i++) {
    ASSERT_EQ(name(kept_->upgrade(scene(2))), "done") << kept_->process().output();
    const uint64_t starts = kept_->state().starts;
    kept_->kill_worker();
    ASSERT_TRUE(kept_->ready(starts + 1));
    ASSERT_TRUE(wait_until([&] { return kept_->state().phase == Phase::serving; }));
    expect_progress();
  }
  expect_nothing_lost();
}

TEST_F(Upgrade, missing) {
  expect_refusals(programs_.path("missing"), UpgradeResult::missing, ENOENT);
}

TEST_F(Upgrade, without_permission_to_execute) {
  expect_refusals(programs_.version(2, "plain", 0644), UpgradeResult::not_executable, EACCES);
}

TEST_F(Upgrade, no_program) {
  expect_refusals(programs_.text("text", 0755), UpgradeResult::not_executable, ENOEXEC);
}

TEST_F(Upgrade, writable_by_others) {
  expect_refusals(programs_.version(2, "writable", 0777), UpgradeResult::not_trusted, 0);
}

TEST_F(Upgrade, exits_on_trial) {
  expect_refusals(programs_.version(2, "trial_exits"), UpgradeResult::trial_failed, 1);
}

// As any program might, /bin/true for one.
TEST_F(Upgrade, says_nothing_on_trial) {
  expect_refusals(programs_.version(2, "trial_says_nothing"), UpgradeResult::trial_failed, 0);
}

TEST_F(Upgrade, crashes_on_trial) {
  expect_refusals(programs_.version(2, "trial_crashes"), UpgradeResult::trial_killed, SIGSEGV);
}

TEST_F(Upgrade, hangs_on_trial) {
  expect_refusals(programs_.version(2, "trial_hangs"), UpgradeResult::trial_timed_out, 0, kHangs);
}

// The patience may be over before there is a process to kill.
TEST_F(Upgrade, hangs_on_trial_without_patience) {
  expect_refusals(programs_.version(2, "trial_hangs"), UpgradeResult::trial_timed_out, 0, milliseconds(1));
}

TEST_F(Upgrade, does_not_know_the_layout) {
  expect_refusals(programs_.version(2, "unknown_layout"), UpgradeResult::unknown_layout, kLayout + 2);
}

TEST_F(Upgrade, crashes_at_its_start) {
  expect_refusals(programs_.version(2, "start_crashes"), UpgradeResult::start_failed, SIGSEGV);
}

TEST_F(Upgrade, exits_at_its_start) {
  expect_refusals(programs_.version(2, "start_exits"), UpgradeResult::start_failed, 1);
}

TEST_F(Upgrade, hangs_at_its_start) {
  expect_refusals(programs_.version(2, "start_hangs"), UpgradeResult::start_timed_out, SIGKILL, kHangs);
}

class ImpatientUpgrade : public Upgrade {
 protected:
  ImpatientUpgrade() : Upgrade(kHangs) {}
};

TEST_F(ImpatientUpgrade, where_the_old_worker_does_not_put_everything_down) {
  kept_->command("stubborn");
  ASSERT_TRUE(kept_->says("obeyed stubborn"));
  EXPECT_EQ(name(kept_->upgrade(scene(2))), "not_quiesced");
  ASSERT_TRUE(kept_->says("ready 2 version 1"));
  EXPECT_EQ(kept_->state().crashes, 0u);
  expect_progress();
  expect_nothing_lost();
}

TEST_F(Upgrade, to_what_a_worker_put_in_the_place_of_the_program_that_was_tried) {
  kept_->command("forges");
  ASSERT_TRUE(kept_->says("obeyed forges"));
  EXPECT_EQ(name(kept_->upgrade(scene(2))), "not_trusted");
  ASSERT_TRUE(kept_->says("ready 2 version 1"));
  expect_progress();
  expect_nothing_lost();
}

TEST_F(Upgrade, is_given_up_when_the_end_is_wanted) {
  kept_->command("upgrade " + programs_.version(2, "trial_hangs") + " 1000");
  ASSERT_TRUE(wait_until([&] { return kept_->state().step == UpgradeStep::trial; }));
  expect_nothing_lost();
}

TEST_F(Upgrade, that_fails_loses_no_reload) {
  kept_->command("upgrade " + programs_.version(2, "start_hangs") + " " + to_string(kHangs.count()));
  ASSERT_TRUE(wait_until([&] { return kept_->state().step == UpgradeStep::trying; }));
  kept_->process().signal(SIGHUP);
  EXPECT_TRUE(kept_->says("signal 1 ")) << kept_->process().output();
  EXPECT_EQ(name(kept_->state().result), "start_timed_out");
  expect_nothing_lost();
}

TEST_F(Upgrade, a_worker_that_dies_meanwhile_is_replaced) {
  kept_->command("upgrade " + programs_.version(2, "trial_hangs") + " 1000");
  ASSERT_TRUE(wait_until([&] { return kept_->state().step == UpgradeStep::trial; }));
  kept_->kill_worker();
  ASSERT_TRUE(kept_->says("ready 2 version 1"));
  ASSERT_TRUE(wait_until([&] { return kept_->state().upgrades_answered == 1; }));
  EXPECT_EQ(name(kept_->state().result), "trial_timed_out");
  expect_nothing_lost();
}

}  // namespace
}  // namespace penstock::keeper::test
