// SPDX-License-Identifier: Apache-2.0
// Any answer of a DNS server to our questions, through c-ares as the resolver uses it, over a real socket.
// Each question ends once; the addresses are those of the packet and of the family asked for, in our order
// and no more than we take; what is said of a failure is printable.
//
// The first byte says what is asked for. Then, each with its length in front (2 bytes), what follows the
// question in one answer after the other: flags and counts (8 bytes), records. When there are no more
// answers, "no such name" is said.
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

#include "base/fd.h"
#include "dns/channel.h"
#include "support/fuzz_text.h"

namespace {

using namespace penstock;
using namespace penstock::dns;
using Bytes = std::vector<uint8_t>;

constexpr size_t kHeaderBytes = 12;

class Server {
 public:
  Server() : socket_(::socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    PENSTOCK_ASSERT(::bind(socket_.get(), reinterpret_cast<sockaddr*>(&address), size) == 0);
    PENSTOCK_ASSERT(::getsockname(socket_.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0);
    at_ = *Endpoint::from_sockaddr(reinterpret_cast<sockaddr*>(&address), size);
  }
  int fd() const { return socket_.get(); }
  const Endpoint& at() const { return at_; }
  void set_answers(std::span<const uint8_t> bytes) { rest_ = bytes; }

  void answer() {
    sockaddr_storage from;
    socklen_t from_size = sizeof from;
    uint8_t query[512];
    const ssize_t n =
        ::recvfrom(socket_.get(), query, sizeof query, 0, reinterpret_cast<sockaddr*>(&from), &from_size);
    if (n < static_cast<ssize_t>(kHeaderBytes)) return;
    size_t question_end = kHeaderBytes;
    while (query[question_end] != 0) question_end += 1 + query[question_end];
    question_end += 5;
    const Bytes answer = next({query, question_end});
    ::sendto(socket_.get(), answer.data(), answer.size(), 0, reinterpret_cast<sockaddr*>(&from), from_size);
  }

 private:
  Bytes next(std::span<const uint8_t> header_and_question) {
    Bytes out(header_and_question.begin(), header_and_question.end());
    constexpr uint8_t kNoSuchName[] = {0x81, 0x83, 0, 1, 0, 0, 0, 0, 0, 0};
    if (rest_.size() < 10) {
      std::copy(std::begin(kNoSuchName), std::end(kNoSuchName), out.begin() + 2);
      return out;
    }
    const size_t size = std::min<size_t>(rest_[0] << 8 | rest_[1], rest_.size() - 10);
    out[2] = rest_[2] | 0x80;  // an answer
    out[3] = rest_[3];
    std::copy_n(rest_.begin() + 4, 6, out.begin() + 6);  // how many answers, authorities and additionals
    out.insert(out.end(), rest_.begin() + 10, rest_.begin() + 10 + static_cast<ptrdiff_t>(size));
    rest_ = rest_.subspan(10 + size);
    return out;
  }

  Fd socket_;
  Endpoint at_;
  std::span<const uint8_t> rest_;
};

bool is_in(std::span<const uint8_t> bytes, std::span<const uint8_t> packet) {
  return std::search(packet.begin(), packet.end(), bytes.begin(), bytes.end()) != packet.end();
}

void check_addresses(const std::vector<IpAddress>& addresses, Family family,
                     std::span<const uint8_t> packet) {
  PENSTOCK_ASSERT(addresses.size() <= kAddressesMax);
  std::vector<IpAddress> v4, v6, in_turn;
  for (const IpAddress& a : addresses) {
    PENSTOCK_ASSERT(std::count(addresses.begin(), addresses.end(), a) == 1);
    PENSTOCK_ASSERT(is_in(std::span(a.bytes).subspan(a.is_v4() ? 12 : 0), packet));
    PENSTOCK_ASSERT(family == Family::any || a.is_v4() == (family == Family::v4));
    (a.is_v4() ? v4 : v6).push_back(a);
  }
  for (size_t i = 0; i < addresses.size(); ++i) {
    if (i < v6.size()) in_turn.push_back(v6[i]);
    if (i < v4.size()) in_turn.push_back(v4[i]);
  }
  PENSTOCK_ASSERT(in_turn == addresses);
}

void check(const Channel::Outcome& outcome, Family family, bool srv, std::span<const uint8_t> packet) {
  const Answer& answer = outcome.answer;
  test::check_printable(answer.error);
  PENSTOCK_ASSERT(answer.found() == answer.error.empty());
  PENSTOCK_ASSERT(!answer.found() || outcome.answered);
  PENSTOCK_ASSERT(outcome.ttl.count() >= 0 && (srv || outcome.ttl <= std::chrono::hours(24)));
  PENSTOCK_ASSERT(srv ? answer.addresses.empty() : answer.targets.empty());
  check_addresses(answer.addresses, family, packet);
  for (const SrvTarget& target : answer.targets)
    PENSTOCK_ASSERT(target.port != 0 && test::is_name(target.host));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  static Server server;
  static const std::unique_ptr<Channel> channel = Channel::open({server.at()}).value();
  const std::span<const uint8_t> packets(data + 1, size - 1);
  server.set_answers(packets);
  const bool srv = data[0] % 4 == 3;
  const Family family = data[0] % 4 == 1 ? Family::v4 : data[0] % 4 == 2 ? Family::v6 : Family::any;
  int told = 0;
  const auto done = [&](const Channel::Outcome& outcome) {
    ++told;
    check(outcome, family, srv, packets);
  };
  srv ? channel->lookup_srv("_imap._tcp.fuzz.test.", done) : channel->lookup("fuzz.test.", family, done);
  std::vector<pollfd> polled;
  while (!channel->idle()) {
    polled.assign({{server.fd(), POLLIN, 0}});
    channel->add_to(&polled);
    ::poll(polled.data(), polled.size(),
           static_cast<int>(channel->next_timeout(std::chrono::seconds(1)).count()));
    if (polled[0].revents != 0) server.answer();
    channel->process(polled);
  }
  PENSTOCK_ASSERT(told == 1);
  return 0;
}
