// SPDX-License-Identifier: Apache-2.0
#include "daemon/http.h"

#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <boost/asio/buffer.hpp>
#include <boost/beast/http/empty_body.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/beast/http/write.hpp>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <list>
#include <mutex>
#include <sstream>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "base/assert.h"
#include "base/fd.h"
#include "base/log.h"

namespace penstock::daemon {
namespace {

using Clock = std::chrono::steady_clock;
namespace http = boost::beast::http;

constexpr int kBacklog = 1024;
constexpr unsigned kHttp11 = 11;  // as Beast writes versions
constexpr const char* kTooLong =
    "HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

std::string serialized(auto&& response) {
  response.keep_alive(false);
  std::ostringstream out;
  out << response;
  return std::move(out).str();
}

// `request` ends with the empty line; a body is not looked at.
std::string respond(std::string_view request, const HttpAnswer& answer) {
  http::request_parser<http::empty_body> parser;  // stops at the body
  boost::system::error_code error;
  parser.put(boost::asio::buffer(request), error);
  if (error || !parser.is_header_done())
    return serialized(http::response<http::empty_body>(http::status::bad_request, kHttp11));

  const http::verb method = parser.get().method();
  const bool may = method == http::verb::get || method == http::verb::head;
  const std::string target(parser.get().target());
  Page page{405, Page{}.type, "only GET and HEAD\n"};
  if (may) page = answer(target.substr(0, target.find('?')));

  http::response<http::string_body> response(static_cast<http::status>(page.status), kHttp11,
                                             std::move(page.body));
  response.set(http::field::content_type, page.type);
  if (!may) response.set(http::field::allow, "GET, HEAD");
  response.prepare_payload();
  if (method != http::verb::head) return serialized(response);
  return serialized(http::response<http::empty_body>(std::move(response.base())));
}

// 0, or an errno.
int listening_socket(const config::Bind& where, Fd* out) {
  sockaddr_storage address{};
  Endpoint endpoint;
  endpoint.port = where.port;
  if (where.address) endpoint.address = *where.address;
  socklen_t size = endpoint.to_sockaddr(&address);
  Fd fd(socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.valid() && errno == EAFNOSUPPORT && !where.address) {  // every address of a host without IPv6
    endpoint.address = IpAddress::v4(INADDR_ANY);
    size = endpoint.to_sockaddr(&address);
    fd.reset(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  }
  if (!fd.valid()) return errno;
  int one = 1, v6_only = where.address ? 1 : 0;
  setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (address.ss_family == AF_INET6)
    setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &v6_only, sizeof v6_only);
  if (bind(fd.get(), reinterpret_cast<sockaddr*>(&address), size) || listen(fd.get(), kBacklog)) return errno;
  *out = std::move(fd);
  return 0;
}

}  // namespace

std::optional<std::string> http_response(std::string_view bytes, const HttpAnswer& answer) {
  constexpr std::string_view kEnd = "\r\n\r\n";
  const size_t end = bytes.substr(0, kHttpRequestBytesMax).find(kEnd);
  if (end != bytes.npos) return respond(bytes.substr(0, end + kEnd.size()), answer);
  if (bytes.size() > kHttpRequestBytesMax) return kTooLong;
  return std::nullopt;
}

struct Http::Impl {
  enum class Step { request, answer, farewell };  // reading, writing, waiting for the client's end
  struct Client {
    Fd socket;
    Clock::time_point deadline;
    Step step = Step::request;
    std::string bytes;  // of the request, then of the answer
    size_t sent = 0;
    bool gone = false;
  };

  Impl(const config::Bind& w, Answer a) : where(w), answer(std::move(a)) {}
  void try_to_listen();
  void run();
  int wait_for(std::vector<pollfd>* polled) const;
  void accept_new();
  void receive(Client* client);
  void send(Client* client);

