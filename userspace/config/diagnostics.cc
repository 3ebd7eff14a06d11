// SPDX-License-Identifier: Apache-2.0
#include "config/diagnostics.h"

#include <algorithm>

namespace penstock::config {
namespace {

constexpr size_t kWordBytesMax = 64;  // longer words are not misspelt keys or names

size_t edit_distance(std::string_view a, std::string_view b) {
  // Optimal string alignment: three rows, row i is the distance of a[0, i) to each prefix of b.
  std::vector<size_t> before_last(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    before_last.swap(last);
    last.swap(row);
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const bool same = a[i - 1] == b[j - 1];
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (same ? 0 : 1)});
      const bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
      if (swapped) row[j] = std::min(row[j], before_last[j - 2] + 1);
    }
  }
  return row[b.size()];
}

}  // namespace

bool Diagnostics::has_errors() const {
  return !unknown_.empty() ||
         std::any_of(found_.begin(), found_.end(), [](const Found& f) { return f.is_error; });
}

std::vector<Diagnostic> Diagnostics::by_line() const {
  std::vector<Found> sorted;
  for (const auto& [at, what] : unknown_) sorted.push_back({at, true, what});
  for (const Found& f : found_)
    if (!unknown_.contains(f.at)) sorted.push_back(f);
  std::stable_sort(sorted.begin(), sorted.end(), [](const Found& a, const Found& b) { return a.at < b.at; });
  std::vector<Diagnostic> out;
  for (const Found& f : sorted) {
    out.push_back({f.is_error, fmt::format("{}:{}:{}: {}: {}", file_name_, f.at.line, f.at.column,
                                           f.is_error ? "error" : "warning", f.what)});
  }
  return out;
}

std::string quoted(std::string_view text) {
  return "\"" + log::escaped(text) + "\"";
}

std::optional<std::string_view> nearest(std::string_view word, std::span<const std::string_view> candidates) {
  if (word.size() > kWordBytesMax) return std::nullopt;
  std::optional<std::string_view> best;
  size_t best_distance = std::max<size_t>(1, word.size() / 3) + 1;
  for (const std::string_view candidate : candidates) {
    const size_t distance = edit_distance(word, candidate);
    if (distance >= best_distance) continue;
    best_distance = distance;
    best = candidate;
  }
  return best;
}

}  // namespace penstock::config
