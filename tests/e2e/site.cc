// SPDX-License-Identifier: Apache-2.0
#include "e2e/site.h"

#include <stdexcept>

namespace penstock::test {

Site::Site() {
  Netns::join(client_, "eth0", {std::string(kClientV4) + "/24", std::string(kClientV6) + "/64"},  //
              edge_, "clients", {std::string(kEdgeV4) + "/24", std::string(kEdgeV6) + "/64"});
  Netns::join(servers_, "eth0", {std::string(kServerV4) + "/24", std::string(kServerV6) + "/64"},  //
              edge_, "servers", {"198.51.100.1/24", "2001:db8:2::1/64"});
}

void Site::TearDown() {
  if (daemon_) {
    EXPECT_TRUE(daemon_->wait_active(0)) << daemon_->flows();
    const Json totals = daemon_->totals();
    uint64_t closed = 0;
    for (const auto& reason : totals.at("closed")) closed += reason.get<uint64_t>();
    EXPECT_EQ(totals.at("accepted"), closed) << totals;
    EXPECT_EQ(daemon_->stop(), 0);
  }
  if (!HasFailure()) return;
  if (daemon_) std::fprintf(stderr, "---- the daemon said ----\n%s", daemon_->log().c_str());
  for (const auto& program : programs_)
    std::fprintf(stderr, "---- a server said ----\n%s", program.output().c_str());
}

std::string Site::pass_through(const std::vector<uint16_t>& ports, const std::string& proxy_protocol,
                               const std::string& server) {
  std::string bind;
  for (const uint16_t port : ports) bind += (bind.empty() ? "\":" : ", \":") + std::to_string(port) + "\"";
  return "[upstream.server]\nservers = [\"" + server + "\"]\nproxy_protocol = \"" + proxy_protocol +
         "\"\n[[listener]]\nname = \"all\"\nbind = [" + bind + "]\nupstream = \"server\"\n";
}

void Site::start_edge(const std::string& tables) {
  const Netns::Inside inside(edge_);
  DaemonOptions options;
  options.tables = tables;
  daemon_.emplace(options);
}

Process& Site::start_server(const std::vector<std::string>& argv, const std::vector<uint16_t>& ports) {
  return start_listening(servers_, kServerV4, argv, ports);
}

Process& Site::start_at_client(const std::vector<std::string>& argv, const std::vector<uint16_t>& ports) {
  return start_listening(client_, "127.0.0.1", argv, ports);
}

Process& Site::start_listening(const Netns& where, const char* address, const std::vector<std::string>& argv,
                               const std::vector<uint16_t>& ports) {
  const Netns::Inside inside(where);
  Process& program = programs_.emplace_back(argv);
  for (const uint16_t port : ports) {
    const bool listens =
        wait_until([&] { return !program.running() || TcpStream::try_connect(at(address, port)) == 0; });
    if (!listens || !program.running()) {
      throw std::runtime_error(argv[0] + " does not listen on " + std::to_string(port) + ":\n" +
                               program.output());
    }
  }
  return program;
}

std::string Site::at_client(const std::vector<std::string>& argv, const std::string& input) const {
  const Netns::Inside inside(client_);
  ProcessOptions options;
  options.input = input;
  Process process(argv, options);
  const int code = process.wait_exit();
  if (code != 0)
    throw std::runtime_error(argv[0] + ": exit " + std::to_string(code) + ": " + process.output());
  return process.output();
}

TcpStream Site::connect(const char* edge, uint16_t port) const {
  const Netns::Inside inside(client_);
  return TcpStream::connect(at(edge, port));
}

void Site::make_certificate(const std::string& name) const {
  Process openssl({"openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
                   "-nodes", "-days", "2", "-subj", "/CN=" + name, "-addext", "subjectAltName=DNS:" + name,
                   "-keyout", file(name + ".key"), "-out", file(name + ".pem")});
  if (openssl.wait_exit() != 0) throw std::runtime_error("openssl req: " + openssl.output());
}

bool Site::server_said(const std::string& text) const {
  for (const auto& program : programs_) {
    if (program.wait_for(text)) return true;
  }
  return false;
}

}  // namespace penstock::test
