// SPDX-License-Identifier: Apache-2.0
// config/parser.h: the tables and keys of the contract, read into a Config. Each table is a list of keys with
// what to do with their values; base/unavailable.h has those that are not there yet.
// parse.cc has the whole, parse_global.cc the tables there is one of, parse_upstream.cc and parse_listener.cc
// the others.
#pragma once
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "config/config.h"
#include "config/crosscheck.h"
#include "config/diagnostics.h"
#include "config/document.h"
#include "config/reader.h"

namespace penstock::config {

struct UpstreamPlaces {
  Position upstream;
  std::vector<Position> servers;  // as in Upstream::servers
  std::optional<Position> check_proxy = {};
};

class Parser {
 public:
  explicit Parser(Diagnostics* diagnostics) : diagnostics_(diagnostics), reader_(diagnostics) {}

  Config run(const Node& root);

 private:
  template <typename T>
  std::function<void(const Field&)> into(T* out, std::optional<T> (Parser::*read)(const Field&)) {
    return [this, out, read](const Field& field) {
      if (std::optional<T> value = (this->*read)(field)) *out = std::move(*value);
    };
  }
  // A table of its own: [name].
  std::function<void(const Field&)> section(Keys keys, std::string_view path = {}) {
    return [this, keys = std::move(keys), path](const Field& field) {
      const std::string name(path.empty() ? field.key : path);
      if (reader_.is_table(field, "a table of keys")) {
        reader_.table(field.node, fmt::format("in [{}]", name), name, keys);
      }
    };
  }

  Keys daemon_keys(Daemon* daemon);
  Keys admin_keys(Admin* admin);
  Keys bpf_keys(Bpf* bpf);
  Keys flow_keys(Flow* flow);
  void dns(const Field& field);
  Keys timeout_keys(Timeouts* timeouts);
  Keys upstream_timeout_keys(Timeouts* timeouts);
  Keys limit_keys(Limits* limits);
  void name_server(const Field& field);
  Keys listener_limit_keys(Limits* limits);
  void upstreams(const Field& field);
  void upstream(const Member& member);
  void server(const Field& field, Upstream* upstream, UpstreamPlaces* places);
  std::optional<std::string> srv_name(const Field& field);
  std::optional<Check> check(const Field& field, UpstreamPlaces* places);
  std::optional<std::string> check_sni(const Field& field);
  // What can only be judged with the whole upstream read.
  void judge_servers(const Node& node, const Upstream& upstream, const UpstreamPlaces& places);
  void judge_families(const Node& node, const Upstream& upstream, const UpstreamPlaces& places);
  void judge_proxy_protocol(const Node& node, Upstream* upstream, const UpstreamPlaces& places);
  void listener(const Node& node);
  void accept_proxy(const Field& field, AcceptProxy* out);
  void route(const Node& node, Listener* listener, ListenerPlaces* places);

  std::optional<std::string> text(const Field& field) { return reader_.string(field, "a string"); }
  std::optional<std::string> path(const Field& field);
  std::optional<std::string> socket_path(const Field& field);
  std::optional<std::string> path_of_at_most(const Field& field, size_t bytes_max);
  std::optional<std::string> name(const Field& field);
  std::optional<std::string> http_address(const Field& field);
  std::optional<std::string> device(const Field& field);
  std::function<void(const Field&)> prefixes(std::vector<Cidr>* out);

  Diagnostics* diagnostics_;
  Reader reader_;
  Config config_;
  Places places_;
};

}  // namespace penstock::config
