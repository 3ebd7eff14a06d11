// SPDX-License-Identifier: Apache-2.0
// penstock.env, ${NAME} in strings, and load(), which brings both together.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "config/config.h"
#include "config/expand.h"

namespace penstock::config {
namespace {

using Values = std::map<std::string, std::string, std::less<>>;

TEST(EnvFile, Lines) {
  const EnvFile file = parse_env(
      "# the mailbox\n"
      "\n"
      "A=plain\n"
      "  export B = \t spaced value \r\n"
      "C=\"double # 'quoted' \"   # comment\n"
      "D='single \"quoted\" ${A} \\'\n"
      "E=\n"
      "F=value # comment\n"
      "G=value#not-a-comment\n"
      "H=# nothing\n"
      "I=a=b\n"
      "A=the last one counts",
      "penstock.env");
  EXPECT_TRUE(file.diagnostics.empty());
  const Values expected = {{"A", "the last one counts"},
                           {"C", "double # 'quoted' "},
                           {"D", "single \"quoted\" ${A} \\"},
                           {"E", ""},
                           {"F", "value"},
                           {"G", "value#not-a-comment"},
                           {"H", ""},
                           {"I", "a=b"},
                           {"B", "spaced value"}};
  EXPECT_EQ(file.values, expected);
}

TEST(EnvFile, Mistakes) {
  const struct {
    const char *line, *error;
  } cases[] = {
      {"MAILBOX",
       "e:1:1: error: \"MAILBOX\" does not set a variable; accepted: NAME=value, NAME of letters, digits and "
       "_"},
      {"  1A=b",
       "e:1:3: error: \"1A\" does not set a variable; accepted: NAME=value, NAME of letters, digits and _"},
      {"=b",
       "e:1:1: error: \"\" does not set a variable; accepted: NAME=value, NAME of letters, digits and _"},
      {"export A-B=c",
       "e:1:8: error: \"A-B\" does not set a variable; accepted: NAME=value, NAME of letters, digits and _"},
      {"A=\"b", "e:1:3: error: a quote is not closed on its line; accepted: NAME=value, NAME=\"value\""},
      {"A='b' c", "e:1:3: error: \"c\" after the closing quote; accepted: a comment or nothing"},
      {"\xff=b",
       "e:1:1: error: \"\\xff\" does not set a variable; accepted: NAME=value, NAME of letters, digits and "
       "_"},
  };
  for (const auto& c : cases) {
    const EnvFile file = parse_env(c.line, "e");
    ASSERT_EQ(file.diagnostics.size(), 1u) << c.line;
    EXPECT_EQ(file.diagnostics[0].text, c.error);
    EXPECT_TRUE(file.values.empty());
  }
}

TEST(EnvFile, EveryMistakeIsNamedAndTheRestIsRead) {
  const EnvFile file = parse_env("A\nB=1\nC\n", "e");
  ASSERT_EQ(file.diagnostics.size(), 2u);
  EXPECT_TRUE(file.diagnostics[0].text.starts_with("e:1:1: "));
  EXPECT_TRUE(file.diagnostics[1].text.starts_with("e:3:1: "));
  EXPECT_EQ(file.values, (Values{{"B", "1"}}));
}

std::string expanded(std::string_view text) {
  const Values values = {{"HOST", "mailbox.example.net"}, {"EMPTY", ""}, {"NESTED", "${HOST}"}};
  const Result<std::string> out = expand(text, [&](std::string_view name) -> std::optional<std::string> {
    const auto found = values.find(name);
    if (found == values.end()) return std::nullopt;
    return found->second;
  });
  return out ? out.value() : "error: " + out.error().message;
}

TEST(Expand, Table) {
  constexpr auto kNotAName =
      " does not name a variable; accepted: ${NAME} or ${NAME:-default}, NAME of letters, digits and _";
  const struct {
    std::string text, out;
  } cases[] = {
      {"", ""},
      {"plain $HOST $ {HOST} }", "plain $HOST $ {HOST} }"},
      {"${HOST}", "mailbox.example.net"},
      {"a ${HOST}:443 ${HOST}", "a mailbox.example.net:443 mailbox.example.net"},
      {"${NESTED}", "${HOST}"},
      {"[${EMPTY}]", "[]"},
      {"${EMPTY:-x}", "x"},
      {"${HOST:-x}", "mailbox.example.net"},
      {"${UNSET:-x y:-z}", "x y:-z"},
      {"${UNSET:-}", ""},
      {"${UNSET}",
       "error: UNSET is not set, neither in the environment nor in the env file; accepted: UNSET=value in "
       "either, or "
       "${UNSET:-default} here"},
      {"a${HOST", std::string("error: \"${HOST\"") + kNotAName},
      {"${}", std::string("error: \"${}\"") + kNotAName},
      {"${1A}b", std::string("error: \"${1A}\"") + kNotAName},
      {"${HOST-x}", std::string("error: \"${HOST-x}\"") + kNotAName},
  };
  for (const auto& c : cases) EXPECT_EQ(expanded(c.text), c.out) << c.text;
}

class Load : public testing::Test {
 protected:
  Load() {
    std::string pattern = testing::TempDir() + "penstock_load_XXXXXX";
    directory_ = mkdtemp(pattern.data());
    unsetenv("PENSTOCK_TEST_HOST");
  }
  ~Load() override {
    unsetenv("PENSTOCK_TEST_HOST");
    std::filesystem::remove_all(directory_);
  }
  std::string write(const std::string& name, std::string_view text) {
    std::ofstream(path(name)) << text;
    return path(name);
  }
  std::string path(const std::string& name) const { return directory_ / name; }

