// SPDX-License-Identifier: Apache-2.0
#include "audit.h"

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <chrono>
#include <stdexcept>
#include <thread>

#include "base/fd.h"

namespace penstock::torture {
namespace {

using Json = nlohmann::json;

constexpr int64_t kPatienceMs = 10'000;
constexpr std::chrono::milliseconds kLookEvery{20};

std::string ask_status(const std::string& path) {
  const Fd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  constexpr std::string_view kQuestion = "{\"command\":\"status\"}\n";
  std::string answer;
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 &&
      send(fd.get(), kQuestion.data(), kQuestion.size(), MSG_NOSIGNAL) > 0) {
    char chunk[16 << 10];
    for (ssize_t n; (n = recv(fd.get(), chunk, sizeof chunk, 0)) > 0;) {
      answer.append(chunk, static_cast<size_t>(n));
      if (answer.back() == '\n') return answer;
    }
  }
  throw std::runtime_error("penstockd does not answer on " + path);
}

uint64_t sum(const Json& counters) {
  uint64_t out = 0;
  for (const auto& [name, value] : counters.items()) out += value.get<uint64_t>();
  return out;
}

// What was added, without what was not.
Json since(const Json& before, const Json& after) {
  Json out = Json::object();
  for (const auto& [name, value] : after.items()) {
    const uint64_t added = value.get<uint64_t>() - before.at(name).get<uint64_t>();
    if (added > 0) out[name] = added;
  }
  return out;
}

}  // namespace

Audit::Audit(const std::string& admin_socket) : socket_(admin_socket), before_(ask()) {
  engine_ = Json::parse(ask_status(socket_)).at("engine");
}

Json Audit::ask() const {
  return Json::parse(ask_status(socket_)).at("totals");
}

void Audit::settle(const Options& options, Tally& tally, Ledger* ledger) {
  const int64_t until_ms = now_ms() + kPatienceMs;
  const auto wait = [&](const auto& done) {
    while (!done() && now_ms() < until_ms) std::this_thread::sleep_for(kLookEvery);
  };
  wait([&] { return ask().at("active") == before_.at("active"); });
  if (ledger != nullptr) wait([&] { return ledger->complete(); });
  const Json after = ask();

  const auto blame = [&](bool wrong, const std::string& what) {
    if (!wrong) return;
    tally.add_failure(Failure::wrong_account);
    tell_failure(options, std::nullopt, Failure::wrong_account, what);
  };
  const auto added = [&](const char* name) {
    return after.at(name).get<uint64_t>() - before_.at(name).get<uint64_t>();
  };
  const Json closed = since(before_.at("closed"), after.at("closed"));
  const Json bytes = since(before_.at("bytes"), after.at("bytes"));
  const uint64_t accepted = added("accepted"), dropped = added("log_lines_dropped");

  blame(after.at("active") != before_.at("active"),
        fmt::format("{} flows are active that nobody has", after.at("active").dump()));
  const uint64_t all = after.at("accepted"), all_closed = sum(after.at("closed")),
                 active = after.at("active");
  blame(all != active + all_closed,
        fmt::format("accepted {} is not active {} + closed {}", all, active, all_closed));
  // A client that resets at once may be gone before the handshake is over for the proxy.
  const uint64_t connected = tally.connected, unheard = tally.upstream_never_dialled;
  blame(accepted > connected || accepted + unheard < connected,
        fmt::format("accepted {} of {} connections, of which {} never came to the server", accepted,
                    connected, unheard));
  const uint64_t received = tally.bytes_up + tally.bytes_down, sent = tally.sent_bytes, carried = sum(bytes);
  const uint64_t ids = options.preamble == Preamble::id ? sizeof(uint64_t) * connected : 0;
  blame(carried < received || carried > sent + ids,
        fmt::format("carried {} bytes; {} were sent, {} received", carried, sent, received));
  if (ledger != nullptr) {
    ledger->settle(dropped);
    blame(dropped == 0 && carried != ledger->carried_bytes(),
          fmt::format("carried {} bytes, in its log {}", carried, ledger->carried_bytes()));
    uint64_t lines = 0;
    for (const auto& [reason, count] : ledger->by_reason()) {
      lines += count;
      blame(count > closed.value(reason, uint64_t{0}),
            fmt::format("{} closed for {}, in its log {}", closed.value(reason, uint64_t{0}), reason, count));
    }
    blame(lines + unheard + dropped < accepted,
          fmt::format("accepted {}, lines in its log {}", accepted, lines));
  }
  summary_ = {{"engine", engine_},
              {"accepted", accepted},
              {"closed", closed},
              {"bytes", bytes},
              {"spliced_flows", added("spliced_flows")},
              {"lane_changes", since(before_.at("lane_changes"), after.at("lane_changes"))},
              {"log_lines_dropped", dropped}};
}

}  // namespace penstock::torture
