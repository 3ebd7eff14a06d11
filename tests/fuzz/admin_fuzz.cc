// SPDX-License-Identifier: Apache-2.0
// Any bytes over the admin socket of a daemon without flows: one line of JSON for each line, in order, the
// same in whatever pieces they come, and the connection ends. A request that is refused changes nothing.
//
// The first byte is the size of the pieces; 0: all at once.
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <string>

#include "base/fd.h"
#include "base/log.h"
#include "daemon/admin.h"
#include "daemon/status.h"
#include "flow/plan.h"
#include "keeper/state.h"
#include "support/fuzz_text.h"

namespace {

using namespace penstock;

constexpr std::string_view kConfig = R"(
[upstream.mailbox]
servers = ["192.0.2.1:25", "mailbox.example.net:25"]
[[listener]]
name = "mail"
bind = [":25"]
upstream = "mailbox"
)";

// A daemon as its admin socket sees it: no workers, no flows, one upstream.
class Edge {
 public:
  Edge() {
    log::set_level(log::Level::error);
    for (auto& fd : keeper_.descriptors) fd = -1;
    auto parsed = config::parse(kConfig, "penstock.toml", [](std::string_view) { return std::nullopt; });
    shared_.set_plan(flow::Plan::make(std::move(*parsed.config), listeners_, upstreams_, nullptr).value());
    char name[] = "/tmp/penstock-fuzz-XXXXXX";
    PENSTOCK_ASSERT(mkdtemp(name) != nullptr);
    directory_ = name;
    admin_ = daemon::Admin::start(path(), [this](const Json& request, uid_t, const auto& reply) {
               // What these two say is of the machine, whatever else the request holds.
               const std::string command = request.value("command", "");
               if (command == "status" || command == "reload") return reply({{"ok", true}});
               daemon::Facts facts;
               facts.keeper = &keeper_;
               reply(daemon::answer(shared_, facts, request));
             }).value();
  }
  ~Edge() {
    admin_.reset();
    std::filesystem::remove_all(directory_);
  }
  std::string path() const { return directory_ + "/admin.sock"; }

 private:
  flow::Names listeners_{4, [](uint32_t, std::string_view) {}},
      upstreams_{4, [](uint32_t, std::string_view) {}};
  flow::Shared shared_;
  keeper::State keeper_{};  // of a keeper that never answers
  std::string directory_;
  std::unique_ptr<daemon::Admin> admin_;
};

// Is there something to read, or the end, in less time than the daemon gives a silent client (4 s)? Only
// waits that end in time count: a machine that stands still for seconds is not the daemon's silence.
bool answers(const Fd& socket) {
  using Clock = std::chrono::steady_clock;
  using namespace std::chrono_literals;
  for (int waits = 0; waits < 40;) {
    const auto until = Clock::now() + 200ms;
    pollfd wait{socket.get(), POLLIN, 0};
    if (::poll(&wait, 1, 100) == 1) return true;
    if (Clock::now() < until) ++waits;
  }
  return false;
}

// What is read until the end, having written `bytes` in pieces and said that there is no more.
std::string talk(const std::string& path, std::string_view bytes, size_t piece_bytes) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  const Fd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  PENSTOCK_ASSERT(::connect(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  while (!bytes.empty()) {
    const size_t size = std::min(bytes.size(), piece_bytes);
    if (::send(socket.get(), bytes.data(), size, MSG_NOSIGNAL) < 0) break;  // it has heard enough
    bytes.remove_prefix(size);
  }
  ::shutdown(socket.get(), SHUT_WR);
  std::string said;
  char buffer[1 << 16];
  for (;;) {
    PENSTOCK_ASSERT(answers(socket));
    const ssize_t n = ::recv(socket.get(), buffer, sizeof buffer, 0);
    if (n <= 0) return said;
    said.append(buffer, static_cast<size_t>(n));
  }
}

// Those that the daemon reads: whole ones, up to the first that is too long.
size_t requests_in(std::string_view bytes) {
  size_t count = 0;
  for (size_t end; (end = bytes.find('\n')) != bytes.npos && end <= daemon::kAdminRequestBytesMax; ++count)
    bytes.remove_prefix(end + 1);
  return count + (bytes.size() > daemon::kAdminRequestBytesMax);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  static const Edge edge;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  const std::string at_once = talk(edge.path(), bytes, SIZE_MAX);
  PENSTOCK_ASSERT(at_once.empty() || at_once.ends_with('\n'));
  const size_t requests = requests_in(bytes);
  PENSTOCK_ASSERT(static_cast<size_t>(std::count(at_once.begin(), at_once.end(), '\n')) == requests);
  std::vector<std::string> answers = test::split(at_once, '\n');
  answers.pop_back();
  for (const std::string& answer : answers) {
    test::check_printable(answer);
    const auto json = parse_json(answer);
    PENSTOCK_ASSERT(json && json->is_object() && !json->empty());
  }
  const size_t piece_bytes = std::max<size_t>(data[0], bytes.size() / 16 + 1);
  if (data[0] != 0) PENSTOCK_ASSERT(talk(edge.path(), bytes, piece_bytes) == at_once);
  return 0;
}
