// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "base/fd.h"
#include "config/config.h"
#include "config/diagnostics.h"

namespace penstock::config {
namespace {

constexpr size_t kFileBytesMax = 1 << 20;

// An errno, or the bytes: at most one more than kFileBytesMax, so that a parser sees that there are too many.
struct FileText {
  int error = 0;
  std::string text;
};

FileText read_file(const std::string& path) {
  FileText file;
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return {errno, {}};
  char buffer[16384];
  while (file.text.size() <= kFileBytesMax) {
    const ssize_t n = ::read(fd.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return {errno, {}};
    if (n == 0) break;
    file.text.append(buffer, static_cast<size_t>(n));
  }
  return file;
}

Diagnostic unreadable(const std::string& path, std::string_view why) {
  Diagnostics one(path);
  one.error({}, fmt::format("cannot be read: {}", why));
  return one.by_line()[0];
}

std::string beside(const std::string& file, std::string_view name) {
  return file.substr(0, file.rfind('/') + 1).append(name);  // npos + 1 is 0
}

// The process's environment comes first.
Parsed parse_both(const std::string& toml, const std::string& file, const std::string& env_text,
                  const std::string& env_path) {
  const EnvFile env = parse_env(env_text, env_path);
  Parsed parsed = parse(toml, file, [&env](std::string_view name) -> std::optional<std::string> {
    if (const char* value = std::getenv(std::string(name).c_str())) return value;
    const auto found = env.values.find(name);
    if (found == env.values.end()) return std::nullopt;
    return found->second;
  });
  parsed.diagnostics.insert(parsed.diagnostics.begin(), env.diagnostics.begin(), env.diagnostics.end());
  if (!env.diagnostics.empty()) parsed.config.reset();
  return parsed;
}

}  // namespace

Parsed load(const std::string& file, const std::optional<std::string>& env_file, Source* source) {
  Parsed unread;
  const FileText toml = read_file(file);
  if (toml.error != 0) unread.diagnostics.push_back(unreadable(file, std::strerror(toml.error)));

  const std::string env_path = env_file ? *env_file : beside(file, "penstock.env");
  const FileText env_text = read_file(env_path);
  const bool may_be_absent = !env_file && env_text.error == ENOENT;
  if (env_text.error != 0 && !may_be_absent) {
    unread.diagnostics.push_back(unreadable(env_path, std::strerror(env_text.error)));
  } else if (env_text.text.size() > kFileBytesMax) {
    unread.diagnostics.push_back(unreadable(env_path, "it is larger than 1 MiB"));
  }
  if (!unread.diagnostics.empty()) return unread;

  if (source) *source = {toml.text, env_text.text};
  return parse_both(toml.text, file, env_text.text, env_path);
}

Parsed load(const Source& source, const std::string& file) {
  return parse_both(source.toml, file, source.env, beside(file, "penstock.env"));
}

}  // namespace penstock::config
