// SPDX-License-Identifier: Apache-2.0
#include "bpf/abi.h"
#include "config/parser.h"

namespace penstock::config {

Config Parser::run(const Node& root) {
  Timeouts timeouts;
  reader_.table(root, "at the top level", "",
                {{"daemon", section(daemon_keys(&config_.daemon))},
                 {"admin", section(admin_keys(&config_.admin))},
                 {"bpf", section(bpf_keys(&config_.bpf))},
                 {"flow", section(flow_keys(&config_.flow))},
                 {"dns", [this](const Field& f) { dns(f); }},
                 {"timeouts", section(timeout_keys(&timeouts))},
                 {"limits", section(limit_keys(&config_.limits))},
                 {"upstream", [this](const Field& f) { upstreams(f); }},
                 {"listener", [this](const Field& f) {
                    reader_.tables(f, "[[listener]]", [this](const Node& node) { listener(node); });
                    if (config_.listeners.size() > PENSTOCK_LISTENERS_MAX) {
                      diagnostics_->error(f.node.at,
                                          fmt::format("{} listeners; accepted: at most {}",
                                                      config_.listeners.size(), PENSTOCK_LISTENERS_MAX));
                    }
                  }}});
  const auto keep = [](std::optional<milliseconds>* out, const std::optional<milliseconds>& given) {
    if (given) *out = given;
  };
  keep(&config_.timeouts.client_hello, timeouts.client_hello);
  keep(&config_.timeouts.proxy_header, timeouts.proxy_header);
  keep(&config_.timeouts.connect, timeouts.connect);
  keep(&config_.timeouts.idle, timeouts.idle);
  keep(&config_.timeouts.half_closed, timeouts.half_closed);
  keep(&config_.timeouts.keepalive, timeouts.keepalive);

  if (!root.find("listener")) {
    diagnostics_->error({},
                        "there is no listener; accepted: at least one [[listener]] with bind and upstream");
  }
  crosscheck(config_, places_, diagnostics_);
  return std::move(config_);
}

Timeouts default_timeouts() {
  using std::chrono::hours, std::chrono::minutes, std::chrono::seconds;
  return {seconds(5), seconds(5), seconds(5), hours(1), minutes(5), seconds(75)};
}

Parsed parse(std::string_view text, std::string_view file_name, const Lookup& environment) {
  Diagnostics diagnostics(file_name);
  Parsed parsed;
  if (const std::optional<Node> root = read_document(text, environment, &diagnostics)) {
    Config config = Parser(&diagnostics).run(*root);
    if (!diagnostics.has_errors()) parsed.config = std::move(config);
  }
  parsed.diagnostics = diagnostics.by_line();
  return parsed;
}

}  // namespace penstock::config
