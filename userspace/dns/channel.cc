// SPDX-License-Identifier: Apache-2.0
#include "dns/channel.h"

#include <ares.h>
#include <netdb.h>

#include <algorithm>
#include <optional>
#include <string_view>
#include <utility>

#include "base/assert.h"
#include "dns/srv_reply.h"

namespace penstock::dns {
namespace {

constexpr int kTries = 2;
constexpr int kClassIn = 1, kTypeSrv = 33;  // RFC 1035 3.2.4, RFC 2782

// c-ares waits `timeout` for each server in turn, then twice that in the second round.
int timeout_ms_for(int server_count) {
  return std::max(200, static_cast<int>(kChannelTimeout.count()) / (3 * std::max(1, server_count)));
}

int count_system_servers() {
  ares_channel channel = nullptr;
  if (ares_init(&channel) != ARES_SUCCESS) return 1;
  ares_addr_port_node* servers = nullptr;
  int count = 0;
  if (ares_get_servers_ports(channel, &servers) == ARES_SUCCESS) {
    for (const auto* s = servers; s != nullptr; s = s->next) ++count;
    ares_free_data(servers);
  }
  ares_destroy(channel);
  return count;
}

std::string_view nothing_text(Family family) {
  return family == Family::v6   ? "the name has no IPv6 address"
         : family == Family::v4 ? "the name has no IPv4 address"
                                : "the name has no address";
}

// `no_data`: what to call a name without such records.
std::string error_text(int status, std::string_view no_data) {
  switch (status) {
    case ARES_ENOTFOUND:
      return "no such name";
    case ARES_ENODATA:
      return std::string(no_data);
    case ARES_ETIMEOUT:
      return "timeout";
    case ARES_ECONNREFUSED:
      // Also what c-ares 1.18 makes of REFUSED, SERVFAIL and NOTIMP from the last server.
      return "no DNS server could be reached, or none would answer";
    case ARES_EDESTRUCTION:
    case ARES_ECANCELLED:
      return "the resolver stopped";
    default:
      return ares_strerror(status);
  }
}

// Whether DNS has spoken. All else says that it is down or talks nonsense.
bool is_answer(int status) {
  return status == ARES_SUCCESS || status == ARES_ENOTFOUND || status == ARES_ENODATA;
}

// v6 and v4 in turn, v6 first (RFC 8305 4), each family in the order of the answer, no address twice. c-ares
// takes AAAA records in an answer about A and the other way round, and what an AAAA record says is v4 when it
// is v4-mapped: who wants one family gets none of the other.
std::vector<IpAddress> interleaved(const ares_addrinfo& info, Family wanted) {
  std::vector<IpAddress> v6, v4, all;
  for (const auto* node = info.nodes; node != nullptr; node = node->ai_next) {
    auto endpoint = Endpoint::from_sockaddr(node->ai_addr, node->ai_addrlen);
    if (!endpoint) continue;
    const bool is_v4 = endpoint->address.is_v4();
    if (wanted != Family::any && is_v4 != (wanted == Family::v4)) continue;
    auto& family = is_v4 ? v4 : v6;
    if (std::find(family.begin(), family.end(), endpoint->address) == family.end()) {
      family.push_back(endpoint->address);
    }
  }
  for (size_t i = 0; i < std::max(v6.size(), v4.size()); ++i) {
    if (i < v6.size()) all.push_back(v6[i]);
    if (i < v4.size()) all.push_back(v4[i]);
  }
  if (all.size() > kAddressesMax) all.resize(kAddressesMax);
  return all;
}

std::chrono::seconds shortest_ttl(const ares_addrinfo& info) {
  int ttl = static_cast<int>(std::chrono::seconds(std::chrono::hours(24)).count());
  for (const auto* node = info.nodes; node != nullptr; node = node->ai_next)
    ttl = std::min(ttl, node->ai_ttl);
  for (const auto* name = info.cnames; name != nullptr; name = name->next) ttl = std::min(ttl, name->ttl);
  return std::chrono::seconds(std::max(0, ttl));  // beyond 31 bits: to be read as 0 (RFC 2181 8)
}

}  // namespace

struct Channel::Lookup {
  Channel* channel;
  Family family;
  Done done;

  static void on_done(void* arg, int status, int /*timeouts*/, ares_addrinfo* info) {
    std::unique_ptr<Lookup> self(static_cast<Lookup*>(arg));
    Outcome outcome;
    if (status == ARES_SUCCESS && info != nullptr) {
      outcome.answer.addresses = interleaved(*info, self->family);
      outcome.ttl = shortest_ttl(*info);
    }
    if (info != nullptr) ares_freeaddrinfo(info);
    outcome.answered = is_answer(status);
    if (outcome.answer.addresses.empty()) {
      outcome.answer.error =
          error_text(status == ARES_SUCCESS ? ARES_ENODATA : status, nothing_text(self->family));
    }
    --self->channel->outstanding_;
    self->done(std::move(outcome));
  }
};

struct Channel::SrvLookup {
  Channel* channel;
  Done done;

