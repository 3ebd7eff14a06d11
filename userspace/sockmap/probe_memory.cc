// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <sstream>

#include "sockmap/probe.h"

namespace penstock::sockmap {
namespace {

// A file of lines: the format, the boot, the build, the time it took, then "promise|speed yes|no NAME
// DETAIL".
constexpr const char* kFormat = "penstock probe 1";

std::string boot_id() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  std::getline(file, id);
  return id;
}

}  // namespace

std::optional<ProbeReport> remembered(const std::string& path, const std::string& build) {
  std::ifstream file(path);
  std::string format, boot, of_build, elapsed;
  if (!std::getline(file, format) || format != kFormat) return {};
  if (!std::getline(file, boot) || boot.empty() || boot != boot_id()) return {};
  if (!std::getline(file, of_build) || of_build != build) return {};
  ProbeReport report;
  if (!(file >> report.elapsed_ms)) return {};
  std::string kind, ok, name, detail;
  while (file >> kind >> ok >> name && std::getline(file, detail)) {
    if (ok == "no" && kind == "promise") return {};
    report.capabilities.push_back(
        {name, ok == "yes", kind == "promise", detail.substr(detail.empty() ? 0 : 1)});
  }
  if (report.capabilities.empty()) return {};
  return report;
}

void remember(const std::string& path, const std::string& build, const ProbeReport& report) {
  if (!report.sockmap_usable()) {
    ::unlink(path.c_str());
    return;
  }
  std::string written = path + ".new";
  {
    std::ofstream file(written);
    file << kFormat << '\n' << boot_id() << '\n' << build << '\n' << report.elapsed_ms << '\n';
    for (const Capability& c : report.capabilities)
      file << fmt::format("{} {} {} {}\n", c.promise ? "promise" : "speed", c.ok ? "yes" : "no", c.name,
                          c.detail);
    if (!file.flush()) return;
  }
  ::rename(written.c_str(), path.c_str());
}

}  // namespace penstock::sockmap
