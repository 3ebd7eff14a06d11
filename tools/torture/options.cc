// SPDX-License-Identifier: Apache-2.0
#include "options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>
#include <random>
#include <thread>

namespace penstock::torture {
namespace {

Endpoint endpoint_or_throw(std::string_view text) {
  if (const auto endpoint = parse_endpoint(text)) return *endpoint;
  throw CLI::ValidationError("'" + std::string(text) + "' is not ADDR:PORT or [ADDR]:PORT");
}

// "tls:127.0.0.1:443": see README.md.
Entrance parse_entrance(std::string_view text) {
  struct Prefix {
    std::string_view word;
    Manners manners;
  };
  constexpr Prefix kPrefixes[] = {{"tls:", {.client_hello = true}},
                                  {"proxy:", {.proxy_header = true}},
                                  {"proxy+tls:", {.proxy_header = true, .client_hello = true}}};
  for (const Prefix& prefix : kPrefixes) {
    if (!text.starts_with(prefix.word)) continue;
    return {endpoint_or_throw(text.substr(prefix.word.size())), prefix.manners};
  }
  return {endpoint_or_throw(text), {}};
}

// One client address has some 28,000 ports; of 127/8, which every v4 loopback address may be reached from,
// there are more.
bool all_v4_is_loopback(const std::vector<Entrance>& entrances) {
  return std::all_of(entrances.begin(), entrances.end(), [](const Entrance& e) {
    return !e.to.address.is_v4() || e.to.address.bytes[12] == 127;
  });
}

uint64_t draw_seed() {
  std::random_device entropy;
  return uint64_t{entropy()} << 32 | entropy();
}

// In a build tree it lies near; installed, in /usr/sbin.
std::string find_penstockd() {
  std::error_code missing;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", missing);
  const auto built = self.parent_path() / "../../userspace/penstockd";
  for (const auto& path : {built, std::filesystem::path("/usr/sbin/penstockd")}) {
    if (std::filesystem::exists(path, missing)) return path.lexically_normal();
  }
  return "penstockd";
}

struct Texts {
  std::vector<std::string> to, serve;
  std::string source = "auto";
  uint64_t life = 0;
  double duration_s = 0, stall_s = 60, hang_s = 30, ramp_s = 0;
  bool direct = false;
};

uint32_t to_ms(double seconds) {
  return static_cast<uint32_t>(seconds * 1000);
}

void settle(CLI::App& app, const Texts& texts, Options& o) {
  for (const std::string& text : texts.to) o.to.push_back(parse_entrance(text));
  for (const std::string& text : texts.serve) o.serve.push_back(endpoint_or_throw(text));
  if (texts.direct) {
    for (const Endpoint& where : o.serve) o.to.push_back({where, {}});
    o.preamble = Preamble::none;
  }
  if (o.to.empty() != o.serve.empty()) throw CLI::ValidationError("--serve goes with --to or --direct");
  if (o.to.empty()) {
    if (o.penstockd.empty()) o.penstockd = find_penstockd();
  } else if (!o.penstockd.empty()) {
    throw CLI::ValidationError("--penstockd is started where there is no --to");
  }
  const bool plain = std::none_of(o.to.begin(), o.to.end(), [](const Entrance& e) {
    return e.manners.proxy_header || e.manners.client_hello;
  });
  if (!plain && o.preamble != Preamble::v1 && o.preamble != Preamble::v2)
    throw CLI::ValidationError("--to tls: and proxy: go with --proxy-header v1 or v2");
  if (!o.log.empty() && o.admin.empty()) throw CLI::ValidationError("--log goes with --admin");
  if (app.count("--seed") == 0) o.seed = draw_seed();

  if (texts.source == "auto") {
    if (all_v4_is_loopback(o.to)) o.source = Cidr::parse("127.16.0.0/12");
  } else if (texts.source != "any") {
    o.source = Cidr::parse(texts.source);
    if (!o.source)
      throw CLI::ValidationError("--source: '" + texts.source + "' is not ADDR/BITS, any or auto");
  }

  o.hang_ms = to_ms(texts.hang_s);
  o.ramp_ms = to_ms(texts.ramp_s);
  o.recipe.stall_ms = to_ms(texts.stall_s);
  if (app.count("--life") > 0) o.only_life = texts.life;
  const bool flows_only =
      o.recipe.mix == Mix::paced || o.recipe.mix == Mix::stall || o.recipe.mix == Mix::never_read;
  if (flows_only) {
    if (app.count("--duration") > 0) o.recipe.duration_ms = to_ms(texts.duration_s);
    o.lives = o.concurrency = o.recipe.flows;
  } else if (app.count("--duration") > 0) {
    o.lives_for_ms = to_ms(texts.duration_s);
    if (app.count("--lives") == 0) o.lives = kWithoutEnd;
  }
}

}  // namespace

std::optional<Endpoint> parse_endpoint(std::string_view text) {
  const size_t colon = text.rfind(':');
  if (colon == text.npos) return std::nullopt;
  std::string_view host = text.substr(0, colon);
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  Endpoint endpoint;
  const auto address = IpAddress::parse(host);
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data() + colon + 1, end, endpoint.port);
  if (!address || error != std::errc{} || stop != end) return std::nullopt;
  endpoint.address = *address;
  return endpoint;
}

