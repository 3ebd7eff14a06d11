// SPDX-License-Identifier: Apache-2.0
// config/config.h: the configuration file as plain values, and the parser that makes them.
// Pure: reads no file and no environment by itself (the caller hands in text and a lookup), so it can be
// fuzzed. tests/unit/config_test.cc keeps every key, default and message true.
#pragma once
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/endpoint.h"
#include "base/log.h"

namespace penstock::config {

using std::chrono::milliseconds;

enum class Engine { automatic, sockmap, io_uring };  // "auto", "sockmap", "io_uring"
enum class ProxyProtocol { off, v1, v2 };
enum class Family { any, v4, v6 };
enum class Balance { round_robin, least_flows, source_hash };
enum class OnDown { attempt, refuse, close };  // every server is down: "try" all the same, RST, FIN
enum class OnMarkedDown { keep, close };       // the open flows of a server that went down

struct Daemon {
  unsigned threads = 0;  // 0: one per CPU
  Engine engine = Engine::automatic;
  std::string user, group;
  milliseconds shutdown_grace{30'000};
  log::Level log_level = log::Level::info;
  log::Format log_format = log::Format::text;
  bool log_access = true;
};

struct Admin {
  std::string socket = "/run/penstock/admin.sock";
  std::string http = "127.0.0.1:9464";
};

struct Bpf {
  std::string pin = "/sys/fs/bpf/penstock";
  uint32_t max_flows = 0;  // 0: from RAM and the descriptor limit
};

struct Flow {
  uint64_t buffer_bytes = 4 << 20;
  uint64_t pipe_bytes = 1 << 20;
};

// Each key may stand in [timeouts], in a listener and in an upstream (not client_hello and proxy_header:
// those pass before there is an upstream). The nearest one wins: upstream, listener, [timeouts]; of
// `keepalive` on the client's socket listener, [timeouts].
struct Timeouts {
  std::optional<milliseconds> client_hello, proxy_header, connect, idle, half_closed, keepalive;
};
// [timeouts] itself, every value present.
Timeouts default_timeouts();  // 5s 5s 5s 1h 5m 75s

// "COUNT/TIME": so many in any such time, a burst of as many at once.
struct Rate {
  uint32_t count = 0;
  milliseconds per{0};
};

// [limits]; those of a client and max_flows in a listener too, where they count that listener's flows alone
// and hold beside the ones of [limits].
struct Limits {
  std::optional<uint64_t> memory_bytes;          // default: a quarter of RAM; [limits] only
  std::optional<uint32_t> max_flows;             // unset: bpf.max_flows
  std::optional<uint32_t> max_flows_per_client;  // a client: an IPv4 address, an IPv6 /64
  std::optional<Rate> new_flows_per_client;
};

struct Dns {
  std::vector<Endpoint> servers;                    // at most 8; empty: those of resolv.conf
  milliseconds ttl_min{1'000}, ttl_max{3'600'000};  // ttl_min <= ttl_max
  milliseconds stale{86'400'000};                   // how long an old answer serves while DNS is down
};

enum class CheckType { tcp, tls, smtp, imap };
enum class CheckProxy { local, own, off };  // the PROXY header of a check: LOCAL, our own address, none

struct Check {
  CheckType type = CheckType::tcp;
  std::optional<uint16_t> port;                   // unset: the server's; one of the two is there
  milliseconds interval{10'000}, timeout{5'000};  // timeout <= interval
  uint32_t rise = 2, fall = 3;                    // checks in a row
  CheckProxy proxy = CheckProxy::off;             // default: local with v2, own with v1, which has no LOCAL
  std::string sni;                                // of type tls; empty: the server's name
};

inline constexpr uint32_t kServersMax = 1024;  // of one upstream
inline constexpr uint32_t kWeightMax = 256;

struct Server {
  std::string host;                  // a name, or the text of an address
  std::optional<IpAddress> address;  // set when `host` is an address
  std::optional<uint16_t> port;      // unset: the port the client came in on
  std::string text;                  // as written, after ${ENV}; no two of an upstream are alike
  uint32_t weight = 1;               // 1 to kWeightMax
  bool backup = false;               // serves while no other can
};

struct Upstream {
  std::string name;
  std::vector<Server> servers;  // 1 to kServersMax, not all backups; or none beside `srv`; addresses are of
                                // `family`
  std::string srv;              // "_imap._tcp.example.net": the servers, by DNS
  ProxyProtocol proxy_protocol = ProxyProtocol::off;
  bool tlv_unique_id = false, tlv_crc32c = false;  // of `tlvs`, with v2
  Balance balance = Balance::round_robin;
  std::optional<Check> check;
  uint32_t retries = 2;  // more servers tried when one cannot be reached
  Family family = Family::any;
  std::optional<IpAddress> source;  // our address towards the servers
  OnDown on_down = OnDown::attempt;
  OnMarkedDown on_marked_down = OnMarkedDown::keep;
  Timeouts timeouts;
};

struct Bind {
  std::optional<IpAddress> address;  // unset: every IPv4 and every IPv6 address
  uint16_t port = 0;
  std::string text;
};

// Patterns of `sni`: config/sni_pattern.h. Every key given must match, any one of its values does; one that
// is empty was not given.
struct Route {
  std::vector<std::string> sni;   // lower case
  std::vector<std::string> alpn;  // as on the wire
  std::vector<Cidr> source;
  std::vector<uint16_t> port;
  std::string upstream;  // empty when `reject`
  bool reject = false;
  uint32_t line = 0;  // of the file
};

// Who may tell us with a PROXY header who the client is, and must.
struct AcceptProxy {
  std::vector<Cidr> from;      // empty: nobody
  bool others_direct = false;  // the rest are clients themselves; else they are rejected
};

struct Listener {
  std::string name;
  std::vector<Bind> bind;
  std::string interface;  // a device, which may appear later; empty: any
  AcceptProxy accept_proxy;
  std::vector<Cidr> allow, deny;  // of the client; deny first; an empty allow allows all
  Limits limits;
  std::string upstream;  // when no route matches
  std::vector<Route> routes;
  Timeouts timeouts;
  uint32_t line = 0;  // of the file
};

struct Config {
  Daemon daemon;
  Admin admin;
  Bpf bpf;
  Flow flow;
  Timeouts timeouts = default_timeouts();
  Limits limits;
  Dns dns;
  std::vector<Upstream> upstreams;  // in the order of the file
  std::vector<Listener> listeners;
};

// One mistake. `text` is "FILE:LINE:COL: error: what, and what is accepted" (or "warning:").
struct Diagnostic {
  bool is_error = true;
  std::string text;
};

// What a configuration is made of; with the environment it makes it again.
struct Source {
  std::string toml, env;  // texts; no env file: empty
};

struct Parsed {
  std::optional<Config> config;         // present when no diagnostic is an error
  std::vector<Diagnostic> diagnostics;  // every mistake of the file, in the order of the lines
};

using Lookup = std::function<std::optional<std::string>(std::string_view name)>;  // of ${NAME}

// Never throws; any bytes are accepted as `text` (at most 1 MiB, else one error).
Parsed parse(std::string_view text, std::string_view file_name, const Lookup& environment);

// penstock.env: NAME=value lines, '#' comments, optional 'export ', single or double quotes around the value;
// no escapes, no ${NAME} inside. Where a name stands twice, the last one counts.
struct EnvFile {
  std::map<std::string, std::string, std::less<>> values;
  std::vector<Diagnostic> diagnostics;
};
EnvFile parse_env(std::string_view text, std::string_view file_name);

// Reads FILE and the env file beside it (or `env_file`), looks names up in the process environment first.
// A file that cannot be read is one diagnostic.
Parsed load(const std::string& file, const std::optional<std::string>& env_file, Source* source = nullptr);
// Of a configuration that was loaded before, by another process perhaps.
Parsed load(const Source& source, const std::string& file);

}  // namespace penstock::config
