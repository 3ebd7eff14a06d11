// SPDX-License-Identifier: Apache-2.0
// Any bytes as a configuration and as an env file: no crash, diagnostics that fit on a line, and a Config
// that keeps what config.h promises. tests/fuzz/corpus/config holds one file per scenario.
#include <cstdint>
#include <cstdlib>
#include <set>
#include <string>
#include <string_view>

#include "base/assert.h"
#include "config/config.h"
#include "route/route.h"

namespace {

using namespace penstock;

void check_diagnostics(const std::vector<config::Diagnostic>& diagnostics, std::string_view file_name) {
  for (const config::Diagnostic& d : diagnostics) {
    PENSTOCK_ASSERT(d.text.starts_with(file_name));
    PENSTOCK_ASSERT(d.text.find(d.is_error ? ": error: " : ": warning: ") != d.text.npos);
    for (const char c : d.text) PENSTOCK_ASSERT(c >= 0x20 && c < 0x7f);
  }
}

void check_check(const config::Upstream& upstream, const config::Check& check) {
  PENSTOCK_ASSERT(check.timeout <= check.interval && check.timeout.count() >= 100);
  PENSTOCK_ASSERT(check.rise >= 1 && check.fall >= 1 && check.port != 0);
  for (const config::Server& server : upstream.servers) PENSTOCK_ASSERT(check.port || server.port);
  PENSTOCK_ASSERT(check.proxy == config::CheckProxy::off ||
                  upstream.proxy_protocol != config::ProxyProtocol::off);
}

void check_config(const config::Config& c) {
  std::set<std::string> upstreams;
  for (const config::Upstream& upstream : c.upstreams) {
    PENSTOCK_ASSERT(upstreams.insert(upstream.name).second);
    PENSTOCK_ASSERT(upstream.servers.empty() != upstream.srv.empty());
    PENSTOCK_ASSERT(upstream.servers.size() <= config::kServersMax);
    std::set<std::string> servers;
    bool all_backup = !upstream.servers.empty();
    for (const config::Server& server : upstream.servers) {
      PENSTOCK_ASSERT(!server.host.empty() && server.port != 0);
      PENSTOCK_ASSERT(server.weight >= 1 && server.weight <= config::kWeightMax);
      PENSTOCK_ASSERT(servers.insert(server.text).second);
      all_backup &= server.backup;
    }
    PENSTOCK_ASSERT(!all_backup);
    const bool v2 = upstream.proxy_protocol == config::ProxyProtocol::v2;
    PENSTOCK_ASSERT(v2 || (!upstream.tlv_unique_id && !upstream.tlv_crc32c));
    if (upstream.check) check_check(upstream, *upstream.check);
  }
  PENSTOCK_ASSERT(!c.listeners.empty());
  const route::Table table(c);
  for (uint32_t i = 0; i < c.listeners.size(); ++i) {
    PENSTOCK_ASSERT(!c.listeners[i].name.empty() && !c.listeners[i].bind.empty());
    for (const config::Bind& bind : c.listeners[i].bind) PENSTOCK_ASSERT(bind.port != 0);
    const std::string_view h2 = "h2";
    const route::Decision d = table.decide(i, {"www.example.net", {&h2, 1}, IpAddress::v4(0xc0000201), 443});
    PENSTOCK_ASSERT(d.reject || d.upstream < c.upstreams.size());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);

  const config::EnvFile env = config::parse_env(text, "penstock.env");
  check_diagnostics(env.diagnostics, "penstock.env:");

  const config::Parsed parsed =
      config::parse(text, "penstock.toml", [](std::string_view name) -> std::optional<std::string> {
        if (name == "MAILBOX_HOST") return "mailbox.example.net";
        if (name == "BYTES") return "\xff\x01\"";
        return std::nullopt;
      });
  check_diagnostics(parsed.diagnostics, "penstock.toml:");
  bool errors = false;
  for (const config::Diagnostic& d : parsed.diagnostics) errors |= d.is_error;
  PENSTOCK_ASSERT(parsed.config.has_value() != errors);
  if (parsed.config) check_config(*parsed.config);
  return 0;
}
