// SPDX-License-Identifier: Apache-2.0
// Lines that say a table of routes and ask it: the table is read from TOML, and every question must be
// decided as a reader of the lines would who knows the README's sentences and none of our code. A route that
// `penstock check` calls unreachable is never chosen.
//
//   listener 443 8443                          up to 2, each with its routes below it
//   route sni=*.a.test,b.test alpn=h2 source=10.0.0.0/8 port=443 to=1       to=reject, or one of 4 upstreams
//   ask sni=x.a.test alpn=h2,http/1.1 from=10.1.2.3 port=443               of every listener
#include <arpa/inet.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <string>

#include "config/config.h"
#include "config/unreachable.h"
#include "route/route.h"
#include "support/fuzz_text.h"

namespace {

using namespace penstock;
using test::labels_of, test::split;
using Words = std::map<std::string, std::vector<std::string>>;  // "sni": its values

constexpr size_t kLinesMax = 24;

struct Told {
  std::vector<std::string> ports;
  std::vector<Words> routes;
};

Words words_of(const std::string& line) {
  Words words;
  for (const std::string& word : split(line, ' ')) {
    const size_t equals = word.find('=');
    if (equals != word.npos) words[word.substr(0, equals)] = split(word.substr(equals + 1), ',');
  }
  return words;
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  char escape[8];
  for (const char c : text) {
    if (c >= ' ' && c <= '~' && c != '"' && c != '\\' && c != '$') {
      out += c;
    } else {
      snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned char>(c));
      out += escape;
    }
  }
  return out + "\"";
}

// What quoted() says is a code point for each byte, and TOML is UTF-8.
std::string as_said(const std::string& text) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x80) out += static_cast<char>(0xc0 | byte >> 6);
    out += static_cast<char>(byte >= 0x80 ? 0x80 | (byte & 0x3f) : byte);
  }
  return out;
}

std::string toml_of(const std::vector<Told>& listeners) {
  std::string out;
  for (const char* n : {"0", "1", "2", "3"})
    out += std::string("[upstream.u") + n + "]\nservers = [\"192.0.2.1:1" + n + "\"]\n";
  for (size_t i = 0; i < listeners.size(); ++i) {
    out += "[[listener]]\nupstream = \"u0\"\nbind = [";
    for (const std::string& port : listeners[i].ports)
      out += quoted("192.0.2." + std::to_string(i + 1) + ":" + port) + ",";
    out += "]\n";
    for (const Words& route : listeners[i].routes) {
      out += "[[listener.route]]\n";
      for (const auto& [key, values] : route) {
        if (key == "to") {
          out += values[0] == "reject" ? "action = \"reject\"\n"
                                       : "upstream = " + quoted("u" + values[0]) + "\n";
          continue;
        }
        out += quoted(key) + " = [";
        for (const std::string& value : values) out += (key == "port" ? value : quoted(value)) + ",";
        out += "]\n";
      }
    }
  }
  return out;
}

// ---- the reader

struct Asked {
  std::string sni, from;
  std::vector<std::string> alpn;
  int port = 0;
};

std::string lower(std::string text) {
  for (char& c : text)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return text;
}

bool name_matches(std::string pattern, const std::string& name) {
  pattern = lower(pattern);
  if (name.empty()) return false;
  if (pattern == "*") return true;
  if (pattern.ends_with('.')) pattern.pop_back();
  const std::vector<std::string> want = labels_of(pattern), have = labels_of(name);
  if (want.front() == "*")
    return have.size() >= want.size() && std::equal(want.rbegin(), want.rend() - 1, have.rbegin());
  if (want.back() == "*") return have.size() >= 2 && have[0] == want[0];
  return want == have;
}

// Nothing: of an address of this notation nothing is said here (v4-mapped v6).
std::optional<std::string> bits_of(const std::string& address) {
  if (address.find('\0') != address.npos) return std::nullopt;  // inet_pton would stop there
  uint8_t bytes[16];
  const bool v4 = inet_pton(AF_INET, address.c_str(), bytes) == 1;
  if (!v4 && inet_pton(AF_INET6, address.c_str(), bytes) != 1) return std::nullopt;
  constexpr uint8_t kMapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  if (!v4 && memcmp(bytes, kMapped, sizeof kMapped) == 0) return std::nullopt;
  std::string bits;
  for (int i = 0; i < (v4 ? 32 : 128); ++i) bits += bytes[i / 8] >> (7 - i % 8) & 1 ? '1' : '0';
  return bits;
}

bool address_matches(const std::string& prefix, const std::string& address) {
  const size_t slash = prefix.find('/');
  const std::string network = *bits_of(prefix.substr(0, slash)), bits = *bits_of(address);
  if (network.size() != bits.size()) return false;
  const size_t count = slash == prefix.npos ? bits.size() : std::stoul(prefix.substr(slash + 1));
  return network.substr(0, count) == bits.substr(0, count);
}

