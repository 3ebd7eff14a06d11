// SPDX-License-Identifier: Apache-2.0
// config/reader.h: takes typed values out of the tree; whatever does not fit becomes a diagnostic and no
// value.
#pragma once
#include <functional>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "config/config.h"
#include "config/diagnostics.h"
#include "config/document.h"

namespace penstock::config {

struct Field {
  std::string_view key;
  const Node& node;
};

struct Key {
  std::string_view name;
  std::function<void(const Field&)> read;
};
using Keys = std::vector<Key>;

struct Range {
  int64_t least, most;
};

class Reader {
 public:
  explicit Reader(Diagnostics* diagnostics) : diagnostics_(diagnostics) {}

  // Hands every member to the key of its name. `title` is how messages call the table ("[upstream.mailbox]"),
  // `path` how kUnavailableKeys does ("upstream").
  void table(const Node& node, std::string_view title, std::string_view path, const Keys& keys);

  std::optional<std::string> string(const Field& field, std::string_view accepted);
  std::optional<int64_t> integer(const Field& field, Range range);
  std::optional<bool> boolean(const Field& field);
  std::optional<milliseconds> duration(const Field& field, milliseconds least, milliseconds most);
  std::optional<uint64_t> size(const Field& field, uint64_t least, uint64_t most);
  std::optional<Rate> rate(const Field& field);  // "30/1m", "10/s"
  bool is_table(const Field& field, std::string_view accepted);

  template <typename E>
  std::optional<E> choice(const Field& field, std::initializer_list<std::pair<std::string_view, E>> values) {
    std::vector<std::string_view> words;
    for (const auto& [word, value] : values) words.push_back(word);
    const std::optional<size_t> index = index_of(field, words);
    if (!index) return std::nullopt;
    return values.begin()[*index].second;
  }

  // One value or an array of at least one; `item` is called for each.
  void one_or_more(const Field& field, std::string_view accepted,
                   const std::function<void(const Field&)>& item);
  // An array of at least one table, written as `title`; `item` is called for each.
  void tables(const Field& field, std::string_view title, const std::function<void(const Node&)>& item);

  // Either the value, or its error at `at`.
  template <typename T>
  std::optional<T> value_or_report(Result<T> result, Position at) {
    if (result) return std::move(result).value();
    diagnostics_->error(at, result.error().message);
    return std::nullopt;
  }

 private:
  std::optional<size_t> index_of(const Field& field, const std::vector<std::string_view>& words);
  void unknown_key(const Member& member, std::string_view title, std::string_view path, const Keys& keys);
  void refuse(const Field& field, std::string_view accepted);

  Diagnostics* diagnostics_;
};

}  // namespace penstock::config
