// SPDX-License-Identifier: Apache-2.0
#include "daemon/admin.h"

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <list>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "base/assert.h"
#include "base/fd.h"
#include "base/signals.h"

namespace penstock::daemon {
namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* kGroup = "penstock";
constexpr mode_t kSocketMode = 0660;
constexpr mode_t kDirectoryMode = 0755;
constexpr size_t kSpares = 4;
constexpr std::chrono::seconds kAcceptPause{1};  // when there is no descriptor to accept into

Error failure(const std::string& path, const std::string& what, int error) {
  return Error{"admin socket " + path + ": " + what + ": " + std::strerror(error)};
}

Status make_directory(const std::string& path) {
  auto directory = std::filesystem::path(path).parent_path();
  std::error_code error;
  if (directory.empty() || !std::filesystem::create_directories(directory, error)) {
    if (error) return failure(path, "cannot create " + directory.string(), error.value());
    return Nothing{};
  }
  if (::chmod(directory.c_str(), kDirectoryMode) != 0) return failure(path, "chmod of its directory", errno);
  return Nothing{};
}

// Only a socket that nobody listens on may go.
Status remove_stale(const std::string& path, const sockaddr_un& address) {
  struct stat s;
  if (::lstat(path.c_str(), &s) != 0) {
    if (errno == ENOENT) return Nothing{};
    return failure(path, "cannot look at it", errno);
  }
  if (!S_ISSOCK(s.st_mode)) return Error{"admin socket " + path + ": exists and is not a socket"};
  Fd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!probe.valid()) return failure(path, "socket", errno);
  int connected = ::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
  if (connected == 0 || errno == EAGAIN) return Error{"another penstockd is running (socket " + path + ")"};
  if (errno != ECONNREFUSED) return failure(path, "cannot tell whether another penstockd is running", errno);
  if (::unlink(path.c_str()) != 0) return failure(path, "cannot remove the one a dead daemon left", errno);
  return Nothing{};
}

// Our own group stays where there is no such group, or where we may not give the file to it.
Status give_to_group(const std::string& path) {
  std::vector<char> buffer(1 << 14);
  group entry;
  group* found = nullptr;
  ::getgrnam_r(kGroup, &entry, buffer.data(), buffer.size(), &found);
  if (found == nullptr) return Nothing{};
  if (::lchown(path.c_str(), static_cast<uid_t>(-1), found->gr_gid) != 0 && errno != EPERM) {
    return failure(path, "chown", errno);
  }
  return Nothing{};
}

// Nobody, where the kernel does not say.
uid_t asker_of(int socket) {
  ucred who{0, static_cast<uid_t>(-1), 0};
  socklen_t size = sizeof who;
  getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &who, &size);
  return who.uid;
}

}  // namespace

// Nobody can connect before listen(), so nobody meets a mode that is not yet right.
Result<AdminSocket> AdminSocket::open(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return Error{"admin socket \"" + path + "\": accepted: a path of 1 to " +
                 std::to_string(sizeof address.sun_path - 1) + " bytes"};
  }
  path.copy(address.sun_path, path.size());
  if (auto made = make_directory(path); !made) return made.error();
  if (auto removed = remove_stale(path, address); !removed) return removed.error();
  AdminSocket l;
  l.path_ = path;
  l.socket_.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!l.socket_.valid()) return failure(path, "socket", errno);
  if (::bind(l.socket_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    return failure(path, "bind", errno);
  }
  struct stat s;
  if (::lstat(path.c_str(), &s) != 0) return failure(path, "stat", errno);
  l.device_ = s.st_dev;
  l.inode_ = s.st_ino;
  if (auto given = give_to_group(path); !given) return given.error();
  if (::chmod(path.c_str(), kSocketMode) != 0) return failure(path, "chmod", errno);
  if (::listen(l.socket_.get(), static_cast<int>(kAdminConnectionsMax)) != 0)
    return failure(path, "listen", errno);
  l.number_ = l.socket_.get();
  return l;
}

AdminSocket AdminSocket::reopen(const Handle& handle) {
  AdminSocket l;
  l.number_ = handle.fd;
  l.path_ = handle.path;
  l.device_ = handle.device;
  l.inode_ = handle.inode;
  return l;
}

AdminSocket::Handle AdminSocket::handle() const {
  Handle h{.fd = number_, .device = device_, .inode = inode_, .path = {}};
  path_.copy(h.path, sizeof h.path - 1);
  return h;
}

void AdminSocket::remove() const {
  struct stat s;
  if (::lstat(path_.c_str(), &s) == 0 && s.st_dev == device_ && s.st_ino == inode_) ::unlink(path_.c_str());
}

namespace {

std::string error_line(const std::string& message) {
  return json_line({{"error", message}}) + "\n";
}

// Answers on their way to clients. Whoever owes one may outlive the Admin: then nobody reads it.
struct Outbox {
  std::mutex mutex;
  std::vector<std::pair<uint64_t, std::string>> lines;  // guarded by mutex; by ticket
  Fd wake;