  const config::Bind where;
  const Answer answer;
  Fd wake;  // written once: the end
  Fd listener;
  Clock::time_point again;    // when to bind, or to accept, again
  std::list<Client> clients;  // the oldest first
  mutable std::mutex mutex;
  State state;  // guarded by mutex
  std::thread thread;
};

Http::Http(const config::Bind& where, Answer answer)
    : impl_(std::make_unique<Impl>(where, std::move(answer))) {
  impl_->wake.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  PENSTOCK_ASSERT(impl_->wake.valid());
  impl_->try_to_listen();
  impl_->thread = std::thread([i = impl_.get()] { i->run(); });
  pthread_setname_np(impl_->thread.native_handle(), "http");
}

Http::~Http() {
  PENSTOCK_ASSERT(eventfd_write(impl_->wake.get(), 1) == 0);
  impl_->thread.join();
}

Http::State Http::state() const {
  std::lock_guard lock(impl_->mutex);
  return impl_->state;
}

void Http::Impl::try_to_listen() {
  int error = listening_socket(where, &listener);
  State now{error == 0, error ? std::strerror(error) : ""};
  if (error) again = Clock::now() + kHttpBindAgain;
  std::lock_guard lock(mutex);
  if (now.listening)
    log::info("http listens on {}", where.text);
  else if (now.reason != state.reason)
    log::warn("http cannot listen on {}: {}; trying again", where.text, now.reason);
  state = std::move(now);
}

void Http::Impl::run() {
  std::vector<pollfd> polled;
  for (;;) {
    int timeout_ms = wait_for(&polled);
    int ready = poll(polled.data(), polled.size(), timeout_ms);
    PENSTOCK_ASSERT(ready >= 0 || errno == EINTR || errno == ENOMEM);
    if (ready < 0) continue;
    if (polled[0].revents != 0) return;
    auto now = Clock::now();
    size_t i = 2;
    for (Client& client : clients) {
      short events = polled[i++].revents;
      if ((events & (POLLERR | POLLNVAL)) != 0) client.gone = true;
      if ((events & (POLLIN | POLLHUP)) != 0 && client.step != Step::answer) receive(&client);
      if (!client.gone && client.step == Step::answer) send(&client);
      if (client.deadline <= now) client.gone = true;
    }
    clients.remove_if([](const Client& c) { return c.gone; });
    if (polled[1].revents != 0) accept_new();
    if (!listener.valid() && again <= now) try_to_listen();
  }
}

// Lists what to wait for ([0] the end, [1] the listener, then each client), returns for how long.
int Http::Impl::wait_for(std::vector<pollfd>* polled) const {
  auto now = Clock::now();
  bool may_accept = listener.valid() && again <= now;
  auto until = may_accept ? Clock::time_point::max() : again;
  polled->assign({{wake.get(), POLLIN, 0}, {may_accept ? listener.get() : -1, POLLIN, 0}});
  for (const Client& client : clients) {
    polled->push_back(
        {client.socket.get(), static_cast<short>(client.step == Step::answer ? POLLOUT : POLLIN), 0});
    until = std::min(until, client.deadline);
  }
  if (until == Clock::time_point::max()) return -1;
  auto left = std::chrono::ceil<std::chrono::milliseconds>(until - now);
  return static_cast<int>(std::max<int64_t>(0, left.count()));
}

void Http::Impl::accept_new() {
  Fd socket(accept4(listener.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (!socket.valid()) {
    bool out_of_something = errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS;
    if (out_of_something) again = Clock::now() + kHttpBindAgain;
    return;
  }
  if (clients.size() >= kHttpConnectionsMax) clients.pop_front();
  clients.push_back({std::move(socket), Clock::now() + kHttpTimeout});
  receive(&clients.back());  // what a client has to say is usually there by now
  if (clients.back().step == Step::answer) send(&clients.back());
}

void Http::Impl::receive(Client* client) {
  char buffer[kHttpRequestBytesMax];
  ssize_t n = recv(client->socket.get(), buffer, sizeof buffer, 0);
  if (n <= 0) {
    client->gone = n == 0 || (errno != EAGAIN && errno != EINTR);
    return;
  }
  if (client->step == Step::farewell) return;  // what is read here keeps close() from sending a reset
  std::string& bytes = client->bytes;
  bytes.append(buffer, static_cast<size_t>(n));
  std::optional<std::string> response = http_response(bytes, answer);
  if (!response) return;
  bytes = std::move(*response);
  client->step = Step::answer;
}

void Http::Impl::send(Client* client) {
  const char* rest = client->bytes.data() + client->sent;
  ssize_t n = ::send(client->socket.get(), rest, client->bytes.size() - client->sent, MSG_NOSIGNAL);
  if (n < 0) {
    client->gone = errno != EAGAIN && errno != EINTR;
    return;
  }
  client->sent += static_cast<size_t>(n);
  if (client->sent < client->bytes.size()) return;
  client->bytes = std::string();  // gives the memory back
  shutdown(client->socket.get(), SHUT_WR);
  client->step = Step::farewell;
}

}  // namespace penstock::daemon
