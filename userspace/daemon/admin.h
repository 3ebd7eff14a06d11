// SPDX-License-Identifier: Apache-2.0
// daemon/admin.h: the admin socket. A client writes one JSON object a line and reads one back for each, in
// order, as often as it likes. One thread of its own; a slow, silent or malicious client delays nobody but
// itself. What the commands mean is not known here. tests/admin/admin_test.cc keeps it true.
#pragma once
#include <sys/types.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "base/fd.h"
#include "base/result.h"
#include "daemon/json.h"

namespace penstock::daemon {

inline constexpr size_t kAdminRequestBytesMax = 64 << 10;  // one line
inline constexpr size_t kAdminConnectionsMax = 64;         // one more is told so and closed
inline constexpr size_t kAdminUnreadBytesMax =
    64 << 20;  // of all answers not read yet; beyond it requests are refused
inline constexpr std::chrono::seconds kAdminIdleMax{
    5};  // without a whole request, or a byte of an answer read

// Listens from its open() to its end, whoever answers meanwhile.
class AdminSocket {
 public:
  // On `path`: mode 0660, group "penstock" where that exists and may be given. Creates its directory (0755),
  // replaces the socket of a daemon that is gone. An error when another one listens there.
  static Result<AdminSocket> open(const std::string& path);
  // What another program opened, for one that has its descriptor, which stays somebody else's.
  struct Handle {
    int32_t fd;
    uint64_t device, inode;
    char path[108];
  };
  static AdminSocket reopen(const Handle& handle);
  Handle handle() const;
  int fd() const { return number_; }
  const std::string& path() const { return path_; }
  void remove() const;  // if it is still ours

 private:
  Fd socket_;
  int number_ = -1;
  std::string path_;
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

class Admin {
 public:
  // Takes the answer to one request: once, from any thread, also when the client or the Admin is gone by
  // then.
  using Reply = std::function<void(const Json& answer)>;
  // Runs on the admin thread, one request (always an object) at a time. `asker`: who has connected. It calls
  // `reply` at once, or later: then that client's next request waits, and nobody else's. A Json exception,
  // thrown when a member of the request is missing or has another type than asked for, becomes {"error":
  // ...}.
  using Answer = std::function<void(const Json& request, uid_t asker, const Reply& reply)>;

  // REQUIRES: `socket` outlives it, and has no other Admin.
  static Result<std::unique_ptr<Admin>> start(const AdminSocket& socket, Answer answer);
  // With a socket of its own, removed at its end.
  static Result<std::unique_ptr<Admin>> start(const std::string& path, Answer answer);
  ~Admin();  // closes every connection, joins the thread

 private:
  struct Impl;
  explicit Admin(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace penstock::daemon