  void put(uint64_t ticket, std::string line) {
    {
      std::lock_guard lock(mutex);
      lines.emplace_back(ticket, std::move(line));
    }
    PENSTOCK_ASSERT(::eventfd_write(wake.get(), 1) == 0 || errno == EAGAIN);
  }
};

}  // namespace

struct Admin::Impl {
  // Reads when there is neither a whole line in `in` nor an answer to wait for or to write: nothing grows
  // beyond its bound.
  struct Client {
    Fd socket;
    Clock::time_point deadline;
    std::string in;
    std::string out;
    size_t out_sent = 0;
    uint64_t ticket = 0;  // of the answer it waits for; 0: none
    bool gone = false;    // closed, or to be closed now
    bool close_when_sent = false;

    bool has_request() const {
      return in.find('\n') != std::string::npos || in.size() > kAdminRequestBytesMax;
    }
  };

  void run();
  int wait_for(std::vector<pollfd>* polled) const;
  void accept_new();
  void let_go(Client* client);
  void keep_spares();
  void receive(Client* client);
  void send(Client* client);
  void take_request(Client* client);
  void ask(Client* client, std::string_view request);
  void deliver();
  size_t unread_bytes() const;

  int listener = -1;
  std::optional<AdminSocket> own;
  Answer answer;
  std::shared_ptr<Outbox> outbox = std::make_shared<Outbox>();
  uint64_t last_ticket = 0;
  Fd wake;  // written once: the end
  // Descriptors for clients when all others are taken: then most of all somebody asks why. One that is closed
  // may go to a worker before it is ours again.
  std::vector<Fd> spares;
  std::thread thread;
  std::list<Client> clients;
  Clock::time_point accept_after;
};

Admin::Admin(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Result<std::unique_ptr<Admin>> Admin::start(const std::string& path, Answer answer) {
  auto socket = AdminSocket::open(path);
  if (!socket) return socket.error();
  auto admin = start(*socket, std::move(answer));
  if (admin) (*admin)->impl_->own = std::move(*socket);
  return admin;
}

Result<std::unique_ptr<Admin>> Admin::start(const AdminSocket& socket, Answer answer) {
  const std::string& path = socket.path();
  auto impl = std::make_unique<Impl>();
  impl->answer = std::move(answer);
  impl->wake.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  impl->outbox->wake.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!impl->wake.valid() || !impl->outbox->wake.valid()) return failure(path, "eventfd", errno);
  impl->keep_spares();
  impl->listener = socket.fd();
  sigset_t before;
  block_daemons_signals(&before);  // the thread inherits it
  std::string error;
  try {
    impl->thread = std::thread([i = impl.get()] { i->run(); });
  } catch (const std::system_error& e) {
    error = e.what();
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (!error.empty()) return Error{"admin socket " + path + ": cannot start a thread: " + error};
  pthread_setname_np(impl->thread.native_handle(), "admin");
  return std::unique_ptr<Admin>(new Admin(std::move(impl)));
}

Admin::~Admin() {
  if (impl_->own) impl_->own->remove();
  PENSTOCK_ASSERT(::eventfd_write(impl_->wake.get(), 1) == 0);
  impl_->thread.join();
}

void Admin::Impl::run() {
  std::vector<pollfd> polled;
  for (;;) {
    int timeout_ms = wait_for(&polled);
    int ready = ::poll(polled.data(), polled.size(), timeout_ms);
    PENSTOCK_ASSERT(ready >= 0 || errno == EINTR || errno == ENOMEM);
    if (ready < 0) continue;
    if (polled[0].revents != 0) return;
    if (polled[1].revents != 0) deliver();
    auto now = Clock::now();
    size_t i = 3;
    for (auto& client : clients) {
      short events = polled[i++].revents;
      if ((events & POLLOUT) != 0) send(&client);
      if ((events & POLLIN) != 0) receive(&client);
      if ((events & (POLLERR | POLLHUP)) != 0 && (events & POLLIN) == 0) client.gone = true;
      if (!client.gone && client.ticket == 0 && client.out.empty() && client.has_request())
        take_request(&client);
      if (client.ticket == 0 && client.deadline <= now) client.gone = true;
    }
    for (auto& client : clients)
      if (client.gone) let_go(&client);
    clients.remove_if([](const Client& c) { return c.gone; });
    if (polled[2].revents != 0) accept_new();
  }
}

// Lists what to wait for ([0] the end, [1] answers, [2] the listener, then each client), returns for how
// long.
int Admin::Impl::wait_for(std::vector<pollfd>* polled) const {
  auto now = Clock::now();
  auto until = Clock::time_point::max();
  bool may_accept = accept_after <= now;
  if (!may_accept) until = accept_after;
  polled->assign(
      {{wake.get(), POLLIN, 0}, {outbox->wake.get(), POLLIN, 0}, {may_accept ? listener : -1, POLLIN, 0}});
  for (const auto& client : clients) {
    if (client.ticket != 0) {
      polled->push_back({client.socket.get(), 0, 0});  // that it leaves is seen all the same
      continue;
    }
    short events = !client.out.empty() ? POLLOUT : client.has_request() ? 0 : POLLIN;
    polled->push_back({client.socket.get(), events, 0});
    until = std::min(until, events == 0 ? now : client.deadline);
  }
  if (until == Clock::time_point::max()) return -1;
  auto left = std::chrono::ceil<std::chrono::milliseconds>(until - now);
  return static_cast<int>(std::max<int64_t>(0, left.count()));
}

void Admin::Impl::accept_new() {
  auto accept = [&] { return ::accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC); };
  Fd socket(accept());
  while (!socket.valid() && (errno == EMFILE || errno == ENFILE) && !spares.empty()) {
    spares.pop_back();
    socket.reset(accept());
  }
  if (!socket.valid()) {
    bool out_of_something = errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS;
    if (out_of_something) accept_after = Clock::now() + kAcceptPause;
    return;
  }
  if (clients.size() >= kAdminConnectionsMax) {
    auto line = error_line("too many connections to the admin socket: at most " +
                           std::to_string(kAdminConnectionsMax));
    ::send(socket.get(), line.data(), line.size(),
           MSG_NOSIGNAL);  // what it could not hear, the close tells it
    return;
  }
  clients.push_back({std::move(socket), Clock::now() + kAdminIdleMax});
}

