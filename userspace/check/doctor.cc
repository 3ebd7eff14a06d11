// SPDX-License-Identifier: Apache-2.0
#include "check/doctor.h"

#include <fmt/format.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <future>
#include <system_error>
#include <thread>
#include <utility>

#include "base/assert.h"
#include "base/log.h"
#include "base/signals.h"

namespace penstock::check {
namespace {

using config::CheckType;
using config::ProxyProtocol;

// Nothing: not known from the port.
std::optional<CheckType> type_of_port(uint16_t port) {
  switch (port) {
    case 25:
    case 587:
      return CheckType::smtp;
    case 143:
      return CheckType::imap;
    case 443:
    case 465:
    case 993:
      return CheckType::tls;
    default:
      return std::nullopt;
  }
}

// What one dial tells about the header it sent.
enum class Reaction { unreached, objected, quiet, served };

// A web server that takes the header for a request says so; any other greeting is one.
bool is_objection(const std::string& said) {
  return said.starts_with("HTTP/");
}

Reaction reaction(const Dial& d) {
  const Outcome& o = d.outcome;
  if (!o.ok) return o.stage == Stage::dialing ? Reaction::unreached : Reaction::objected;
  if (o.stage != Stage::passed) return Reaction::quiet;
  return is_objection(o.said) ? Reaction::objected : Reaction::served;
}

// Without a header it spoke, though not as a server that serves: no header would change that. (421 is what
// postfix says when it has waited for one in vain.)
bool speaks_without_header(const Dial& d) {
  return d.header == ProxyProtocol::off && reaction(d) == Reaction::objected && !d.outcome.said.empty() &&
         !d.outcome.said.starts_with("421");
}

// To flows, not to LOCAL.
const Dial* find(const Examination& e, ProxyProtocol header, Reaction wanted) {
  for (const Dial& d : e.dials)
    if (!d.local && d.header == header && reaction(d) == wanted) return &d;
  return nullptr;
}

constexpr std::array kWays{ProxyProtocol::off, ProxyProtocol::v2, ProxyProtocol::v1};

std::optional<ProxyProtocol> first_way(const Examination& e, Reaction wanted) {
  if (find(e, e.patient.proxy_protocol, wanted)) return e.patient.proxy_protocol;
  for (ProxyProtocol p : kWays)
    if (find(e, p, wanted)) return p;
  return std::nullopt;
}

// Where nobody is served with words: what the server lets pass, when it objects to the others.
std::optional<ProxyProtocol> way_let_pass(const Examination& e) {
  if (find(e, ProxyProtocol::off, Reaction::objected)) return first_way(e, Reaction::quiet);
  const bool none_passes = find(e, ProxyProtocol::off, Reaction::quiet);
  const bool headers_do_not =
      find(e, ProxyProtocol::v1, Reaction::objected) && find(e, ProxyProtocol::v2, Reaction::objected);
  return none_passes && headers_do_not ? std::optional(ProxyProtocol::off) : std::nullopt;
}

const char* in_words(ProxyProtocol p) {
  return p == ProxyProtocol::off  ? "no PROXY header"
         : p == ProxyProtocol::v1 ? "a PROXY v1 header"
                                  : "a PROXY v2 header";
}

void say_mismatch(Examination* e) {
  const ProxyProtocol has = e->patient.proxy_protocol;
  e->says = fmt::format("the server expects {} and gets {}", in_words(*e->expects),
                        has == ProxyProtocol::off ? "none" : text(has));
  const std::string change =
      fmt::format("set proxy_protocol = \"{}\" in [upstream.{}]", text(*e->expects), e->patient.upstream);
  e->advice =
      *e->expects != ProxyProtocol::off
          ? change
          : "let the server expect the header, or it takes the edge for every client (postfix: "
            "smtpd_upstream_proxy_protocol or postscreen_upstream_proxy_protocol = haproxy; dovecot: haproxy "
            "= yes in the inet_listener, and haproxy_trusted_networks; nginx: listen ... proxy_protocol); "
            "or " +
                change;
}

}  // namespace

const char* text(ProxyProtocol proxy_protocol) {
  switch (proxy_protocol) {
    case ProxyProtocol::off:
      return "off";
    case ProxyProtocol::v1:
      return "v1";
    case ProxyProtocol::v2:
      return "v2";
  }
  return "";
}

const char* text(std::optional<CheckType> type) {
  if (!type) return "greeting";
  switch (*type) {
    case CheckType::tcp:
      return "tcp";
    case CheckType::tls:
      return "tls";
    case CheckType::smtp:
      return "smtp";
    case CheckType::imap:
      return "imap";
  }
  return "";
}

const char* text(Verdict verdict) {
  switch (verdict) {
    case Verdict::as_configured:
      return "as_configured";
    case Verdict::mismatch:
      return "mismatch";
    case Verdict::local_refused:
      return "local_refused";
    case Verdict::undecided:
      return "undecided";
    case Verdict::unserved:
      return "unserved";
    case Verdict::unreachable:
      return "unreachable";
  }
  return "";
}

Result<Patient> find_patient(const config::Config& config, std::string_view upstream, std::string_view server,
                             std::optional<uint16_t> port) {
  const auto join = [](const auto& all, auto name) {
    std::string names;
    for (const auto& one : all) names += (names.empty() ? "" : ", ") + name(one);
    return names;
  };
  const auto u = std::find_if(config.upstreams.begin(), config.upstreams.end(),
                              [&](const config::Upstream& one) { return one.name == upstream; });
  if (u == config.upstreams.end())
    return Error{fmt::format("there is no upstream {} (there are: {})", log::escaped(upstream),
                             join(config.upstreams, [](const auto& one) { return one.name; }))};
  if (u->servers.empty())
    return Error{fmt::format("upstream {} has no server yet: DNS has named none for {}", u->name, u->srv)};
  const auto s = std::find_if(u->servers.begin(), u->servers.end(), [&](const config::Server& one) {
    return server.empty() || one.text == server;
  });
  if (s == u->servers.end())
    return Error{fmt::format("upstream {} has no server {} (it has: {})", u->name, log::escaped(server),
                             join(u->servers, [](const auto& one) { return one.text; }))};
  Patient p;
  p.upstream = u->name;
  p.server = s->text;
  p.host = s->host;
  p.address = s->address;
  if (!port) port = s->port;
  if (!port && u->check) port = u->check->port;
  for (const config::Listener& l : config.listeners) {
    const bool leads_here =
        l.upstream == u->name ||
        std::any_of(l.routes.begin(), l.routes.end(), [&](const auto& r) { return r.upstream == u->name; });
    if (!port && leads_here && !l.bind.empty()) port = l.bind.front().port;
  }
  if (!port)
    return Error{fmt::format("upstream {}: no port is known for {}: give one with --port", u->name, s->text)};
  p.port = *port;
  p.proxy_protocol = u->proxy_protocol;
  p.type = type_of_port(p.port);
  if (u->check) {
    p.local_too = u->check->proxy == config::CheckProxy::local && u->proxy_protocol != ProxyProtocol::off;
    p.sni = u->check->sni;
    // "tcp" tells nothing of headers.
    if (u->check->type != CheckType::tcp && u->check->port.value_or(p.port) == p.port)
      p.type = u->check->type;
  }
  if (p.sni.empty() && !p.address) p.sni = p.host;
  p.family = u->family;
  p.source = u->source;
  return p;
}

std::optional<Way> next_way(const Examination& e) {
  const ProxyProtocol configured = e.patient.proxy_protocol;
  if (e.dials.empty()) return Way{configured, false};
  const Dial& last = e.dials.back();
  if (e.dials.size() >= kDialsMax || last.local || reaction(last) == Reaction::unreached) return std::nullopt;
  if (first_way(e, Reaction::served)) {
    const bool ask_local = e.patient.local_too && find(e, configured, Reaction::served);
    return ask_local ? std::optional(Way{configured, true}) : std::nullopt;
  }
  if (speaks_without_header(last)) return std::nullopt;
  if (way_let_pass(e) == configured) return std::nullopt;
  for (ProxyProtocol p : kWays) {
    const bool tried = std::any_of(e.dials.begin(), e.dials.end(), [&](const Dial& d) {
      return d.header == p && reaction(d) != Reaction::unreached;
    });
    if (!tried) return Way{p, false};
  }
  return std::nullopt;
}

void conclude(Examination* e) {
  const Patient& p = e->patient;
  for (const Dial& d : e->dials)
    if (d.outcome.local) e->trusted = d.outcome.local->address;
  const bool reached = std::any_of(e->dials.begin(), e->dials.end(),
                                   [](const Dial& d) { return reaction(d) != Reaction::unreached; });
  if (!reached) {
    e->verdict = Verdict::unreachable;
    if (!e->dials.empty()) e->says = "the server cannot be reached: " + e->dials.back().outcome.reason;
    return;
  }
  e->expects = first_way(*e, Reaction::served);
  if (!e->expects) e->expects = way_let_pass(*e);
  if (e->expects == p.proxy_protocol) {
    e->verdict = Verdict::as_configured;
    e->says = fmt::format("the server expects what it gets: {}", in_words(p.proxy_protocol));
    const Dial& last = e->dials.back();
    if (last.local && reaction(last) != Reaction::served) {
      e->verdict = Verdict::local_refused;
      e->says += fmt::format("; but it does not take the LOCAL header of checks: {}", last.outcome.reason);
      e->advice = fmt::format("set proxy = \"own\" in the check of [upstream.{}]", p.upstream);
    }
    return;
  }
  if (e->expects) {
    e->verdict = Verdict::mismatch;
    return say_mismatch(e);
  }
  if (first_way(*e, Reaction::quiet)) {
    e->verdict = Verdict::undecided;
    e->says = "the server waits for its client to speak and objects to nothing, so that nothing can be told";
    e->advice = "give the upstream a check of the type the server speaks";
    return;
  }
  e->verdict = Verdict::unserved;
  if (speaks_without_header(e->dials.back())) {
    e->says =
        "the server speaks without a PROXY header, but does not serve: " + e->dials.back().outcome.reason;
    return;
  }
  e->says = "the server takes connections but serves none, with or without a PROXY header: " +
            e->dials.front().outcome.reason;
  e->advice = fmt::format("see the server's log; it may not trust {}, or ban it",
                          e->trusted ? e->trusted->text() : "us");
}

// One thread: resolve, dial, wait, dial.
struct Doctor::Visit {
  Visit(dns::Resolver& r, Patient patient, std::function<void(const Examination&)> d)
      : resolver(r), done(std::move(d)), stop(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    examination.patient = std::move(patient);
  }
  ~Visit() {
    PENSTOCK_ASSERT(!stop.valid() || ::eventfd_write(stop.get(), 1) == 0);
    if (thread.joinable()) thread.join();
  }