  static constexpr std::string_view kConfig =
      "upstream.a.servers = '${PENSTOCK_TEST_HOST}'\n[[listener]]\nbind = ':25'\nupstream = 'a'\n";
  static std::string host(const Parsed& parsed) {
    return parsed.config ? parsed.config->upstreams[0].servers[0].host : parsed.diagnostics.at(0).text;
  }

 private:
  std::filesystem::path directory_;
};

TEST_F(Load, TheEnvFileBesideTheConfiguration) {
  const std::string file = write("penstock.toml", kConfig);
  write("penstock.env", "PENSTOCK_TEST_HOST=beside\n");
  EXPECT_EQ(host(load(file, std::nullopt)), "beside");
}

TEST_F(Load, AnotherEnvFileInsteadOfIt) {
  const std::string file = write("penstock.toml", kConfig);
  write("penstock.env", "PENSTOCK_TEST_HOST=beside\n");
  EXPECT_EQ(host(load(file, write("other.env", "PENSTOCK_TEST_HOST=other\n"))), "other");
}

TEST_F(Load, TheProcessEnvironmentComesFirst) {
  const std::string file = write("penstock.toml", kConfig);
  write("penstock.env", "PENSTOCK_TEST_HOST=beside\n");
  setenv("PENSTOCK_TEST_HOST", "process", 1);
  EXPECT_EQ(host(load(file, std::nullopt)), "process");
}

TEST_F(Load, WithoutAnEnvFileAnUnsetNameIsAnErrorOfItsLine) {
  const std::string file = write("penstock.toml", kConfig);
  EXPECT_EQ(
      host(load(file, std::nullopt)),
      file +
          ":1:22: error: PENSTOCK_TEST_HOST is not set, neither in the environment nor in the env file; "
          "accepted: PENSTOCK_TEST_HOST=value in either, or ${PENSTOCK_TEST_HOST:-default} here");
}

TEST_F(Load, FilesThatCannotBeRead) {
  const Parsed parsed = load(path("no.toml"), path("no.env"));
  EXPECT_FALSE(parsed.config);
  ASSERT_EQ(parsed.diagnostics.size(), 2u);
  EXPECT_EQ(parsed.diagnostics[0].text,
            path("no.toml") + ":1:1: error: cannot be read: No such file or directory");
  EXPECT_EQ(parsed.diagnostics[1].text,
            path("no.env") + ":1:1: error: cannot be read: No such file or directory");

  const Parsed directory = load(path(""), std::nullopt);
  ASSERT_EQ(directory.diagnostics.size(), 1u);
  EXPECT_EQ(directory.diagnostics[0].text, path("") + ":1:1: error: cannot be read: Is a directory");
}

TEST_F(Load, AnEnvFileTooLargeOrWrongIsAnErrorEvenWhenNothingUsesIt) {
  const std::string file =
      write("penstock.toml", "upstream.a.servers = '::1'\n[[listener]]\nbind = ':25'\nupstream = 'a'\n");
  const Parsed large = load(file, write("large.env", std::string((1 << 20) + 1, '#')));
  EXPECT_FALSE(large.config);
  ASSERT_EQ(large.diagnostics.size(), 1u);
  EXPECT_EQ(large.diagnostics[0].text,
            path("large.env") + ":1:1: error: cannot be read: it is larger than 1 MiB");

  const Parsed wrong = load(file, write("wrong.env", "HOST\n"));
  EXPECT_FALSE(wrong.config);
  ASSERT_EQ(wrong.diagnostics.size(), 1u);
  EXPECT_TRUE(wrong.diagnostics[0].text.starts_with(path("wrong.env") + ":1:1: error: "))
      << wrong.diagnostics[0].text;
}

}  // namespace
}  // namespace penstock::config
