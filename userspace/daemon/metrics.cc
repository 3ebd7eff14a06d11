// SPDX-License-Identifier: Apache-2.0
#include "daemon/metrics.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <optional>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/unavailable.h"
#include "daemon/listen.h"
#include "daemon/reload.h"
#include "daemon/snapshot.h"
#include "io/io.h"
#include "keeper/state.h"

namespace penstock::daemon {
namespace {

std::string label_value(std::string_view text) {
  std::string out;
  for (char c : text) {
    if (c == '\\' || c == '"') out += '\\';
    if (c == '\n')
      out += "\\n";
    else
      out += c;
  }
  return out;
}

std::string label(const char* name, std::string_view value) {
  return fmt::format("{}=\"{}\"", name, label_value(value));
}

// One metric after the other, each with all its samples: so the format wants it.
class Exposition {
 public:
  void begin(const char* type, const char* name, const char* help) {
    name_ = name;
    text_ += fmt::format("# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
  }
  template <typename T>
  void sample(const std::string& labels, T value) {
    text_ += name_;
    if (!labels.empty()) text_ += "{" + labels + "}";
    text_ += fmt::format(" {}\n", value);
  }
  template <typename T>
  void counter(const char* name, const char* help, T value) {
    begin("counter", name, help);
    sample("", value);
  }
  template <typename T>
  void gauge(const char* name, const char* help, T value) {
    begin("gauge", name, help);
    sample("", value);
  }
  std::string take() { return std::move(text_); }

 private:
  const char* name_ = "";
  std::string text_;
};

void flows(Exposition& e, const Snapshot& s) {
  const penstock_totals& t = s.totals;
  e.counter("penstock_flows_accepted_total", "Connections accepted; always active + closed.", t.accepted);
  e.gauge("penstock_flows_active", "Flows that live.", t.active);
  e.begin("counter", "penstock_flows_closed_total", "Flows that ended, by the one reason each has.");
#define X(name) e.sample(label("reason", #name), t.closed.name);
  PENSTOCK_CLOSE_REASONS(X)
#undef X
  e.counter("penstock_flows_spliced_total", "Closed flows of which the kernel alone moved every byte.",
            t.spliced_flows);
  e.begin("counter", "penstock_bytes_total",
          "Bytes of closed flows, both directions, by the lane they took.");
  e.sample(label("lane", "splice"), t.spliced_bytes);
  e.sample(label("lane", "relay"), t.relayed_bytes);
  e.begin("counter", "penstock_lane_changes_total", "Times a direction changed its lane, by reason.");
#define X(name) e.sample(label("reason", #name), t.lane_changes.name);
  PENSTOCK_LANE_CHANGES(X)
#undef X
  e.counter("penstock_late_completions_total", "Operations that ended after their flow; dropped.",
            t.late_completions);
  e.counter("penstock_accepts_failed_total", "Times accept(2) failed: descriptors, memory.", t.accept_failed);
  e.gauge("penstock_pipes", "Pipes in use.", t.pipes);
  e.gauge("penstock_pipe_bytes", "Capacity of the pipes in use.", t.pipe_bytes);
  e.counter("penstock_pipes_refused_total", "Times there was no descriptor or memory for a pipe.",
            t.pipes_refused);
  e.counter("penstock_tlvs_dropped_total",
            "TLVs of a proxy in front that were not passed on: too many bytes.", t.tlvs_dropped);
}

// A metric of which every element of the configuration has a sample.
template <typename Named, typename Counters>
void each(Exposition& e, const char* type, const char* name, const char* help, const char* label_name,
          const std::vector<Named>& named, const std::vector<Counters>& counters, __u64 Counters::*value) {
  if (named.empty()) return;
  e.begin(type, name, help);
  for (size_t i = 0; i < named.size(); i++) e.sample(label(label_name, named[i].name), counters[i].*value);
}

void listeners(Exposition& e, const config::Config& c, const Snapshot& s) {
  auto all = [&](const char* type, const char* name, const char* help, __u64 penstock_listener::*value) {
    each(e, type, name, help, "listener", c.listeners, s.listeners, value);
  };
  all("counter", "penstock_listener_flows_accepted_total", "Connections accepted, by listener.",
      &penstock_listener::accepted);
  all("gauge", "penstock_listener_flows_active", "Flows that live, by listener.", &penstock_listener::active);
  all("counter", "penstock_listener_flows_closed_total", "Flows that ended, by listener.",
      &penstock_listener::closed);
}

void upstreams(Exposition& e, const config::Config& c, const Snapshot& s) {
  auto all = [&](const char* type, const char* name, const char* help, __u64 penstock_upstream::*value) {
    each(e, type, name, help, "upstream", c.upstreams, s.upstreams, value);
  };
  all("gauge", "penstock_upstream_flows_active", "Flows that live, by upstream.", &penstock_upstream::active);
  all("counter", "penstock_upstream_dials_total", "Addresses dialled, by upstream.",
      &penstock_upstream::dialed);
  all("counter", "penstock_upstream_dials_failed_total",
      "Addresses that could not be connected to, by upstream.", &penstock_upstream::dial_failed);
  all("counter", "penstock_upstream_resolves_failed_total",
      "Times a server's name had no address, by upstream.", &penstock_upstream::resolve_failed);
}

// How many addresses each listener has, and how many of them are waited for. A half of ":port" that this host
// has no family for is neither.
void addresses(Exposition& e, const flow::Plan& plan, const Facts& facts, Readiness readiness) {
  struct Count {
    uint64_t listening = 0, waiting = 0;
  };
  std::vector<Count> counts(plan.config().listeners.size());
  for (const Listeners::State& s : facts.listeners->states()) {
    const auto index = plan.find_listener(s.listener);
    if (!index || s.optional) continue;
    if (!s.waits.empty())
      counts[*index].waiting++;
    else if (readiness != Readiness::draining)
      counts[*index].listening++;
  }
  e.begin("gauge", "penstock_listener_addresses", "Addresses to listen on, by whether they could be had.");
  for (size_t i = 0; i < counts.size(); i++) {
    const std::string listener = label("listener", plan.config().listeners[i].name);
    e.sample(listener + "," + label("state", "listening"), counts[i].listening);
    e.sample(listener + "," + label("state", "waiting"), counts[i].waiting);
  }
}

struct ServerRow {
  std::string labels;
  const flow::Server* server;  // as long as the plan
  std::optional<check::Health> health;
};

// Those that the configuration names: what an SRV record lists comes and goes as DNS likes, and has no
// series.
std::vector<ServerRow> server_rows(const flow::Plan& plan, const check::Checker& checker) {
  std::vector<ServerRow> rows;
  for (size_t i = 0; i < plan.config().upstreams.size(); i++) {
    if (!plan.config().upstreams[i].srv.empty()) continue;
    plan.servers_at(i).for_each_server([&](const flow::Server& s) {
      rows.push_back({label("upstream", s.upstream()) + "," + label("server", s.what().text), &s,
                      checker.health(check::Target::key_of(s.upstream(), s.what().text))});
    });
  }
  return rows;
}

// A sample for each server that has this value.
template <typename Value>
void each_server(Exposition& e, const std::vector<ServerRow>& rows, const char* type, const char* name,
                 const char* help, Value value) {
  bool begun = false;
  for (const ServerRow& row : rows) {
    const auto found = value(row);
    if (!found) continue;
    if (!std::exchange(begun, true)) e.begin(type, name, help);
    e.sample(row.labels, *found);
  }
}

void servers(Exposition& e, const std::vector<ServerRow>& rows) {
  each_server(e, rows, "gauge", "penstock_server_up",
              "0: down by its checks, or passed over because dials failed; else 1.", [](const ServerRow& r) {
                const bool down = r.server->health == flow::Health::down;
                return std::optional(down || r.server->shunned(io::now_ns()) ? 0 : 1);
              });
  each_server(e, rows, "gauge", "penstock_server_drained", "1: gets no new flows, by command.",
              [](const ServerRow& r) { return std::optional(r.server->drained ? 1 : 0); });
  each_server(e, rows, "gauge", "penstock_server_flows_active", "Flows that dial it or are open.",
              [](const ServerRow& r) { return std::optional(r.server->flows.load()); });
}

void checks(Exposition& e, const std::vector<ServerRow>& rows) {
  using Seconds = std::chrono::duration<double>;
  const auto now = std::chrono::system_clock::now();
  bool begun = false;
  for (const ServerRow& row : rows) {
    if (!row.health) continue;
    if (!std::exchange(begun, true))
      e.begin("counter", "penstock_checks_total", "Checks of a server that ended, by result.");
    e.sample(row.labels + "," + label("result", "passed"), row.health->checks - row.health->failed);
    e.sample(row.labels + "," + label("result", "failed"), row.health->failed);
  }
  each_server(e, rows, "counter", "penstock_check_changes_total",
              "Times the checks found a server down that was up, or up that was down.",
              [](const ServerRow& r) { return r.health ? std::optional(r.health->changes) : std::nullopt; });
  each_server(e, rows, "gauge", "penstock_check_age_seconds", "Since the last check of a server ended.",
              [&](const ServerRow& r) {
                return r.health && r.health->checked
                           ? std::optional(Seconds(now - *r.health->checked).count())
                           : std::nullopt;
              });
  each_server(e, rows, "gauge", "penstock_check_certificate_left_seconds",
              "Until the certificate that a tls check saw expires; negative once it has.",
              [&](const ServerRow& r) {
                return r.health && r.health->certificate
                           ? std::optional(Seconds(r.health->certificate->not_after - now).count())
                           : std::nullopt;
              });
}

void dns(Exposition& e, const dns::Counters& c) {
  e.begin("counter", "penstock_dns_questions_total", "Names asked for, by what came of it.");
  e.sample(label("result", "answered"), c.answered);
  e.sample(label("result", "no_such_name"), c.no_such_name);
  e.sample(label("result", "failed"), c.failed);
  e.counter("penstock_dns_stale_answers_total",
            "Times an answer was used beyond its TTL, for want of a new one.", c.stale);
}

void configuration(Exposition& e, const Json& state) {
  e.gauge("penstock_config_generation", "Configurations put to work so far; 1 is that of the start.",
          state.at("generation").get<uint64_t>());
  e.gauge("penstock_config_loaded_timestamp_seconds", "When the one at work was read, since the epoch.",
          state.at("loaded_unix_s").get<double>());
  e.gauge("penstock_config_last_reload_successful", "0: the last reload changed nothing, for a mistake.",
          state.contains("error") ? 0 : 1);
  e.counter("penstock_config_reloads_refused_total", "Reloads that changed nothing, for a mistake.",
            state.at("refused").get<uint64_t>());
  e.gauge("penstock_config_pending_keys", "Keys that were changed and wait for a restart.",
          state.at("pending").size());
}

void memory_and_limits(Exposition& e, const flow::Shared& shared, const Facts& facts, const Snapshot& s) {
  e.gauge("penstock_held_bytes", "Kernel memory that waits in the sockmap.", s.globals.held_bytes);
  e.gauge("penstock_memory_limit_bytes", "limits.memory: of held and pipes together.",
          shared.memory_limit_bytes.load());
  e.gauge("penstock_flows_limit", "bpf.max_flows: how many flows may live at once.", facts.flows_max);
  e.gauge("penstock_threads", "Worker threads.", shared.workers.size());
  e.counter("penstock_log_lines_dropped_total", "Log lines lost because their reader was slow.",
            s.log_lines_dropped);
  e.counter("penstock_clients_forgotten_total",
            "Times the limits of a client lost sight of one: too many came.", s.clients_forgotten);
}

void sockmap(Exposition& e, const penstock_globals& g) {
  e.counter("penstock_sockmap_closes_total",
            "Directions the kernel took out of the sockmap: too much waited.", g.closes);
  e.counter("penstock_sockmap_closes_refused_total",
            "Times it could not yet; tried again at the next segment.", g.closes_refused);
  e.counter("penstock_sockmap_trims_total", "Segments whose payload was cut off to keep the bound.", g.trims);
  e.counter("penstock_sockmap_overlaps_total", "Segments cut because part of them had been read.",
            g.overlaps);
  e.counter("penstock_sockmap_overlap_bytes_total", "Bytes cut from those.", g.overlap_bytes);
  e.counter("penstock_sockmap_pulls_total", "Segments made linear.", g.pulls);
  e.counter("penstock_sockmap_pulls_failed_total", "Segments that could not be.", g.pulls_failed);
}

// The names every client library of Prometheus has for these.
void process(Exposition& e, const Facts& facts) {
  rusage used{};
  getrusage(RUSAGE_SELF, &used);
  auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6;
  };
  e.counter("process_cpu_seconds_total", "CPU time, user and system.",
            seconds(used.ru_utime) + seconds(used.ru_stime));
  e.gauge("process_start_time_seconds", "Since the epoch.", facts.started_unix_s);
  uint64_t pages_all = 0, pages = 0;
  std::ifstream("/proc/self/statm") >> pages_all >> pages;
  e.gauge("process_resident_memory_bytes", "Resident memory.",
          pages * static_cast<uint64_t>(sysconf(_SC_PAGESIZE)));
  std::error_code ignored;  // without /proc there is nothing to count
  std::filesystem::directory_iterator open("/proc/self/fd", ignored);
  e.gauge("process_open_fds", "Open descriptors.", std::distance(begin(open), end(open)));
  e.counter("penstock_worker_crashes_total", "Workers that died; another one went on with their flows.",
            facts.keeper->crashes.load());
  const uint64_t answered = facts.keeper->upgrades_answered, done = facts.keeper->upgrades;
  e.counter("penstock_upgrades_total", "Times another program took the place of this one's forerunner.",
            done);
  e.counter("penstock_upgrades_failed_total", "Times the old program went on instead; the log says why.",
            answered - std::min(answered, done));
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  e.gauge("process_max_fds", "RLIMIT_NOFILE.", limit.rlim_cur);
}

std::string metrics(const flow::Shared& shared, const Facts& facts, Readiness readiness) {
  Snapshot s = take_snapshot(shared);
  Exposition e;
  e.begin("gauge", "penstock_build_info", "What runs; the value is always 1.");
  e.sample(label("version", PENSTOCK_VERSION) + "," + label("engine", facts.engine) + "," +
               label("io", facts.io) + "," + label("kernel", facts.kernel),
           1);
  flows(e, s);
  listeners(e, s.plan->config(), s);
  addresses(e, *s.plan, facts, readiness);
  upstreams(e, s.plan->config(), s);
  const std::vector<ServerRow> rows = server_rows(*s.plan, *facts.checker);
  servers(e, rows);
  checks(e, rows);
  dns(e, shared.resolver->counters());
  configuration(e, facts.reload->state());
  memory_and_limits(e, shared, facts, s);
  if (shared.sockmap) sockmap(e, s.globals);
  process(e, facts);
  return e.take();
}

constexpr const char* kReadiness[] = {"starting\n", "ready\n", "draining\n"};

}  // namespace

Page page(const std::string& path, const std::atomic<Readiness>& readiness, const flow::Shared& shared,
          const Facts& facts) {
  Readiness now = readiness;
  const char* word = kReadiness[static_cast<size_t>(now)];
  if (path == "/healthz") return {200, Page{}.type, "alive\n"};
  if (path == "/readyz") return {now == Readiness::ready ? 200 : 503, Page{}.type, word};
  const std::string others = "; there are /metrics, /healthz, /readyz\n";
  if (is_unavailable(kUnavailablePages, path))
    return {501, Page{}.type, unavailable("the status page") + others};
  if (path != "/metrics") return {404, Page{}.type, "not found" + others};
  if (now == Readiness::starting) return {503, Page{}.type, word};
  return {200, "text/plain; version=0.0.4; charset=utf-8", metrics(shared, facts, now)};
}

}  // namespace penstock::daemon
