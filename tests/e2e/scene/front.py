# SPDX-License-Identifier: Apache-2.0
"""Another proxy stands in front of the edge and speaks PROXY to it: it is believed, nobody else."""
import re

from mailbox_host import wait_listening
from scene import CLIENT, CLIENT_OF_FRONT, EDGE_BEHIND_FRONT, FRONT, FRONT_TO_EDGE
from stage import wait_for
from story import Story

V2_OF_A_STRANGER = bytes.fromhex("0d0a0d0a000d0a515549540a 21 11 000c cb007142 c0000201 1267 0019")  # 203.0.113.66
V1_OF_A_STRANGER = b"PROXY TCP4 203.0.113.66 192.0.2.1 4711 25\r\n"
HAPROXY_CFG = """
defaults
  mode tcp
  timeout connect 5s
  timeout client 60s
  timeout server 60s
"""
LISTEN = """
listen front-{family}-{port}
  bind [{front}]:{port}
  server edge [{edge}]:{port} {options}
"""


def believe_the_front(others=""):
    """The example with an accept_proxy on its mail listener."""
    accepts = ", ".join(f'"{address}"' for address in FRONT_TO_EDGE.values())
    return lambda text: text.replace('name     = "mail"\n',
                                     f'name     = "mail"\naccept_proxy = {{ from = [{accepts}]{others} }}\n')


def without_checks(text):
    """Whose own words in the mailbox's log would come when they like."""
    return re.sub(r"^check .*\n", "", text, flags=re.MULTILINE)


class Front(Story):
    def start_front(self, options, ports=(25, 993)):
        config = self.scene.stage.directory / "front.cfg"
        config.write_text(HAPROXY_CFG + "".join(
            LISTEN.format(family=family, port=port, front=FRONT[family], edge=EDGE_BEHIND_FRONT[family], options=options)
            for family in FRONT for port in ports))
        front = self.scene.stage.start(self.scene.front_host, "haproxy", "haproxy", "-db", "-f", config)
        self.addCleanup(front.stop)
        wait_listening(front, self.scene.front_host, set(ports))

    def test_the_mailbox_sees_the_first_client_by_v1(self):
        self.the_mailbox_sees_the_first_client("send-proxy")

    def test_the_mailbox_sees_the_first_client_by_v2(self):
        self.the_mailbox_sees_the_first_client("send-proxy-v2")

    def the_mailbox_sees_the_first_client(self, options):
        self.start_edge(change=believe_the_front())
        self.start_front(options)
        for family in FRONT:
            tag = self.internet.swaks(family, 25, server=FRONT)
            self.assert_true_client(tag, 25, CLIENT_OF_FRONT[family])
            user = f"{options}-{family}"
            self.internet.imap(family, 993, user, server=FRONT).logout()
            self.assertEqual(self.mailbox.imap_client(user, 993), CLIENT_OF_FRONT[family])
        self.figure(self.mailbox.last_line(self.mailbox.imap_log, "Login: "))

    def test_its_probes_reach_nobody(self):
        edge = self.start_edge(change=lambda text: without_checks(believe_the_front()(text)))
        before = self.mailbox.smtp_log() + self.mailbox.imap_log()
        self.start_front("send-proxy-v2 check check-send-proxy inter 50ms")
        wait_for("probes", lambda: edge.totals()["accepted"] >= 20)
        self.assertEqual(self.mailbox.smtp_log() + self.mailbox.imap_log(), before)
        self.assert_true_client(self.internet.swaks(4, 25, server=FRONT), 25, CLIENT_OF_FRONT[4])

    def test_strangers_are_rejected(self):
        edge = self.start_edge(change=believe_the_front())
        for opening in (V1_OF_A_STRANGER, V2_OF_A_STRANGER, b"EHLO client.example.org\r\n"):
            self.assertEqual(self.answer_to(opening), b"")
        wait_for("all to be counted", lambda: edge.totals()["closed"]["proxy_not_trusted"] == 3)

    def test_others_are_clients_themselves_unless_they_forge(self):
        edge = self.start_edge(change=believe_the_front(', others = "direct"'))
        self.assert_true_client(self.internet.swaks(4, 25), 25, CLIENT[4])
        for opening in (V1_OF_A_STRANGER, V2_OF_A_STRANGER):
            self.assertNotIn(b"500", self.answer_to(opening))
        wait_for("both to be counted", lambda: edge.totals()["closed"]["proxy_not_trusted"] == 2)
        self.assertNotIn("[203.0.113.66]", self.mailbox.smtp_log())

    def answer_to(self, opening):
        """All that a stranger is told who opens so; empty also when he is reset."""
        try:
            with self.internet.connect(25) as stream:
                stream.sendall(opening)
                return b"".join(iter(lambda: stream.recv(4096), b""))
        except ConnectionError:
            return b""
