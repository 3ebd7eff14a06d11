// SPDX-License-Identifier: Apache-2.0
#include "config/document.h"

// Some of toml++'s assertions hold of valid text alone ("[^"), and stand before the error it would report.
#define TOML_ASSERT(condition) static_assert(true)
#include <toml++/toml.h>

#include <algorithm>

#include "config/expand.h"

namespace penstock::config {
namespace {

constexpr size_t kTextBytesMax = 1 << 20;
constexpr int kBracketsMax = 32;
constexpr int kKeyDotsMax = 8;
constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";
constexpr std::string_view kWhiteSpace = " \t\n\v\f\r";

struct Refusal {
  Position at;
  std::string why;
};

// What toml++ must not see: text nested too deeply, and characters beyond ASCII where it looks for white
// space: its answer whether they are some is undefined behaviour. Walks brackets and dots outside strings and
// comments. It need not tell valid TOML from invalid: up to the first mistake both parsers see the same
// tokens, and toml++ goes no further.
class Scan {
 public:
  explicit Scan(std::string_view text) : text_(text) {
    if (text_.starts_with(kByteOrderMark)) text_.remove_prefix(kByteOrderMark.size());
  }

  std::optional<Refusal> refusal() {
    int brackets = 0, dots = 0;
    for (; at_ < text_.size(); ++at_) {
      switch (text_[at_]) {
        case '#':
          skip_comment();
          break;
        case '"':
        case '\'':
          if (!skip_string(text_[at_])) return not_ascii();
          break;
        case '[':
        case '{':
          ++brackets, dots = 0;
          break;
        case ']':
        case '}':
          --brackets, dots = 0;
          break;
        case '=':
          if (brackets == 0 && value_at_ == text_.npos) value_at_ = at_;
          dots = 0;
          break;
        case '\n':
          value_at_ = text_.npos;
          dots = 0;
          break;
        case ',':
          dots = 0;
          break;
        case '.':
          ++dots;
          break;
        default:
          if (!is_ascii(text_[at_])) return not_ascii();
      }
      if (brackets > kBracketsMax || dots > kKeyDotsMax)
        return Refusal{
            position(),
            fmt::format("nested too deeply; accepted: {} brackets within each other, {} dots in a key",
                        kBracketsMax, kKeyDotsMax)};
    }
    return std::nullopt;
  }

 private:
  static bool is_ascii(char c) { return (static_cast<unsigned char>(c) & 0x80) == 0; }

  Refusal not_ascii() const {
    return {
        position(),
        "a character that is not ASCII; accepted in comments, and in strings with white space or = in front "
        "of them, there not behind a backslash"};
  }

  // Without white space, a comma or the equals sign of its line somewhere in front, toml++ may see no string
  // here but a number and what follows it.
  bool is_certainly_string() const {
    const size_t before = text_.substr(0, at_).find_last_not_of("[{");
    return before == text_.npos || text_[before] == ',' || before == value_at_ ||
           kWhiteSpace.find(text_[before]) != kWhiteSpace.npos;
  }

  // Each leaves at_ on the last byte it took; false: on one that is refused.
  void skip_comment() { at_ = std::min(text_.find('\n', at_), text_.size()) - 1; }
  bool skip_string(char quote) {
    const std::string triple(3, quote);
    const bool multi_line = text_.substr(at_, 3) == triple, may_be_any = is_certainly_string();
    at_ += multi_line ? 3 : 1;
    for (; at_ < text_.size(); ++at_) {
      if (!may_be_any && !is_ascii(text_[at_])) return false;
      if (quote == '"' && text_[at_] == '\\') {
        // Behind one that ends a line, toml++ looks for more white space.
        const size_t next = multi_line ? text_.find_first_not_of(kWhiteSpace, at_ + 1) : text_.npos;
        if (next != text_.npos && !is_ascii(text_[next])) {
          at_ = next;
          return false;
        }
        ++at_;
      } else if (multi_line && text_.substr(at_, 3) == triple) {
        at_ += 2;
        while (at_ + 1 < text_.size() && text_[at_ + 1] == quote) ++at_;  // """a quote at its end""""
        return true;
      } else if (!multi_line && (text_[at_] == quote || text_[at_] == '\n')) {
        return true;
      }
    }
    return true;
  }
  Position position() const {
    const std::string_view before = text_.substr(0, at_);
    const size_t line_start = before.rfind('\n') + 1;  // npos + 1 is 0
    return {static_cast<uint32_t>(1 + std::count(before.begin(), before.end(), '\n')),
            static_cast<uint32_t>(1 + at_ - line_start)};
  }

