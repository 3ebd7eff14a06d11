// SPDX-License-Identifier: Apache-2.0
// penstock-bench-load: the load of tools/bench, both ends. See tools/bench/README.md.
#include <fmt/format.h>
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <system_error>

#include "drive.h"
#include "serve.h"

namespace {

using namespace penstock;

void raise_fd_limit() {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

void add_endpoint(CLI::App* app, const std::string& name, Endpoint* to, const std::string& what) {
  app->add_option_function<std::string>(
         name,
         [to, name](const std::string& text) {
           const size_t colon = text.rfind(':');
           const auto address = IpAddress::parse(text.substr(0, colon));
           const int port = colon == std::string::npos ? 0 : std::atoi(text.c_str() + colon + 1);
           if (!address || port < 1 || port > 65535)
             throw CLI::ValidationError(name, text + ": not ADDRESS:PORT");
           *to = {.address = *address, .port = static_cast<uint16_t>(port)};
         },
         what)
      ->required();
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Load for tools/bench: `serve` behind the proxies, `drive` before them"};
  app.require_subcommand(1);
  bench::ServeOptions served;
  auto* serve = app.add_subcommand("serve", "the server's end, until it is killed");
  add_endpoint(serve, "--streams", &served.streams, "ADDRESS:PORT of long flows");
  add_endpoint(serve, "--shorts", &served.shorts, "ADDRESS:PORT of short connections");
  add_endpoint(serve, "--proxied", &served.proxied, "ADDRESS:PORT of short connections after a PROXY header");
  serve->add_option("--threads", served.threads)->check(CLI::Range(1, 1024));

  bench::DriveOptions driven;
  auto* drive = app.add_subcommand("drive", "the clients' end: one load, one JSON object");
  add_endpoint(drive, "--to", &driven.to, "ADDRESS:PORT");
  drive->add_option("--load", driven.load)
      ->check(CLI::IsMember({"bulk", "paced", "slow", "pingpong", "connections", "idle"}));
  drive->add_flag("--down", driven.down, "the server sends");
  drive->add_option("--flows", driven.flows, "at once")->check(CLI::Range(1, 1'000'000));
  drive->add_option("--threads", driven.threads)->check(CLI::Range(1, 1024));
  drive->add_option("--size", driven.size, "bytes of a ping")->check(CLI::Range(1, 16 << 10));
  drive->add_option("--rate", driven.rate, "bytes/s of all flows together; paced, slow");
  drive->add_option("--sni", driven.sni, "connections: ask by a ClientHello with this name");
  drive->add_option("--warm-up-ms", driven.warm_up_ms);
  drive->add_option("--measure-ms", driven.measure_ms);
  CLI11_PARSE(app, argc, argv);

  raise_fd_limit();
  try {
    if (*drive) return bench::drive(driven);
    bench::serve(served);
  } catch (const std::system_error& e) {
    fmt::print(stderr, "penstock-bench-load: {}\n", e.what());
    return 1;
  }
}
