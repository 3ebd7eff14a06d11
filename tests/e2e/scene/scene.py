# SPDX-License-Identifier: Apache-2.0
"""The operator's set-up: the internet, another proxy, the edge and the mailbox in a network namespace each, IPv4 and
IPv6 between them, the overlay's name server on the edge, and penstockd with the mail edge of packaging/examples."""
import contextlib
import itertools
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent.parent
sys.path.insert(0, str(ROOT / "tools/lab"))

from daemon import Daemon  # noqa: E402
from mailbox_host import Mailbox, start_nginx  # noqa: E402
from names import Names  # noqa: E402
from stage import MS_BIND, Netns, mount, run  # noqa: E402

CLIENT = {4: "192.0.2.10", 6: "2001:db8:1::10"}
EDGE = {4: "192.0.2.1", 6: "2001:db8:1::1"}
LATE = "192.0.2.77"  # the edge's, when a story adds it
CLIENT_OF_FRONT = {4: "198.51.100.10", 6: "2001:db8:2::10"}
FRONT = {4: "198.51.100.20", 6: "2001:db8:2::20"}  # another proxy
FRONT_TO_EDGE = {4: "100.65.0.20", 6: "fd65::20"}
EDGE_BEHIND_FRONT = {4: "100.65.0.1", 6: "fd65::1"}
INSIDE = {4: "100.64.0.1", 6: "fd64::1"}  # the edge on the overlay
HOME = {4: "100.64.0.25", 6: "fd64::25"}  # the mailbox, before it moves
AWAY = {4: "100.64.0.26", 6: "fd64::26"}  # and after
NOBODY = {4: "100.64.0.27", 6: "fd64::27"}  # the mailbox's host answers there: refused
NAME_SERVER = "100.100.100.100"
MAILBOX = "mailbox.overlay.example"
WWW = "www.example.net"
MAILBOX_NAMES = ("mta-sts.example.net", "autoconfig.example.net", "autodiscover.example.net")


class Scene:
    def __init__(self, stage):
        self.stage = stage
        stage.directory.chmod(0o755)  # postfix and dovecot go there as their own users
        pathlib.Path("/run/penstock").mkdir()  # as systemd makes it: the self-test's verdict is kept there
        self.internet, self.front_host, self.edge_host, self.mailbox_host = (Netns() for _ in range(4))
        cable(self.internet, "eth0", CLIENT.values(), self.edge_host, "eth0", EDGE.values())
        cable(self.internet, "eth1", CLIENT_OF_FRONT.values(), self.front_host, "eth0", FRONT.values())
        cable(self.front_host, "eth1", FRONT_TO_EDGE.values(), self.edge_host, "eth1", EDGE_BEHIND_FRONT.values())
        cable(self.mailbox_host, "overlay0", (*HOME.values(), *AWAY.values(), *NOBODY.values()),
              self.edge_host, "overlay0", INSIDE.values())
        self.edge_host.run("ip", "addr", "add", f"{NAME_SERVER}/32", "dev", "lo")
        resolv_conf = stage.directory / "resolv.conf"
        resolv_conf.write_text(f"nameserver {NAME_SERVER}\n")
        mount(str(resolv_conf), "/etc/resolv.conf", None, MS_BIND)
        self.authority, self.certificate = make_certificates(stage.directory)
        self.names = Names(stage, self.edge_host, NAME_SERVER)
        self.mailbox = Mailbox(stage, self.mailbox_host, (*HOME.values(), *AWAY.values()), INSIDE.values(),
                               MAILBOX_NAMES, self.certificate)
        start_nginx(stage, self.edge_host, "local-web", ("127.0.0.1:8443",), (WWW,), self.certificate)
        self.edges, self.numbers = [], itertools.count(1)
        self.dns_outage_s = 3

    def start_edge(self, *, tables="", change=lambda text: text, **more):
        """penstockd as the example has it; `change`: of its text; `tables`: more TOML; `more`: for Daemon."""
        shipped = (ROOT / "packaging/examples/mail-edge.toml").read_text()
        edge = Daemon(self.stage, self.edge_host, tables + change(shipped), name=f"edge-{next(self.numbers)}",
                      access_log=True, files={"penstock.env": f"MAILBOX_HOST={MAILBOX}\n"}, **more)
        self.edges.append(edge)
        return edge

    @contextlib.contextmanager
    def swallowed(self, *addresses):
        """What the edge sends there arrives nowhere and nothing says so, as when a host has left the overlay."""
        for address in addresses:
            self.edge_host.run("ip", "neigh", "replace", address, "lladdr", "02:00:00:00:00:01", "nud", "permanent",
                               "dev", "overlay0")
        try:
            yield
        finally:
            for address in addresses:
                self.edge_host.run("ip", "neigh", "del", address, "dev", "overlay0")


def cable(one, device, addresses, other, other_device, other_addresses):
    one.run("ip", "link", "add", device, "type", "veth", "peer", "name", other_device,
            "netns", f"/proc/{os.getpid()}/fd/{other.fd}")
    for netns, name, own in ((one, device, addresses), (other, other_device, other_addresses)):
        for address in own:
            prefix = 64 if ":" in address else 24
            netns.run("ip", "addr", "add", f"{address}/{prefix}", "dev", name, "nodad")
        netns.run("ip", "link", "set", name, "up")


def make_certificates(directory):
    """(CA's certificate, file of the server's certificate and key) for every name and address a client may ask for."""
    authority, key, server = directory / "ca.pem", directory / "ca.key", directory / "server.pem"
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-days", "2", "-x509")
    run("openssl", "req", *curve, "-subj", "/CN=Example CA", "-keyout", key, "-out", authority)
    subjects = [*(f"DNS:{name}" for name in (*MAILBOX_NAMES, WWW)),
                *(f"IP:{address}" for address in (*EDGE.values(), *FRONT.values(), *HOME.values()))]
    run("openssl", "req", *curve, "-CA", authority, "-CAkey", key, "-subj", "/CN=mailbox", "-addext",
        "subjectAltName=" + ",".join(subjects), "-addext", "basicConstraints=critical,CA:FALSE",
        "-keyout", directory / "server.key", "-out", directory / "server.crt")
    server.write_text((directory / "server.key").read_text() + (directory / "server.crt").read_text())
    return authority, server
