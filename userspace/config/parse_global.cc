// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "base/units.h"
#include "bpf/abi.h"
#include "config/address.h"
#include "config/parser.h"

namespace penstock::config {
namespace {

constexpr milliseconds kDurationLeast{1};
constexpr milliseconds kDurationMost = std::chrono::hours(24 * 30);
constexpr int64_t kFlowsMost = 1 << 24;
constexpr size_t kUnixPathBytesMax = 107;  // sockaddr_un.sun_path without its NUL
constexpr size_t kPathBytesMax = 4095;
constexpr size_t kNameServersMax = 8;
constexpr uint16_t kDnsPort = 53;

}  // namespace

std::optional<std::string> Parser::path_of_at_most(const Field& field, size_t bytes_max) {
  const std::string accepted = fmt::format("an absolute path of at most {} bytes", bytes_max);
  const std::optional<std::string> path = reader_.string(field, accepted);
  if (!path) return std::nullopt;
  const bool printable = std::none_of(path->begin(), path->end(), [](unsigned char c) { return c < 0x20; });
  if (path->starts_with('/') && path->size() <= bytes_max && printable) return path;
  diagnostics_->error(field.node.at,
                      fmt::format("{} is {}; accepted: {}", field.key, quoted(*path), accepted));
  return std::nullopt;
}

std::optional<std::string> Parser::path(const Field& field) {
  return path_of_at_most(field, kPathBytesMax);
}

std::optional<std::string> Parser::socket_path(const Field& field) {
  return path_of_at_most(field, kUnixPathBytesMax);
}

std::optional<std::string> Parser::http_address(const Field& field) {
  constexpr std::string_view kAccepted = "an address with a port, \"127.0.0.1:9464\", or \"\" for none";
  const std::optional<std::string> address = reader_.string(field, kAccepted);
  if (!address || address->empty() || parse_bind(*address)) return address;
  diagnostics_->error(field.node.at,
                      fmt::format("{} is {}; accepted: {}", field.key, quoted(*address), kAccepted));
  return std::nullopt;
}

Keys Parser::daemon_keys(Daemon* daemon) {
  Keys log = {
      {"level",
       [=, this](const Field& f) {
         const auto level = reader_.choice<log::Level>(f, {{"debug", log::Level::debug},
                                                           {"info", log::Level::info},
                                                           {"warn", log::Level::warn},
                                                           {"error", log::Level::error}});
         if (level) daemon->log_level = *level;
       }},
      {"format",
       [=, this](const Field& f) {
         const auto format =
             reader_.choice<log::Format>(f, {{"text", log::Format::text}, {"json", log::Format::json}});
         if (format) daemon->log_format = *format;
       }},
      {"access",
       [=, this](const Field& f) {
         if (const auto access = reader_.boolean(f)) daemon->log_access = *access;
       }},
  };
  return {
      {"threads",
       [=, this](const Field& f) {
         const auto threads = reader_.integer(f, {0, PENSTOCK_THREADS_MAX});
         if (threads) daemon->threads = static_cast<unsigned>(*threads);
       }},
      {"engine",
       [=, this](const Field& f) {
         const auto engine = reader_.choice<Engine>(
             f, {{"auto", Engine::automatic}, {"sockmap", Engine::sockmap}, {"io_uring", Engine::io_uring}});
         if (engine) daemon->engine = *engine;
       }},
      {"user", into(&daemon->user, &Parser::text)},
      {"group", into(&daemon->group, &Parser::text)},
      {"shutdown_grace",
       [=, this](const Field& f) {
         const auto grace = reader_.duration(f, milliseconds(0), kDurationMost);
         if (grace) daemon->shutdown_grace = *grace;
       }},
      {"log", section(std::move(log), "daemon.log")},
  };
}

Keys Parser::admin_keys(Admin* admin) {
  return {{"socket", into(&admin->socket, &Parser::socket_path)},
          {"http", into(&admin->http, &Parser::http_address)}};
}

Keys Parser::bpf_keys(Bpf* bpf) {
  return {{"pin", into(&bpf->pin, &Parser::path)}, {"max_flows", [=, this](const Field& f) {
                                                      const auto n = reader_.integer(f, {0, kFlowsMost});
                                                      if (n) bpf->max_flows = static_cast<uint32_t>(*n);
                                                    }}};
}

Keys Parser::flow_keys(Flow* flow) {
  return {{"buffer",
           [=, this](const Field& f) {
             if (const auto bytes = reader_.size(f, 64 << 10, 1 << 30)) flow->buffer_bytes = *bytes;
           }},
          {"pipe", [=, this](const Field& f) {
             if (const auto bytes = reader_.size(f, 4 << 10, 64 << 20)) flow->pipe_bytes = *bytes;
           }}};
}

void Parser::dns(const Field& field) {
  Dns& dns = config_.dns;
  bool ttls_given_well = true;
  const auto ttl = [&](milliseconds* out, milliseconds least) {
    return [&, out, least](const Field& f) {
      const auto value = reader_.duration(f, least, kDurationMost);
      ttls_given_well &= value.has_value();
      if (value) *out = *value;
    };
  };
  const Keys keys = {
      {"servers",
       [&](const Field& f) {
         reader_.one_or_more(f, "at least one address", [&](const Field& item) { name_server(item); });
         if (dns.servers.size() > kNameServersMax) {
           diagnostics_->error(f.node.at, fmt::format("{} servers; accepted: at most {}", dns.servers.size(),
                                                      kNameServersMax));
         }
       }},
      {"ttl_min", ttl(&dns.ttl_min, milliseconds(0))},
      {"ttl_max", ttl(&dns.ttl_max, kDurationLeast)},
      {"stale",
       [&](const Field& f) {
         const auto stale = reader_.duration(f, milliseconds(0), kDurationMost);
         if (stale) dns.stale = *stale;
       }},
  };
  section(keys)(field);
  if (!ttls_given_well || dns.ttl_min <= dns.ttl_max) return;
  const Member* given = field.node.find("ttl_min");
  if (!given) given = field.node.find("ttl_max");
  diagnostics_->error(given->value.at,
                      fmt::format("ttl_min is \"{}\" and ttl_max is \"{}\"; accepted: a ttl_min of at most "
                                  "ttl_max",
                                  duration_text(dns.ttl_min), duration_text(dns.ttl_max)));
}

void Parser::name_server(const Field& field) {
  constexpr std::string_view kAccepted =
      "addresses like \"192.0.2.53\", \"192.0.2.53:5353\", \"2001:db8::53\", \"[2001:db8::53]:5353\"";
  const std::optional<std::string> text = reader_.string(field, kAccepted);
  if (!text) return;
  const Result<Server> server = parse_server(*text);
  if (server && server.value().address) {
    config_.dns.servers.push_back({*server.value().address, server.value().port.value_or(kDnsPort)});
    return;
  }
  diagnostics_->error(field.node.at,
                      fmt::format("server {} is not an address; accepted: {}", quoted(*text), kAccepted));
}

Keys Parser::timeout_keys(Timeouts* timeouts) {
  const auto timeout = [this](std::optional<milliseconds>* out) {
    return [this, out](const Field& f) {
      const auto value = reader_.duration(f, kDurationLeast, kDurationMost);
      if (!value) return;
      if (*out) diagnostics_->error(f.node.at, fmt::format("{} stands twice, alone and in timeouts", f.key));
      *out = value;
    };
  };
  return {
      {"client_hello", timeout(&timeouts->client_hello)}, {"proxy_header", timeout(&timeouts->proxy_header)},
      {"connect", timeout(&timeouts->connect)},           {"idle", timeout(&timeouts->idle)},
      {"half_closed", timeout(&timeouts->half_closed)},   {"keepalive", timeout(&timeouts->keepalive)}};
}

Keys Parser::upstream_timeout_keys(Timeouts* timeouts) {
  Keys keys = timeout_keys(timeouts);
  // The client speaks before there is an upstream.
  std::erase_if(keys, [](const Key& k) { return k.name == "client_hello" || k.name == "proxy_header"; });
  return keys;
}

Keys Parser::limit_keys(Limits* limits) {
  Keys keys = {{"memory", [=, this](const Field& f) {
                  constexpr uint64_t kLeast = 1 << 20, kMost = 1ULL << 44;
                  if (const auto bytes = reader_.size(f, kLeast, kMost)) limits->memory_bytes = *bytes;
                }}};
  for (Key& key : listener_limit_keys(limits)) keys.push_back(std::move(key));
  return keys;
}

Keys Parser::listener_limit_keys(Limits* limits) {
  const auto twice = [this](const Field& f, bool given) {
    if (given) diagnostics_->error(f.node.at, fmt::format("{} stands twice, alone and in limits", f.key));
  };
  const auto flows = [this, twice](std::optional<uint32_t>* out) {
    return [=, this](const Field& f) {
      const auto n = reader_.integer(f, {1, kFlowsMost});
      if (!n) return;
      twice(f, out->has_value());
      *out = static_cast<uint32_t>(*n);
    };
  };
  return {{"max_flows", flows(&limits->max_flows)},
          {"max_flows_per_client", flows(&limits->max_flows_per_client)},
          {"new_flows_per_client", [=, this](const Field& f) {
             const auto rate = reader_.rate(f);
             if (!rate) return;
             twice(f, limits->new_flows_per_client.has_value());
             limits->new_flows_per_client = *rate;
           }}};
}

}  // namespace penstock::config
