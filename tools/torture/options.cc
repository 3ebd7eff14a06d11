// SPDX-License-Identifier: Apache-2.0
#include "options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <map>
#include <thread>

namespace penstock::torture {
namespace {

Endpoint parse_endpoint(const std::string& text) {
  const size_t colon = text.rfind(':');
  const std::string wrong = "'" + text + "' is not ADDR:PORT or [ADDR]:PORT";
  if (colon == text.npos) throw CLI::ValidationError(wrong);
  std::string host = text.substr(0, colon);
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  Endpoint endpoint;
  const auto address = IpAddress::parse(host);
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data() + colon + 1, end, endpoint.port);
  if (!address || error != std::errc{} || stop != end) throw CLI::ValidationError(wrong);
  endpoint.address = *address;
  return endpoint;
}

std::vector<Endpoint> parse_endpoints(const std::vector<std::string>& texts) {
  std::vector<Endpoint> out;
  for (const std::string& text : texts) out.push_back(parse_endpoint(text));
  return out;
}

// One client address has some 28,000 ports; of 127/8, which every v4 loopback address may be reached from,
// there are more.
bool all_v4_is_loopback(const std::vector<Endpoint>& endpoints) {
  return std::all_of(endpoints.begin(), endpoints.end(),
                     [](const Endpoint& e) { return !e.address.is_v4() || e.address.bytes[12] == 127; });
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
  o.to = parse_endpoints(texts.to);
  o.serve = parse_endpoints(texts.serve);
  if (texts.direct) {
    o.to = o.serve;
    o.preamble = Preamble::none;
  }
  if (o.to.empty()) throw CLI::ValidationError("--to or --direct is required");

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
  app.add_option("--to", texts.to,
                 "the proxy's address, ADDR:PORT or [ADDR]:PORT; repeatable, lives alternate");
  app.add_option("--serve", texts.serve, "where the server listens (the proxy's upstream); repeatable")
      ->required();
  app.add_flag("--direct", texts.direct, "no proxy: clients connect to --serve");
  app.add_option(
         "--proxy-header", o.preamble,
         "what the proxy sends upstream (v2 by default); none: the client's own address; id: nothing, the "
         "client's first 8 bytes say who it is")
      ->transform(CLI::CheckedTransformer(preambles));
  app.add_option("--mix,--mode", o.recipe.mix, "what lives are like")
      ->transform(CLI::CheckedTransformer(mixes));
  app.add_option("--seed", o.seed, "of the run")->capture_default_str();
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
