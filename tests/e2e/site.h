// SPDX-License-Identifier: Apache-2.0
// e2e/site.h: a small site: client, edge and servers in a namespace each, joined by veth, IPv4 and IPv6. The
// daemon runs on the edge; what a test starts on the servers is a real program with its own configuration.
#pragma once
#include <gtest/gtest.h>

#include <list>
#include <optional>
#include <string>
#include <vector>

#include "support/daemon.h"
#include "support/netns.h"
#include "support/tcp.h"

namespace penstock::test {

class Site : public testing::Test {
 protected:
  static constexpr const char* kClientV4 = "192.0.2.10";
  static constexpr const char* kClientV6 = "2001:db8:1::10";
  static constexpr const char* kEdgeV4 = "192.0.2.1";
  static constexpr const char* kEdgeV6 = "2001:db8:1::1";
  static constexpr const char* kServerV4 = "198.51.100.25";
  static constexpr const char* kServerV6 = "2001:db8:2::25";

  Site();
  void TearDown() override;

  // Listener on each port of the edge → the same port of the server, with this proxy_protocol.
  static std::string pass_through(const std::vector<uint16_t>& ports, const std::string& proxy_protocol,
                                  const std::string& server = kServerV4);
  void start_edge(const std::string& tables);
  // Returns once it listens on all of `ports` of kServerV4.
  Process& start_server(const std::vector<std::string>& argv, const std::vector<uint16_t>& ports);
  // Likewise at the client, on 127.0.0.1.
  Process& start_at_client(const std::vector<std::string>& argv, const std::vector<uint16_t>& ports);
  // Runs it at the client until it ends; its output. `input` is its stdin.
  std::string at_client(const std::vector<std::string>& argv, const std::string& input = "") const;
  TcpStream connect(const char* edge, uint16_t port) const;

  // A self-signed certificate for `name`: NAME.pem and NAME.key in the site's directory.
  void make_certificate(const std::string& name) const;
  std::string file(const std::string& name) const { return directory_.path() + "/" + name; }
  bool server_said(const std::string& text) const;

  Process& start_listening(const Netns& where, const char* address, const std::vector<std::string>& argv,
                           const std::vector<uint16_t>& ports);

  TempDir directory_;
  Netns client_, edge_, servers_;
  std::list<Process> programs_;
  std::optional<Daemon> daemon_;
};

}  // namespace penstock::test