  static void on_done(void* arg, int status, int /*timeouts*/, unsigned char* message, int bytes) {
    std::unique_ptr<SrvLookup> self(static_cast<SrvLookup*>(arg));
    Outcome outcome;
    std::optional<SrvReply> reply;
    if (status == ARES_SUCCESS) {
      reply = parse_srv_reply({message, static_cast<size_t>(bytes)});
      if (!reply) status = ARES_EBADRESP;
    }
    outcome.answered = is_answer(status);
    if (!reply) {
      outcome.answer.error = error_text(status, "the name has no SRV record");
    } else if (!reply->targets.empty()) {
      outcome.answer.targets = std::move(reply->targets);
      outcome.ttl = reply->ttl;
    } else {
      outcome.answer.error = reply->no_service ? "no service: the target of the SRV record is \".\""
                                               : "the name has no SRV record with a host name and a port";
    }
    --self->channel->outstanding_;
    self->done(std::move(outcome));
  }
};

Result<std::unique_ptr<Channel>> Channel::open(const std::vector<Endpoint>& servers) {
  static const int library = ares_library_init(ARES_LIB_INIT_ALL);
  if (library != ARES_SUCCESS) return Error{std::string("DNS: ") + ares_strerror(library)};
  std::string list;
  for (const auto& server : servers) list += (list.empty() ? "" : ",") + server.text();
  std::unique_ptr<Channel> channel(new Channel);
  ares_options options{};
  options.tries = kTries;
  options.timeout =
      timeout_ms_for(servers.empty() ? count_system_servers() : static_cast<int>(servers.size()));
  options.sock_state_cb = &Channel::on_socket_state;
  options.sock_state_cb_data = channel.get();
  int status = ares_init_options(&channel->ares_, &options,
                                 ARES_OPT_TIMEOUTMS | ARES_OPT_TRIES | ARES_OPT_SOCK_STATE_CB);
  if (status != ARES_SUCCESS) {
    channel->ares_ = nullptr;
    return Error{std::string("DNS: ") + ares_strerror(status)};
  }
  if (!list.empty() && ares_set_servers_ports_csv(channel->ares_, list.c_str()) != ARES_SUCCESS) {
    return Error{"DNS: c-ares refuses the servers " + list};
  }
  return channel;
}

Channel::~Channel() {
  if (ares_ != nullptr) ares_destroy(ares_);
  PENSTOCK_ASSERT(outstanding_ == 0);
}

void Channel::lookup(const std::string& name, Family family, Done done) {
  ares_addrinfo_hints hints{};
  hints.ai_flags = ARES_AI_NOSORT;  // sorting would open a socket for each address
  hints.ai_family = family == Family::v4 ? AF_INET : family == Family::v6 ? AF_INET6 : AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  ++outstanding_;
  ares_getaddrinfo(ares_, name.c_str(), nullptr, &hints, &Lookup::on_done,
                   new Lookup{this, family, std::move(done)});
}

void Channel::lookup_srv(const std::string& name, Done done) {
  ++outstanding_;
  ares_query(ares_, name.c_str(), kClassIn, kTypeSrv, &SrvLookup::on_done,
             new SrvLookup{this, std::move(done)});
}

void Channel::on_socket_state(void* self, int fd, int readable, int writable) {
  auto& sockets = static_cast<Channel*>(self)->sockets_;
  short events = static_cast<short>((readable != 0 ? POLLIN : 0) | (writable != 0 ? POLLOUT : 0));
  if (events == 0) {
    sockets.erase(fd);
  } else {
    sockets[fd] = events;
  }
}

void Channel::add_to(std::vector<pollfd>* wanted) const {
  for (auto [fd, events] : sockets_) wanted->push_back({fd, events, 0});
}

std::chrono::milliseconds Channel::next_timeout(std::chrono::milliseconds most) const {
  timeval limit{most.count() / 1000, static_cast<suseconds_t>(most.count() % 1000 * 1000)};
  timeval space;
  const timeval* next = ares_timeout(ares_, &limit, &space);
  return std::chrono::milliseconds(next->tv_sec * 1000 + (next->tv_usec + 999) / 1000);
}

void Channel::process(std::span<const pollfd> polled) {
  ares_process_fd(ares_, ARES_SOCKET_BAD, ARES_SOCKET_BAD);  // the timeouts
  for (const auto& p : polled) {
    if (p.revents == 0 || !sockets_.contains(p.fd)) continue;
    bool readable = (p.revents & (POLLIN | POLLERR | POLLHUP)) != 0;
    bool writable = (p.revents & (POLLOUT | POLLERR)) != 0;
    ares_process_fd(ares_, readable ? p.fd : ARES_SOCKET_BAD, writable ? p.fd : ARES_SOCKET_BAD);
  }
}

}  // namespace penstock::dns