  std::string_view text_;
  size_t at_ = 0;
  size_t value_at_ = std::string_view::npos;  // the first equals sign of the line, outside brackets
};

class TreeBuilder {
 public:
  TreeBuilder(const Lookup& environment, Diagnostics* diagnostics)
      : environment_(environment), diagnostics_(diagnostics) {}

  Node node(const toml::node& from) {
    Node to;
    to.at = position(from.source());
    switch (from.type()) {
      case toml::node_type::string:
        to.kind = Node::Kind::string;
        to.string = expanded(from.as_string()->get(), to.at);
        break;
      case toml::node_type::integer:
        to.kind = Node::Kind::integer;
        to.integer = from.as_integer()->get();
        break;
      case toml::node_type::boolean:
        to.kind = Node::Kind::boolean;
        to.boolean = from.as_boolean()->get();
        break;
      case toml::node_type::floating_point:
        to.kind = Node::Kind::floating;
        break;
      case toml::node_type::none:
      case toml::node_type::date:
      case toml::node_type::time:
      case toml::node_type::date_time:
        to.kind = Node::Kind::date_or_time;
        break;
      case toml::node_type::array:
        to.kind = Node::Kind::array;
        for (const toml::node& item : *from.as_array()) to.items.push_back(node(item));
        break;
      case toml::node_type::table:
        to.kind = Node::Kind::table;
        for (const auto& [key, value] : *from.as_table()) {
          to.members.push_back({std::string(key.str()), position(key.source()), node(value)});
        }
        std::stable_sort(to.members.begin(), to.members.end(),
                         [](const Member& a, const Member& b) { return a.at < b.at; });
        break;
    }
    return to;
  }

  static Position position(const toml::source_region& region) {
    return {std::max(1u, region.begin.line), std::max(1u, region.begin.column)};
  }

 private:
  std::string expanded(const std::string& text, Position at) {
    Result<std::string> out = expand(text, environment_);
    if (out) return std::move(out).value();
    diagnostics_->unknown_value(at, out.error().message);
    return text;
  }

  const Lookup& environment_;
  Diagnostics* diagnostics_;
};

// toml++ shows the text around a mistake as it is.
std::string printable(std::string_view description) {
  std::string out;
  for (const char c : description) out += c == '"' || c == '\\' ? std::string(1, c) : log::escaped({&c, 1});
  return out;
}

}  // namespace

const Member* Node::find(std::string_view key) const {
  const auto found =
      std::find_if(members.begin(), members.end(), [&](const Member& m) { return m.key == key; });
  return found == members.end() ? nullptr : &*found;
}

std::optional<Node> read_document(std::string_view text, const Lookup& environment,
                                  Diagnostics* diagnostics) {
  if (text.size() > kTextBytesMax) {
    diagnostics->error(
        {}, fmt::format("the file is larger than {} bytes; accepted: at most 1 MiB", kTextBytesMax));
    return std::nullopt;
  }
  if (const std::optional<Refusal> refusal = Scan(text).refusal()) {
    diagnostics->error(refusal->at, refusal->why);
    return std::nullopt;
  }
  try {
    return TreeBuilder(environment, diagnostics).node(toml::parse(text));
  } catch (const toml::parse_error& e) {
    diagnostics->error(TreeBuilder::position(e.source()), printable(e.description()));
    return std::nullopt;
  }
}

}  // namespace penstock::config