// Where a spare descriptor is in use, the client's takes its place: closed, it would be gone to a worker at
// once.
void Admin::Impl::let_go(Client* client) {
  if (spares.size() == kSpares) return;
  if (::dup3(wake.get(), client->socket.get(), O_CLOEXEC) >= 0) spares.push_back(std::move(client->socket));
  keep_spares();
}

void Admin::Impl::keep_spares() {
  while (spares.size() < kSpares) {
    Fd spare(::fcntl(wake.get(), F_DUPFD_CLOEXEC, 0));
    if (!spare.valid()) return;
    spares.push_back(std::move(spare));
  }
}

void Admin::Impl::receive(Client* client) {
  char buffer[1 << 14];
  size_t room = kAdminRequestBytesMax + 1 - client->in.size();
  ssize_t n = ::recv(client->socket.get(), buffer, std::min(room, sizeof buffer), 0);
  if (n > 0) {
    client->in.append(buffer, static_cast<size_t>(n));
  } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
    client->gone = true;
  }
}

void Admin::Impl::send(Client* client) {
  const char* rest = client->out.data() + client->out_sent;
  ssize_t n = ::send(client->socket.get(), rest, client->out.size() - client->out_sent, MSG_NOSIGNAL);
  if (n < 0) {
    client->gone = errno != EAGAIN && errno != EINTR;
    return;
  }
  client->deadline = Clock::now() + kAdminIdleMax;
  client->out_sent += static_cast<size_t>(n);
  if (client->out_sent < client->out.size()) return;
  client->out = std::string();  // gives the memory back
  client->out_sent = 0;
  client->gone = client->close_when_sent;
}

void Admin::Impl::take_request(Client* client) {
  size_t end = client->in.find('\n');
  if (end == std::string::npos) {
    client->out = error_line("a request is at most " + std::to_string(kAdminRequestBytesMax) + " bytes");
    client->in.clear();
    client->close_when_sent = true;
  } else if (unread_bytes() > kAdminUnreadBytesMax) {
    client->out = error_line("other clients have yet to read " + std::to_string(unread_bytes()) +
                             " bytes of answers: try again");
    client->in.erase(0, end + 1);
  } else {
    std::string request = client->in.substr(0, end);
    client->in.erase(0, end + 1);
    return ask(client, request);
  }
  client->deadline = Clock::now() + kAdminIdleMax;
  send(client);
}

void Admin::Impl::ask(Client* client, std::string_view request) {
  const uint64_t ticket = client->ticket = ++last_ticket;
  auto parsed = parse_json(request);
  if (!parsed || !parsed->is_object()) {
    outbox->put(ticket, error_line("a request is one JSON object on one line, at most " +
                                   std::to_string(kJsonDepthMax) + " levels deep"));
  } else {
    try {
      answer(*parsed, asker_of(client->socket.get()),
             [box = outbox, ticket](const Json& said) { box->put(ticket, json_line(said) + "\n"); });
    } catch (const Json::exception& e) {
      outbox->put(ticket, error_line(std::string("malformed request: ") + e.what()));
    }
  }
  deliver();
}

// Those of clients that are gone are dropped.
void Admin::Impl::deliver() {
  eventfd_t count;
  ::eventfd_read(outbox->wake.get(), &count);
  std::vector<std::pair<uint64_t, std::string>> lines;
  {
    std::lock_guard lock(outbox->mutex);
    lines.swap(outbox->lines);
  }
  for (auto& [ticket, line] : lines) {
    const auto client = std::find_if(clients.begin(), clients.end(),
                                     [wanted = ticket](const auto& c) { return c.ticket == wanted; });
    if (client == clients.end()) continue;
    client->ticket = 0;
    client->out = std::move(line);
    client->deadline = Clock::now() + kAdminIdleMax;
    send(&*client);
  }
}

size_t Admin::Impl::unread_bytes() const {
  size_t sum = 0;
  for (const auto& client : clients) sum += client.out.size();
  return sum;
}

}  // namespace penstock::daemon