Options parse_options(int argc, char** argv) {
  Options o;
  Texts texts;
  o.threads = std::clamp(std::thread::hardware_concurrency(), 1u, 8u);
  const std::map<std::string, Mix> mixes = {
      {"mixed", Mix::mixed}, {"short", Mix::brief}, {"bulk", Mix::bulk},   {"pingpong", Mix::pingpong},
      {"mail", Mix::mail},   {"paced", Mix::paced}, {"stall", Mix::stall}, {"never-read", Mix::never_read}};
  const std::map<std::string, Preamble> preambles = {
      {"none", Preamble::none}, {"v1", Preamble::v1}, {"v2", Preamble::v2}, {"id", Preamble::id}};
  const std::map<std::string, Towards> directions = {
      {"both", Towards::both}, {"up", Towards::up}, {"down", Towards::down}};

  CLI::App app(
      "Proves a layer-4 proxy byte exact: clients and their server around it, every life from a seed.");
  app.add_option(
      "--penstockd", o.penstockd,
      "without --to: the penstockd to start on loopback (default: that of this build, or in PATH)");
  app.add_option("--engine", o.engine, "of that penstockd: auto, sockmap, io_uring")->capture_default_str();
  app.add_option(
      "--to", texts.to,
      "the proxy's address, ADDR:PORT or [ADDR]:PORT; repeatable, lives alternate. tls:ADDR:PORT: it "
      "routes by server name; proxy: or proxy+tls: it trusts us as a proxy in front");
  app.add_option("--serve", texts.serve, "where the server listens (the proxy's upstream); repeatable");
  app.add_option("--admin", o.admin, "with --to a penstockd: its admin socket; its accounts are checked");
  app.add_option("--log", o.log, "and the file that has its access log; close reasons are checked");
  app.add_flag("--direct", texts.direct, "no proxy: clients connect to --serve");
  app.add_option(
         "--proxy-header", o.preamble,
         "what the proxy sends upstream (v2 by default); none: the client's own address; id: nothing, the "
         "client's first 8 bytes say who it is")
      ->transform(CLI::CheckedTransformer(preambles));
  app.add_option("--mix,--mode", o.recipe.mix, "what lives are like")
      ->transform(CLI::CheckedTransformer(mixes));
  app.add_option("--seed", o.seed, "of the run (default: drawn, and printed)");
  app.add_option("--lives", o.lives, "how many")->capture_default_str();
  app.add_option("--duration", texts.duration_s,
                 "seconds to start lives for, instead of --lives; of paced and never-read flows");
  app.add_option("--life", texts.life, "replay this one alone and trace its events");
  app.add_option("--concurrency", o.concurrency, "lives at a time")->capture_default_str();
  app.add_option("--ramp", texts.ramp_s, "seconds to reach it");
  app.add_option("--max-bytes", o.recipe.bytes_max, "of one direction of one life")->capture_default_str();
  app.add_option("--stall-ms", o.recipe.stall_ms_max, "longest stall of a reader in mixed")
      ->capture_default_str();
  app.add_option("--hang-s", texts.hang_s, "a life without progress for so long hangs")
      ->capture_default_str();
  app.add_option("--source", texts.source,
                 "client addresses: a prefix to rotate over, any, or auto (127.16.0.0/12 towards 127/8)")
      ->capture_default_str();
  app.add_option("--threads", o.threads, "event loops")->capture_default_str();
  app.add_option("--flows", o.recipe.flows, "of paced, stall, never-read")->capture_default_str();
  app.add_option("--rate-bps", o.recipe.rate_bps, "of all paced flows together; 0: as fast as it goes");
  app.add_option("--direction", o.recipe.towards, "of paced and stall: both, up, down")
      ->transform(CLI::CheckedTransformer(directions));
  app.add_option("--stall-s", texts.stall_s, "how long the readers of --mode stall stop")
      ->capture_default_str();
  app.add_flag("--probe-client", o.probe_client, "one more short exchange every 200 ms; its latency is told");
  app.add_flag("--redials", o.redials,
               "the proxy may give up a dial and begin another: counted, and no failure");
  app.add_flag("--json", o.json, "summary as JSON on stdout");
  try {
    app.parse(argc, argv);
    settle(app, texts, o);
  } catch (const CLI::ParseError& e) {
    const int code = app.exit(e);
    std::exit(code == 0 ? 0 : 2);
  }
  return o;
}

}  // namespace penstock::torture
