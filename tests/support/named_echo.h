// SPDX-License-Identifier: Apache-2.0
// support/named_echo.h: a server that proves who was reached. To each client it says one line, its name and
// the client address of the PROXY header it required ("mailbox v2 192.0.2.1:1234", "web -" without one), then
// echoes, then passes the FIN back.
#pragma once
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "support/tcp.h"

namespace penstock::test {

class NamedEcho {
 public:
  enum class Proxy { none, required };
  NamedEcho(std::string name, const Endpoint& address, Proxy proxy = Proxy::none);
  ~NamedEcho();
  Endpoint address() const { return listener_.address(); }
  unsigned served() const { return served_; }

 private:
  void accept_all();
  void serve(const TcpStream& client);
  std::string name_;
  Proxy proxy_;
  TcpListener listener_;
  std::atomic<bool> stop_ = false;
  std::atomic<unsigned> served_ = 0;
  std::thread acceptor_;
};

}  // namespace penstock::test
