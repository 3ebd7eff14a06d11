// SPDX-License-Identifier: Apache-2.0
#include "config/reader.h"

#include <algorithm>
#include <charconv>

#include "base/unavailable.h"
#include "base/units.h"

namespace penstock::config {
namespace {

// A value as a message shows it: itself where it is short, else its kind.
std::string shown(const Node& node) {
  switch (node.kind) {
    case Node::Kind::string:
      return quoted(node.string);
    case Node::Kind::integer:
      return std::to_string(node.integer);
    case Node::Kind::boolean:
      return node.boolean ? "true" : "false";
    case Node::Kind::floating:
      return "a float";
    case Node::Kind::date_or_time:
      return "a date or time";
    case Node::Kind::array:
      return node.items.empty() ? "an empty array" : "an array";
    case Node::Kind::table:
      return "a table";
  }
  return {};
}

std::string joined(const std::vector<std::string_view>& words, std::string_view around) {
  std::string out;
  for (const std::string_view word : words) {
    if (!out.empty()) out += ", ";
    out.append(around).append(word).append(around);
  }
  return out;
}

}  // namespace

void Reader::table(const Node& node, std::string_view title, std::string_view path, const Keys& keys) {
  for (const Member& member : node.members) {
    const auto key =
        std::find_if(keys.begin(), keys.end(), [&](const Key& k) { return k.name == member.key; });
    if (key != keys.end()) {
      key->read({key->name, member.value});
    } else if (const std::string whole = fmt::format("{}.{}", path, member.key);
               is_unavailable(kUnavailableKeys, whole)) {
      diagnostics_->error(member.at, unavailable(whole));
    } else {
      unknown_key(member, title, path, keys);
    }
  }
}

void Reader::unknown_key(const Member& member, std::string_view title, std::string_view path,
                         const Keys& keys) {
  std::vector<std::string_view> accepted;
  for (const Key& key : keys) accepted.push_back(key.name);
  std::vector<std::string_view> known = accepted;  // first, so that they win where equally near
  for (const std::string_view key : kUnavailableKeys) {
    const size_t dot = key.rfind('.');
    if (key.substr(0, dot) == path) known.push_back(key.substr(dot + 1));
  }

  std::string what = fmt::format("unknown key {} {}", quoted(member.key), title);
  if (const std::optional<std::string_view> near = nearest(member.key, known)) {
    const bool available = std::find(accepted.begin(), accepted.end(), *near) != accepted.end();
    what += fmt::format("; did you mean {}{}?", quoted(*near),
                        available ? "" : " (not available in this version)");
    what += " accepted: ";
  } else {
    what += "; accepted: ";
  }
  diagnostics_->error(member.at, what + joined(accepted, ""));
}

void Reader::refuse(const Field& field, std::string_view accepted) {
  diagnostics_->error(field.node.at,
                      fmt::format("{} is {}; accepted: {}", field.key, shown(field.node), accepted));
}

std::optional<std::string> Reader::string(const Field& field, std::string_view accepted) {
  if (field.node.kind == Node::Kind::string) return field.node.string;
  refuse(field, accepted);
  return std::nullopt;
}

std::optional<int64_t> Reader::integer(const Field& field, Range range) {
  const int64_t value = field.node.integer;
  if (field.node.kind == Node::Kind::integer && value >= range.least && value <= range.most) return value;
  refuse(field, fmt::format("an integer from {} to {}", range.least, range.most));
  return std::nullopt;
}

std::optional<bool> Reader::boolean(const Field& field) {
  if (field.node.kind == Node::Kind::boolean) return field.node.boolean;
  refuse(field, "true or false");
  return std::nullopt;
}

std::optional<milliseconds> Reader::duration(const Field& field, milliseconds least, milliseconds most) {
  if (field.node.kind == Node::Kind::string) {
    const std::optional<milliseconds> value = parse_duration(field.node.string);
    if (value && *value >= least && *value <= most) return value;
  }
  refuse(field, fmt::format("a duration from \"{}\" to \"{}\", a string with the unit ms, s, m, h or d",
                            duration_text(least), duration_text(most)));
  return std::nullopt;
}

std::optional<uint64_t> Reader::size(const Field& field, uint64_t least, uint64_t most) {
  if (field.node.kind == Node::Kind::string) {
    const std::optional<uint64_t> value = parse_size(field.node.string);
    if (value && *value >= least && *value <= most) return value;
  }
  refuse(field,
         fmt::format("a size from \"{}\" to \"{}\", a string with the unit B, KiB, MiB, GiB, KB, MB or GB",
                     size_text(least), size_text(most)));
  return std::nullopt;
}

std::optional<Rate> Reader::rate(const Field& field) {
  constexpr uint32_t kCountMost = 1'000'000;
  constexpr milliseconds kLeast{1}, kMost = std::chrono::hours(24);
  const std::string_view text = field.node.string;
  const size_t slash = std::min(text.find('/'), text.size());
  Rate rate;
  const auto [end, error] = std::from_chars(text.data(), text.data() + slash, rate.count);
  if (slash < text.size() && error == std::errc{} && end == text.data() + slash && rate.count >= 1 &&
      rate.count <= kCountMost) {
    std::string time(text.substr(slash + 1));
    if (!time.empty() && (time[0] < '0' || time[0] > '9')) time.insert(0, "1");
    const std::optional<milliseconds> per = parse_duration(time);
    if (per && *per >= kLeast && *per <= kMost) return Rate{rate.count, *per};
  }
  refuse(field,
         fmt::format("\"COUNT/TIME\" like \"30/1m\" or \"10/s\", a count from 1 to {}, a time up to {}",
                     kCountMost, duration_text(kMost)));
  return std::nullopt;
}

bool Reader::is_table(const Field& field, std::string_view accepted) {
  if (field.node.kind == Node::Kind::table) return true;
  refuse(field, accepted);
  return false;
}

void Reader::one_or_more(const Field& field, std::string_view accepted,
                         const std::function<void(const Field&)>& item) {
  if (field.node.kind != Node::Kind::array) return item(field);
  if (field.node.items.empty()) refuse(field, accepted);
  for (const Node& node : field.node.items) item({field.key, node});
}

void Reader::tables(const Field& field, std::string_view title,
                    const std::function<void(const Node&)>& item) {
  const std::vector<Node>& items = field.node.items;
  const bool all_tables =
      field.node.kind == Node::Kind::array && !items.empty() &&
      std::all_of(items.begin(), items.end(), [](const Node& n) { return n.kind == Node::Kind::table; });
  if (!all_tables) return refuse(field, fmt::format("an array of tables, {}", title));
  for (const Node& node : items) item(node);
}

std::optional<size_t> Reader::index_of(const Field& field, const std::vector<std::string_view>& words) {
  if (field.node.kind == Node::Kind::string) {
    const auto found = std::find(words.begin(), words.end(), field.node.string);
    if (found != words.end()) return static_cast<size_t>(found - words.begin());
  }
  refuse(field, joined(words, "\""));
  return std::nullopt;
}

}  // namespace penstock::config