bool route_matches(const Words& route, const Asked& asked) {
  for (const auto& [key, any_of_these] : route) {
    const auto& values = any_of_these;
    const auto one_does = [&](auto matches) { return std::any_of(values.begin(), values.end(), matches); };
    if (key == "sni" && !one_does([&](const auto& v) { return name_matches(v, asked.sni); })) return false;
    if (key == "source" && !one_does([&](const auto& v) { return address_matches(v, asked.from); }))
      return false;
    if (key == "port" && !one_does([&](const auto& v) { return std::stoi(v) == asked.port; })) return false;
    if (key == "alpn" && !one_does([&](const auto& v) {
          return std::find(asked.alpn.begin(), asked.alpn.end(), as_said(v)) != asked.alpn.end();
        }))
      return false;
  }
  return true;
}

// ---- the comparison

void ask(const Asked& asked, const std::vector<Told>& told, const config::Config& config,
         const route::Table& table) {
  std::vector<std::string_view> alpn(asked.alpn.begin(), asked.alpn.end());
  const route::Query query{asked.sni, alpn, *IpAddress::parse(asked.from), static_cast<uint16_t>(asked.port)};
  for (uint32_t i = 0; i < told.size(); ++i) {
    const std::vector<Words>& routes = told[i].routes;
    const auto first = std::find_if(routes.begin(), routes.end(),
                                    [&](const Words& route) { return route_matches(route, asked); });
    const route::Decision decision = table.decide(i, query);
    if (first == routes.end()) {
      PENSTOCK_ASSERT(decision.route == -1 && !decision.reject && decision.upstream == 0);
      continue;
    }
    const std::string& to = first->at("to")[0];
    PENSTOCK_ASSERT(decision.route == first - routes.begin() && decision.reject == (to == "reject"));
    if (!decision.reject) PENSTOCK_ASSERT(config.upstreams[decision.upstream].name == "u" + to);
    if (std::find(told[i].ports.begin(), told[i].ports.end(), std::to_string(asked.port)) ==
        told[i].ports.end())
      continue;  // nobody can come by it
    for (const config::Unreachable& never : config::unreachable_routes(config.listeners[i]))
      PENSTOCK_ASSERT(never.route != static_cast<size_t>(decision.route));
  }
}

// Can the reader say what it means? Ports go into the TOML as they are: as decimal digits.
bool is_known(const Words& route) {
  const auto all_of = [&](const char* key, auto known) {
    const auto values = route.find(key);
    return values == route.end() || std::all_of(values->second.begin(), values->second.end(), known);
  };
  return all_of("port", [](const std::string& v) { return v.find_first_not_of("0123456789") == v.npos; }) &&
         all_of("source", [](const std::string& prefix) {
           return bits_of(prefix.substr(0, prefix.find('/'))).has_value();
         });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::vector<Told> told;
  std::vector<Asked> questions;
  for (const std::string& line : test::lines_of(data, size, kLinesMax)) {
    Words words = words_of(line);
    if (line.starts_with("listener ") && told.size() < 2) {
      told.push_back({split(line.substr(9), ' '), {}});
    } else if (line.starts_with("route ") && !told.empty()) {
      if (!is_known(words)) return 0;
      told.back().routes.push_back(std::move(words));
    } else if (line.starts_with("ask ")) {
      Asked asked;
      if (words.contains("sni")) asked.sni = words["sni"][0];
      if (words.contains("alpn")) asked.alpn = words["alpn"];
      asked.from = words.contains("from") ? words["from"][0] : "192.0.2.9";
      if (words.contains("port")) asked.port = atoi(words["port"][0].c_str()) & 0xffff;
      if ((asked.sni.empty() || test::is_name(asked.sni)) && bits_of(asked.from)) questions.push_back(asked);
    }
  }
  const config::Parsed parsed =
      config::parse(toml_of(told), "routes.toml", [](std::string_view) { return std::nullopt; });
  for (const config::Diagnostic& d : parsed.diagnostics) test::check_printable(d.text);
  if (!parsed.config) return 0;
  const route::Table table(*parsed.config);
  for (uint32_t i = 0; i < told.size(); ++i) {
    const std::vector<Words>& routes = told[i].routes;
    PENSTOCK_ASSERT(table.needs_client_hello(i) ==
                    std::any_of(routes.begin(), routes.end(),
                                [](const Words& r) { return r.contains("sni") || r.contains("alpn"); }));
  }
  for (const Asked& asked : questions) ask(asked, told, *parsed.config, table);
  return 0;
}