  void run() {
    std::vector<IpAddress> addresses = resolve();
    if (!addresses.empty()) dial(addresses);
    conclude(&examination);
    finished = true;  // before it is told: who hears of it may ask for the next one
    done(examination);
  }
  // True: the daemon ends.
  bool wait(milliseconds time) const {
    pollfd p{stop.get(), POLLIN, 0};
    return ::poll(&p, 1, static_cast<int>(time.count())) > 0;
  }
  std::vector<IpAddress> resolve();
  void dial(const std::vector<IpAddress>& addresses);
  Outcome probe(const IpAddress& address, const Way& way) const;

  dns::Resolver& resolver;
  std::function<void(const Examination&)> done;
  Fd stop;
  Examination examination;
  std::atomic<bool> finished = false;
  std::thread thread;
};

std::vector<IpAddress> Doctor::Visit::resolve() {
  const Patient& p = examination.patient;
  if (p.address) return {*p.address};
  auto promise = std::make_shared<std::promise<dns::Answer>>();  // the resolver may answer when we are gone
  auto future = promise->get_future();
  const auto family = p.family == config::Family::v4   ? dns::Family::v4
                      : p.family == config::Family::v6 ? dns::Family::v6
                                                       : dns::Family::any;
  resolver.resolve(p.host, family, [promise](const dns::Answer& answer) { promise->set_value(answer); });
  while (future.wait_for(milliseconds(10)) != std::future_status::ready)
    if (wait(milliseconds(10))) return {};
  dns::Answer answer = future.get();
  if (p.source)
    std::erase_if(answer.addresses, [&](const IpAddress& a) { return a.is_v4() != p.source->is_v4(); });
  if (answer.addresses.empty())
    examination.says = fmt::format("the server cannot be reached: {}: {}", log::escaped(p.host),
                                   answer.error.empty() ? "no address of the source's family" : answer.error);
  return answer.addresses;
}

void Doctor::Visit::dial(const std::vector<IpAddress>& addresses) {
  size_t at = 0;
  for (std::optional<Way> way = next_way(examination); way;) {
    Outcome outcome = probe(addresses[at], *way);
    const bool unreached = !outcome.ok && outcome.stage == Stage::dialing;
    examination.dials.push_back({way->header, way->local, std::move(outcome)});
    if (unreached && ++at < addresses.size() && examination.dials.size() < kDialsMax)
      ;  // the same way to the next address
    else
      way = next_way(examination);
    if (way && wait(kBetweenDials)) return;
  }
}

Outcome Doctor::Visit::probe(const IpAddress& address, const Way& way) const {
  const Patient& p = examination.patient;
  Probe probe({.to = {.address = address, .port = p.port},
               .source = p.source,
               .proxy_protocol = way.header,
               .local = way.local,
               .type = p.type,
               .sni = p.sni,
               .timeout = p.type ? kDialMax : kQuietMax},
              Clock::now());
  while (!probe.done()) {
    std::array polled{probe.wanted(), pollfd{stop.get(), POLLIN, 0}};
    const auto left = std::chrono::ceil<milliseconds>(probe.deadline() - Clock::now());
    const int ready =
        ::poll(polled.data(), polled.size(), static_cast<int>(std::max<int64_t>(0, left.count())));
    const auto now = Clock::now();
    if (ready > 0 && polled[1].revents != 0) break;
    if (ready >= 0) probe.advance(now);
  }
  if (probe.decided()) return probe.outcome();
  Outcome given_up;
  given_up.address = {.address = address, .port = p.port};
  given_up.failure = Failure::local;
  given_up.reason = "the daemon ends";
  return given_up;
}

Doctor::Doctor(dns::Resolver& resolver) : resolver_(resolver) {}
Doctor::~Doctor() = default;

Status Doctor::examine(Patient patient, std::function<void(const Examination&)> done) {
  std::lock_guard lock(mutex_);
  if (visit_ && !visit_->finished) {
    const Patient& other = visit_->examination.patient;
    return Error{fmt::format("the doctor is with {} of upstream {}: ask again when that is done",
                             other.server, other.upstream)};
  }
  visit_ = std::make_unique<Visit>(resolver_, std::move(patient), std::move(done));
  if (!visit_->stop.valid()) {
    visit_.reset();
    return Error{std::string("eventfd: ") + std::strerror(errno)};
  }
  sigset_t before;
  block_daemons_signals(&before);  // the thread inherits it
  Status started = Nothing{};
  try {
    visit_->thread = std::thread([v = visit_.get()] { v->run(); });
  } catch (const std::system_error& e) {
    started = Error{std::string("cannot start a thread: ") + e.what()};
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (started)
    pthread_setname_np(visit_->thread.native_handle(), "doctor");
  else
    visit_.reset();
  return started;
}

}  // namespace penstock::check
