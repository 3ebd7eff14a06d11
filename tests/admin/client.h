// SPDX-License-Identifier: Apache-2.0
// tests/admin/client.h: a directory that goes away, and a client of a Unix socket that can misbehave.
#pragma once
#include <string>
#include <string_view>

#include "base/fd.h"

namespace penstock::testing {

class TemporaryDirectory {
 public:
  TemporaryDirectory();
  ~TemporaryDirectory();
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  std::string operator/(std::string_view name) const { return path_ + "/" + std::string(name); }

 private:
  std::string path_;
};

class Client {
 public:
  explicit Client(const std::string& path);  // asserts that it connects
  void send(std::string_view bytes);  // blocks until the daemon has taken them; a closed peer is no error
  void shut_down();
  // The next line without its end; "(closed)" when the peer closes first, "(nothing)" after 60 s of silence.
  std::string line();

 private:
  Fd socket_;
  std::string received_;
};

}  // namespace penstock::testing
