// SPDX-License-Identifier: Apache-2.0
#include "daemon/reload.h"

#include <fmt/format.h>
#include <chrono>

#include "base/log.h"

namespace penstock::daemon {
namespace {

double now_unix_s() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

Json refused(const std::string& reason, const Json& diagnostics = Json::array()) {
  return {{"reloaded", false}, {"reason", reason}, {"diagnostics", diagnostics}};
}

}  // namespace

std::vector<std::string> needs_restart(const config::Config& running, const config::Config& wanted) {
  std::vector<std::string> keys;
  auto compare = [&](const char* key, const auto& a, const auto& b) {
    if (a != b) keys.push_back(key);
  };
  compare("daemon.threads", running.daemon.threads, wanted.daemon.threads);
  compare("daemon.engine", running.daemon.engine, wanted.daemon.engine);
  compare("daemon.user", running.daemon.user, wanted.daemon.user);
  compare("daemon.group", running.daemon.group, wanted.daemon.group);
  compare("daemon.log.format", running.daemon.log_format, wanted.daemon.log_format);
  compare("admin.socket", running.admin.socket, wanted.admin.socket);
  compare("admin.http", running.admin.http, wanted.admin.http);
  compare("bpf.pin", running.bpf.pin, wanted.bpf.pin);
  compare("bpf.max_flows", running.bpf.max_flows, wanted.bpf.max_flows);
  return keys;
}

Reload::Reload(Arguments arguments, config::Config started_with, uint64_t reloads, Apply apply)
    : arguments_(std::move(arguments)),
      started_with_(std::move(started_with)),
      apply_(std::move(apply)),
      loaded_unix_s_(now_unix_s()),
      reloads_(reloads) {}

Json Reload::run() {
  std::lock_guard one(running_);
  if (before) before();
  Json answer = read_and_apply();
  if (after) after();
  std::lock_guard lock(mutex_);
  if (!answer["reloaded"].get<bool>()) {
    error_ = answer["reason"].get<std::string>();
    refused_unix_s_ = now_unix_s();
    refused_++;
    log::error("reload: nothing has changed: {}", error_);
    if (const Json& mistakes = answer["diagnostics"]; !mistakes.empty())
      error_ += ": " + mistakes[0].get<std::string>();
    return answer;
  }
  error_.clear();
  pending_ = answer["pending"].get<std::vector<std::string>>();
  loaded_unix_s_ = now_unix_s();
  reloads_++;
  log::info("reloaded {}", arguments_.config);
  for (const auto& key : pending_) log::warn("reload: {} is pending: it is read at a start only", key);
  return answer;
}

Json Reload::read_and_apply() {
  {
    std::lock_guard lock(mutex_);
    if (!refusal_.empty()) return refused(refusal_);
  }
  config::Source source;
  config::Parsed parsed = config::load(arguments_.config, arguments_.env_file, &source);
  Json errors = Json::array(), warnings = Json::array();
  for (const config::Diagnostic& d : parsed.diagnostics) (d.is_error ? errors : warnings).push_back(d.text);
  if (!parsed.config) {
    for (const auto& text : errors) log::error("{}", text.get<std::string>());
    return refused(fmt::format("{} in the configuration",
                               errors.size() == 1 ? "a mistake" : fmt::format("{} mistakes", errors.size())),
                   errors);
  }
  auto waiting = apply_(*parsed.config, source);
  if (!waiting) return refused(waiting.error().message);
  return {{"reloaded", true},
          {"warnings", warnings},
          {"waiting", *waiting},
          {"pending", needs_restart(started_with_, *parsed.config)}};
}

void Reload::refuse(std::string why) {
  std::lock_guard lock(mutex_);
  refusal_ = std::move(why);
}

void Reload::go_on(const config::Config& current) {
  std::lock_guard lock(mutex_);
  pending_ = needs_restart(started_with_, current);
}

Json Reload::state() const {
  std::lock_guard lock(mutex_);
  Json out = {{"file", arguments_.config}, {"generation", reloads_ + 1}, {"loaded_unix_s", loaded_unix_s_},
              {"reloads", reloads_},       {"refused", refused_},        {"pending", pending_}};
  if (!error_.empty()) out.update({{"error", error_}, {"refused_unix_s", refused_unix_s_}});
  return out;
}

}  // namespace penstock::daemon
