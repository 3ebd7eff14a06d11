# SPDX-License-Identifier: Apache-2.0
"""The mailbox: postfix, dovecot and nginx with configurations and directories of their own, and what their logs say."""
import os
import pwd
import re

from stage import Failed, wait_for

DOMAIN = "example.net"
PASSWORD = "water"
MAIL_USER = 5000  # owns the mail; needs no name

MAIN_CF = """
compatibility_level = 3.6
queue_directory = {postfix}/spool
data_directory = {postfix}/lib
maillog_file = {postfix}/mail.log
maillog_file_prefixes = /run
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
setgid_group = postdrop
inet_interfaces = {addresses}
inet_protocols = all
myhostname = mail.example.net
mydestination =
mynetworks = 127.0.0.0/8
virtual_mailbox_domains = example.net
virtual_mailbox_base = {mail}
virtual_mailbox_maps = static:box/
virtual_uid_maps = static:5000
virtual_gid_maps = static:5000
virtual_mailbox_limit = 0
message_size_limit = 67108864
alias_maps =
default_process_limit = 300
smtpd_client_connection_count_limit = 0
smtpd_peername_lookup = no
smtpd_relay_restrictions = reject_unauth_destination
smtpd_upstream_proxy_protocol = haproxy
smtpd_tls_chain_files = {certificate}
smtpd_tls_security_level = may
"""
MASTER_CF = """
25 inet n - n - - smtpd -o syslog_name=postfix/25
587 inet n - n - - smtpd -o syslog_name=postfix/587 -o smtpd_tls_security_level=encrypt
465 inet n - n - - smtpd -o syslog_name=postfix/465 -o smtpd_tls_wrappermode=yes
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
error unix - - n - - error
proxymap unix - - n - - proxymap
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
tlsmgr unix - - n 1000? 1 tlsmgr
postlog unix-dgram n - n - 1 postlogd
"""
DOVECOT_CONF = """
base_dir = {dovecot}/run
state_dir = {dovecot}
log_path = {dovecot}/dovecot.log
protocols = imap
listen = {addresses}
ssl = required
ssl_cert = <{certificate}
ssl_key = <{certificate}
haproxy_trusted_networks = {edge}
login_log_format_elements = user=<%u> rip=%r rport=%b lip=%l lport=%a %c
mail_location = maildir:{mail}/box
mail_max_userip_connections = 0
first_valid_uid = 5000
passdb {{
  driver = static
  args = password=water
}}
userdb {{
  driver = static
  args = uid=5000 gid=5000 home={mail}
}}
default_process_limit = 1100
default_client_limit = 4500
service imap {{
  process_limit = 1100
}}
service imap-login {{
  service_count = 0
  inet_listener imap {{
    haproxy = yes
  }}
  inet_listener imaps {{
    haproxy = yes
  }}
}}
"""
NGINX_CONF = """
user root;
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr;
events {{}}
http {{
  access_log off;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  server {{
    {listen}
    server_name {names};
    ssl_certificate {certificate};
    ssl_certificate_key {certificate};
    location / {{ return 200 "$ssl_server_name at {name}\\n"; }}
    location = /.well-known/mta-sts.txt {{
      return 200 "version: STSv1\\nmode: enforce\\nmx: mail.example.net\\nmax_age: 604800\\n";
    }}
  }}
}}
"""


def start_nginx(stage, netns, name, endpoints, names, certificate):
    """HTTPS without PROXY on each of `endpoints`."""
    directory = stage.directory / name
    directory.mkdir()
    config = directory / "nginx.conf"
    config.write_text(NGINX_CONF.format(
        directory=directory, names=" ".join(names), name=name, certificate=certificate,
        listen=" ".join(f"listen {endpoint} ssl;" for endpoint in endpoints)))
    process = stage.start(netns, name, "nginx", "-e", "stderr", "-p", directory, "-c", config)
    wait_listening(process, netns, {int(endpoint.rpartition(":")[2]) for endpoint in endpoints})


