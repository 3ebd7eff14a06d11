// SPDX-License-Identifier: Apache-2.0
#include "mail_site.h"

#include <pwd.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <stdexcept>

namespace penstock::test {
namespace {

constexpr char kMainCf[] = R"(
maillog_file_prefixes = /tmp
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
setgid_group = postdrop
inet_interfaces = 198.51.100.25
inet_protocols = ipv4
myhostname = mailbox.example.net
mydestination = mailbox.example.net
mynetworks = 127.0.0.0/8
local_transport = discard:
local_recipient_maps =
alias_maps =
smtpd_peername_lookup = no
postscreen_greet_wait = 1s
postscreen_cache_map =
)";
constexpr char kMasterCf[] = R"(
198.51.100.25:25 inet n - n - - smtpd
198.51.100.25:465 inet n - n - - smtpd -o smtpd_tls_wrappermode=yes
198.51.100.25:2525 inet n - n - - smtpd -o smtpd_upstream_proxy_protocol=haproxy
198.51.100.25:587 inet n - n - 1 postscreen -o postscreen_upstream_proxy_protocol=haproxy
smtpd pass - - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
proxymap unix - - n - - proxymap
anvil unix - - n - 1 anvil
tlsmgr unix - - n 1000? 1 tlsmgr
dnsblog unix - - n - 0 dnsblog
tlsproxy unix - - n - 0 tlsproxy
postlog unix-dgram n - n - 1 postlogd
)";
constexpr char kDovecotConf[] = R"(
log_path = /dev/stderr
auth_verbose = yes
protocols = imap
listen = 198.51.100.25
ssl = yes
haproxy_trusted_networks = 198.51.100.1
passdb {
  driver = static
  args = nopassword=y
}
userdb {
  driver = static
  args = uid=65534 gid=65534 home=/nonexistent
}
service imap-login {
  inet_listener imap {
    port = 143
  }
  inet_listener imaps {
    port = 993
  }
  inet_listener imap_proxy {
    port = 1143
    haproxy = yes
  }
  inet_listener imaps_proxy {
    port = 1993
    ssl = yes
    haproxy = yes
  }
}
)";

}  // namespace

void MailSite::start_postfix() {
  const passwd* owner = ::getpwnam("postfix");
  if (owner == nullptr) throw std::runtime_error("postfix is not installed");
  for (const char* name : {"etc", "spool", "lib"}) ::mkdir(file(name).c_str(), 0755);
  if (::chown(file("lib").c_str(), owner->pw_uid, owner->pw_gid) != 0)
    throw std::runtime_error("cannot give postfix its directory");
  make_certificate("mailbox.example.net");
  directory_.write("etc/main.cf", "compatibility_level = 3.6\nqueue_directory = " + file("spool") +
                                      "\ndata_directory = " + file("lib") +
                                      "\nmaillog_file = " + file("mail.log") +
                                      "\nsmtpd_tls_cert_file = " + file("mailbox.example.net.pem") +
                                      "\nsmtpd_tls_key_file = " + file("mailbox.example.net.key") + kMainCf);
  directory_.write("etc/master.cf", kMasterCf);
  // Its master leaves the process group: a pid namespace ends them all together. It listens before it is
  // ready, so its log is what to wait for.
  const Netns::Inside inside(servers_);
  programs_.emplace_back(std::vector<std::string>{"unshare", "--pid", "--fork", "--kill-child",
                                                  "--mount-proc", "postfix", "-c", file("etc"), "start-fg"});
  if (!mail_logged("daemon started")) throw std::runtime_error("postfix: " + programs_.back().output());
}

bool MailSite::mail_logged(const std::string& text) const {
  return wait_until([&] { return mail_log().find(text) != std::string::npos; });
}

