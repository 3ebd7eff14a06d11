// SPDX-License-Identifier: Apache-2.0
// check/mail_site.h: a site whose servers are postfix, dovecot, nginx and HAProxy, each port with or without
// PROXY, and their logs: what a check looks like from there.
#pragma once
#include <functional>

#include "check/probe.h"
#include "e2e/site.h"

namespace penstock::test {

class MailSite : public Site {
 protected:
  // postfix. smtpd, smtpd behind TLS; smtpd and postscreen that require PROXY.
  static constexpr uint16_t kSmtp = 25, kSmtps = 465, kSmtpProxy = 2525, kPostscreenProxy = 587;
  // dovecot, without and with haproxy = yes.
  static constexpr uint16_t kImap = 143, kImaps = 993, kImapProxy = 1143, kImapsProxy = 1993;
  // nginx, without and with `listen ... proxy_protocol`; TLS and plain.
  static constexpr uint16_t kHttps = 443, kHttpsProxy = 1443, kHttp = 80, kHttpProxy = 1080;
  // HAProxy with accept-proxy, tcp mode, before postfix's smtpd.
  static constexpr uint16_t kHaproxy = 3025;
  // Nobody answers there, not even with a refusal. On the edge's side.
  static constexpr const char* kVoid = "203.0.113.7";
  static constexpr const char* kEdgeAtServers = "198.51.100.1";

  void start_postfix();
  void start_dovecot();
  void start_nginx();
  void start_haproxy();
  void make_void();
  // The words that start a name server on 127.0.0.1:53 with these records, options of dnsmasq, and no others.
  static std::vector<std::string> dnsmasq(const std::vector<std::string>& records);

  std::string mail_log() const { return read_file(file("mail.log")); }
  bool mail_logged(const std::string& text) const;

  // On the edge, until it is done.
  check::Outcome probe(check::Order order) const;
  static check::Order order(uint16_t port, config::CheckType type,
                            config::ProxyProtocol proxy_protocol = config::ProxyProtocol::off,
                            bool local = true);
  void TearDown() override;

  Process* dovecot_ = nullptr;
  Process* nginx_ = nullptr;
  Process* haproxy_ = nullptr;
};

}  // namespace penstock::test