def wait_listening(process, netns, ports):
    def listening():
        if not process.running():
            raise Failed(f"{process.child.args[0]}: exit {process.child.returncode}:\n{process.log()}")
        return ports <= listening_ports(netns)
    wait_for(f"{process.child.args[0]} to listen on {sorted(ports)}", listening)


def listening_ports(netns):
    return {int(port) for port in re.findall(r":(\d+) +\S+ *$", netns.run("ss", "-Hltn"), re.M)}


class Mailbox:
    SMTP, IMAP = {25, 465, 587}, {143, 993}

    def __init__(self, stage, netns, addresses, edge, names, certificate):
        self.stage, self.netns = stage, netns
        directory = stage.directory / "mailbox"
        self.postfix, self.dovecot, self.mail = (directory / name for name in ("postfix", "dovecot", "mail"))
        for made in (directory, self.postfix, self.postfix / "spool", self.postfix / "lib", self.dovecot, self.mail):
            made.mkdir()
        owner = pwd.getpwnam("postfix")
        os.chown(self.postfix / "lib", owner.pw_uid, owner.pw_gid)
        os.chown(self.mail, MAIL_USER, MAIL_USER)
        values = {"postfix": self.postfix, "dovecot": self.dovecot, "mail": self.mail, "certificate": certificate,
                  "addresses": ", ".join(addresses), "edge": " ".join(edge)}
        (self.postfix / "main.cf").write_text(MAIN_CF.format(**values))
        (self.postfix / "master.cf").write_text(MASTER_CF)
        (self.dovecot / "dovecot.conf").write_text(DOVECOT_CONF.format(**values))
        start_nginx(stage, netns, "mailbox-web",
                    [f"[{a}]:443" if ":" in a else f"{a}:443" for a in addresses], names, certificate)
        process = stage.start(netns, "dovecot", "dovecot", "-F", "-c", self.dovecot / "dovecot.conf")
        wait_listening(process, netns, self.IMAP)
        netns.run("postfix", "-c", self.postfix, "check")  # makes the queue's directories
        self.smtp = None
        self.start_smtp()

    def start_smtp(self):
        # Not `postfix start-fg`: its master outlives it.
        self.smtp = self.stage.start(self.netns, "postfix", "/usr/lib/postfix/sbin/master", "-s", "-c", self.postfix)
        wait_listening(self.smtp, self.netns, self.SMTP)

    def stop_smtp(self):
        """From here on connections are refused, open ones cut."""
        self.smtp.stop()
        wait_for("postfix to end", lambda: not self.SMTP & listening_ports(self.netns))

    def smtp_log(self):
        return (self.postfix / "mail.log").read_text()

    def imap_log(self):
        return (self.dovecot / "dovecot.log").read_text()

    def smtp_client(self, tag, port):
        """Whom smtpd on that port says it had the mail from whose Message-ID is <tag@...>."""
        queue_id = self._find(self.smtp_log, rf"/cleanup\[\d+\]: (\w+): message-id=<{tag}@")
        return self._find(self.smtp_log, rf"postfix/{port}/smtpd\[\d+\]: {queue_id}: client=unknown\[([^]]+)\]")

    def imap_client(self, user, port):
        """Its rip= at the login of that user, who came in on that port."""
        return self._find(self.imap_log, rf"Login: user=<{user}>, rip=([^,]+), rport=\d+, lip=[^,]+, lport={port},")

    @staticmethod
    def last_line(log, text):
        return [line for line in log().splitlines() if text in line][-1]

    @staticmethod
    def _find(log, pattern):
        found = None

        def look():
            nonlocal found
            found = re.search(pattern, log())
            return found
        wait_for(f"the mailbox to log {pattern}", look)
        return found[1]

    def wait_delivered(self, tag):
        """Until the mail whose Message-ID is <tag@...> is in the mailbox."""
        queue_id = self._find(self.smtp_log, rf"/cleanup\[\d+\]: (\w+): message-id=<{tag}@")
        status = self._find(self.smtp_log, rf"/virtual\[\d+\]: {queue_id}: .*status=(\w+) ")
        if status != "sent":
            raise Failed(f"{tag}: {status}")
