// SPDX-License-Identifier: Apache-2.0
// tools/penstock/table.h: rows of printable ASCII in aligned columns.
#pragma once
#include <string>
#include <vector>

namespace penstock::command {

class Table {
 public:
  // A title that starts with '>' is a column of numbers: aligned to the right.
  explicit Table(std::vector<std::string> titles);
  void add(std::vector<std::string> row);  // REQUIRES: one cell for each title
  bool empty() const { return rows_.size() == 1; }
  std::string text() const;  // lines without trailing blanks; with the titles first

 private:
  std::vector<bool> right_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace penstock::command
