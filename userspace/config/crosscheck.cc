// SPDX-License-Identifier: Apache-2.0
#include "config/crosscheck.h"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "config/unreachable.h"

namespace penstock::config {
namespace {

class References {
 public:
  References(const Config& config, Diagnostics* diagnostics) : diagnostics_(diagnostics) {
    for (const Upstream& u : config.upstreams) names_.push_back(u.name);
    defined_.insert(names_.begin(), names_.end());
  }

  void check(const std::string& upstream, Position at) {
    if (upstream.empty()) {
      all_known_ = false;
      return;
    }
    used_.insert(upstream);
    if (defined_.contains(upstream)) return;
    all_known_ = false;
    const std::optional<std::string_view> near = nearest(upstream, names_);
    diagnostics_->error(at, fmt::format("upstream {} is not defined; {}", quoted(upstream),
                                        near ? "did you mean " + quoted(*near) + "?"
                                             : "accepted: the NAME of an [upstream.NAME]"));
  }

  // Says nothing while a reference is in doubt: it may have meant the one that seems unused.
  void warn_of_unused(const Places& places) const {
    for (size_t i = 0; all_known_ && i < names_.size(); ++i) {
      if (used_.contains(names_[i])) continue;
      diagnostics_->warning(places.upstreams[i], fmt::format("upstream {} is not used", quoted(names_[i])));
    }
  }

 private:
  Diagnostics* diagnostics_;
  std::vector<std::string_view> names_;
  std::set<std::string_view> defined_;
  std::set<std::string, std::less<>> used_;
  bool all_known_ = true;
};

void check_names(const Config& config, const Places& places, Diagnostics* diagnostics) {
  std::map<std::string_view, uint32_t> first_line;
  for (size_t i = 0; i < config.listeners.size(); ++i) {
    const std::string& name = config.listeners[i].name;
    const Position at = places.listeners[i].name;
    const auto [first, is_new] = first_line.try_emplace(name, at.line);
    if (name.empty() || is_new) continue;
    diagnostics->error(
        at, fmt::format("listener {} is defined twice, first at line {}", quoted(name), first->second));
  }
}

// The addresses a bind takes. One of a single address and one of every address go together, as do one of a
// device and one of every device: the nearer one is reached.
std::vector<IpAddress> taken_by(const Bind& bind) {
  if (bind.address) return {*bind.address};
  return {IpAddress::v4(INADDR_ANY), IpAddress{}};
}

void check_binds(const Config& config, const Places& places, Diagnostics* diagnostics) {
  struct First {
    std::string text;
    uint32_t line;
  };
  std::map<std::tuple<std::string_view, uint16_t, IpAddress>, First> firsts;
  for (size_t i = 0; i < config.listeners.size(); ++i) {
    for (size_t j = 0; j < config.listeners[i].bind.size(); ++j) {
      const Bind& bind = config.listeners[i].bind[j];
      const Position at = places.listeners[i].bind[j];
      for (const IpAddress& address : taken_by(bind)) {
        const auto [first, is_new] = firsts.try_emplace({config.listeners[i].interface, bind.port, address},
                                                        First{bind.text, at.line});
        if (is_new) continue;
        diagnostics->error(at, fmt::format("bind {} is taken already, by {} at line {}", quoted(bind.text),
                                           quoted(first->second.text), first->second.line));
        break;
      }
    }
  }
}

// By the ports that IANA gives to TLS from the first byte on, and to STARTTLS.
void warn_of_checks(const Config& config, const Places& places, Diagnostics* diagnostics) {
  for (size_t i = 0; i < config.upstreams.size(); ++i) {
    const Upstream& u = config.upstreams[i];
    if (!u.check) continue;
    std::set<uint16_t> ports;
    if (u.check->port) ports.insert(*u.check->port);
    for (const Server& s : u.servers)
      if (!u.check->port && s.port) ports.insert(*s.port);
    for (const uint16_t port : ports) {
      const bool in_tls = port == 443 || port == 465 || port == 993,
                 plain = port == 25 || port == 143 || port == 587;
      if (in_tls && (u.check->type == CheckType::smtp || u.check->type == CheckType::imap))
        diagnostics->warning(
            places.upstreams[i],
            fmt::format("upstream {}: port {} speaks TLS from the first byte on, so its check "
                        "hears nothing; accepted: type = \"tls\"",
                        quoted(u.name), port));
      if (plain && u.check->type == CheckType::tls)
        diagnostics->warning(places.upstreams[i],
                             fmt::format("upstream {}: port {} does not begin with TLS, so its check fails; "
                                         "accepted: type = \"{}\"",
                                         quoted(u.name), port, port == 143 ? "imap" : "smtp"));
    }
  }
}

void warn_of_unreachable(const Config& config, const Places& places, Diagnostics* diagnostics) {
  for (size_t i = 0; i < config.listeners.size(); ++i) {
    const std::vector<RoutePlaces>& routes = places.listeners[i].routes;
    for (const Unreachable& u : unreachable_routes(config.listeners[i])) {
      diagnostics->warning(routes[u.route].route,
                           u.covered_by
                               ? fmt::format("this route can never match: the one at line {} matches first",
                                             routes[*u.covered_by].route.line)
                               : "this route can never match: its listener binds none of its ports");
    }
  }
}

}  // namespace

void crosscheck(const Config& config, const Places& places, Diagnostics* diagnostics) {
  check_names(config, places, diagnostics);
  check_binds(config, places, diagnostics);

  References references(config, diagnostics);
  for (size_t i = 0; i < config.listeners.size(); ++i) {
    const Listener& listener = config.listeners[i];
    references.check(listener.upstream, places.listeners[i].upstream);
    for (size_t j = 0; j < listener.routes.size(); ++j) {
      const Route& route = listener.routes[j];
      if (!route.reject) references.check(route.upstream, places.listeners[i].routes[j].upstream);
    }
  }
  references.warn_of_unused(places);
  if (diagnostics->has_errors()) return;
  warn_of_unreachable(config, places, diagnostics);
  warn_of_checks(config, places, diagnostics);
}

}  // namespace penstock::config