void MailSite::start_dovecot() {
  make_certificate("imap.example.net");
  directory_.write("dovecot.conf", "base_dir = " + file("dovecot") + "\nstate_dir = " + file("dovecot") +
                                       "\nssl_cert = <" + file("imap.example.net.pem") + "\nssl_key = <" +
                                       file("imap.example.net.key") + kDovecotConf);
  const Netns::Inside inside(servers_);
  dovecot_ = &programs_.emplace_back(std::vector<std::string>{"dovecot", "-F", "-c", file("dovecot.conf")});
  if (!dovecot_->wait_for("starting up"))  // said once it listens
    throw std::runtime_error("dovecot: " + dovecot_->output());
}

void MailSite::start_nginx() {
  make_certificate("www.example.net");
  directory_.write("nginx.conf", "user root;\ndaemon off;\npid " + file("nginx.pid") +
                                     ";\nerror_log stderr info;\nevents {}\nhttp {\naccess_log off;\n"
                                     "client_body_temp_path " +
                                     file("body") + ";\nproxy_temp_path " + file("proxy") +
                                     ";\nfastcgi_temp_path " + file("fastcgi") + ";\nuwsgi_temp_path " +
                                     file("uwsgi") + ";\nscgi_temp_path " + file("scgi") +
                                     ";\nserver {\nssl_certificate " + file("www.example.net.pem") +
                                     ";\nssl_certificate_key " + file("www.example.net.key") +
                                     R"(;
listen 198.51.100.25:443 ssl;
listen 198.51.100.25:1443 ssl proxy_protocol;
listen 198.51.100.25:80;
listen 198.51.100.25:1080 proxy_protocol;
return 200 "here";
} }
)");
  nginx_ =
      &start_server({"nginx", "-e", "stderr", "-p", directory_.path(), "-c", file("nginx.conf")}, {kHttp});
}

void MailSite::start_haproxy() {
  directory_.write("haproxy.cfg", R"(
global
  log stderr format raw local0
defaults
  mode tcp
  log global
  option tcplog
  timeout connect 5s
  timeout client 10s
  timeout server 10s
listen smtp
  bind 198.51.100.25:3025 accept-proxy
  server postfix 198.51.100.25:25
)");
  haproxy_ = &start_server({"haproxy", "-db", "-f", file("haproxy.cfg")}, {kHaproxy});
}

// A veth pair that asks nobody for an address: what leaves at one end is for somebody else at the other.
std::vector<std::string> MailSite::dnsmasq(const std::vector<std::string>& records) {
  std::vector<std::string> words{"dnsmasq",
                                 "--no-daemon",
                                 "--conf-file=/dev/null",
                                 "--user=root",
                                 "--no-resolv",
                                 "--no-hosts",
                                 "--bind-interfaces",
                                 "--listen-address=127.0.0.1",
                                 "--local=/example.net/",
                                 "--log-queries"};
  words.insert(words.end(), records.begin(), records.end());
  return words;
}

void MailSite::make_void() {
  edge_.ip("link add void type veth peer name hole");
  edge_.ip("address add 203.0.113.1/24 dev void");
  edge_.ip("link set void arp off up");
  edge_.ip("link set hole up");
}

check::Outcome MailSite::probe(check::Order order) const {
  const Netns::Inside inside(edge_);
  check::Probe probe(std::move(order), check::Clock::now());
  while (!probe.done()) {
    pollfd polled = probe.wanted();
    const auto left = std::chrono::ceil<milliseconds>(probe.deadline() - check::Clock::now());
    ::poll(&polled, 1, static_cast<int>(std::max<int64_t>(0, left.count())));
    probe.advance(check::Clock::now());
  }
  return probe.outcome();
}

check::Order MailSite::order(uint16_t port, config::CheckType type, config::ProxyProtocol proxy_protocol,
                             bool local) {
  check::Order o;
  o.to = at(kServerV4, port);
  o.type = type;
  o.proxy_protocol = proxy_protocol;
  o.local = local;
  return o;
}

void MailSite::TearDown() {
  if (HasFailure()) std::fprintf(stderr, "---- postfix said ----\n%s", mail_log().c_str());
  Site::TearDown();
}

}  // namespace penstock::test
