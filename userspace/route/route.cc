// SPDX-License-Identifier: Apache-2.0
#include "route/route.h"

#include <algorithm>
#include <map>

#include "base/assert.h"
#include "config/sni_pattern.h"

namespace penstock::route {

struct Table::Rule {
  config::Route criteria;
  uint32_t upstream = 0;  // valid unless criteria.reject
  bool matches(const Query& query) const;
};

struct Table::PerListener {
  uint32_t upstream;
  bool needs_client_hello;
  std::vector<Rule> rules;  // in the order of the file
};

namespace {

// A key that is absent constrains nothing; one of its values is enough.
template <typename T, typename Matches>
bool any_matches(const std::vector<T>& values, Matches matches) {
  return values.empty() || std::any_of(values.begin(), values.end(), matches);
}

}  // namespace

bool Table::Rule::matches(const Query& query) const {
  return any_matches(criteria.port, [&](uint16_t port) { return port == query.port; }) &&
         any_matches(criteria.source, [&](const Cidr& source) { return source.contains(query.client); }) &&
         any_matches(criteria.alpn,
                     [&](const std::string& alpn) {
                       return std::find(query.alpn.begin(), query.alpn.end(), alpn) != query.alpn.end();
                     }) &&
         any_matches(criteria.sni,
                     [&](const std::string& pattern) { return sni_matches(pattern, query.sni); });
}

Table::Table(const config::Config& config) {
  std::map<std::string_view, uint32_t> index_of;
  for (const config::Upstream& upstream : config.upstreams) {
    index_of.emplace(upstream.name, static_cast<uint32_t>(index_of.size()));
  }
  const auto find = [&](const std::string& name) {
    const auto found = index_of.find(name);
    PENSTOCK_ASSERT(found != index_of.end());
    return found->second;
  };
  for (const config::Listener& listener : config.listeners) {
    PerListener& own = listeners_.emplace_back(PerListener{find(listener.upstream), false, {}});
    for (const config::Route& route : listener.routes) {
      own.needs_client_hello |= !route.sni.empty() || !route.alpn.empty();
      own.rules.push_back({route, route.reject ? 0 : find(route.upstream)});
    }
  }
}

Table::~Table() = default;
Table::Table(Table&&) noexcept = default;

bool Table::needs_client_hello(uint32_t listener) const {
  PENSTOCK_ASSERT(listener < listeners_.size());
  return listeners_[listener].needs_client_hello;
}

Decision Table::decide(uint32_t listener, const Query& query) const {
  PENSTOCK_ASSERT(listener < listeners_.size());
  const PerListener& own = listeners_[listener];
  for (size_t i = 0; i < own.rules.size(); ++i) {
    const Rule& rule = own.rules[i];
    if (rule.matches(query)) return {rule.criteria.reject, rule.upstream, static_cast<int32_t>(i)};
  }
  return {false, own.upstream, -1};
}

bool covers(const std::vector<Cidr>& prefixes, const IpAddress& address) {
  return std::any_of(prefixes.begin(), prefixes.end(), [&](const Cidr& p) { return p.contains(address); });
}

bool allows(const config::Listener& listener, const IpAddress& client) {
  return !covers(listener.deny, client) && (listener.allow.empty() || covers(listener.allow, client));
}

bool sni_matches(std::string_view pattern, std::string_view name) {
  return config::sni_covers(pattern, name);
}

}  // namespace penstock::route
