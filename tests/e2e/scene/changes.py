# SPDX-License-Identifier: Apache-2.0
"""What the operator changes while mail flows."""
import threading
import time

from scene import AWAY, HOME, LATE, MAILBOX
from stage import Failed, wait_for
from story import Story

OTHER = "other.overlay.example"


class Load:
    """Clients that deliver one mail after the other until the block ends."""

    def __init__(self, internet, clients):
        self.internet, self.over = internet, threading.Event()
        self.delivered, self.failures = [], []
        self.threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for thread in self.threads:
            thread.join()

    def wait_more(self, mails):
        wanted = len(self.delivered) + mails
        wait_for(f"{mails} more mails", lambda: len(self.delivered) >= wanted or self.failures)

    def _run(self):
        while not self.over.is_set():
            try:
                self.delivered.append(self.internet.deliver())
            except OSError as failure:
                self.failures.append(str(failure))


class Changes(Story):
    def reload(self, edge):
        return edge.penstock("reload")

    def test_reloads_under_load_fail_no_delivery(self):
        edge = self.start_edge()
        idle = self.internet.imap(4, 993)
        with Load(self.internet, 8) as load:
            for _ in range(10):
                load.wait_more(20)
                self.reload(edge)
            load.wait_more(20)
        self.assertEqual(load.failures, [])
        idle.logout()
        self.figure(f"{len(load.delivered)} deliveries over 10 reloads, {len(load.failures)} failed")

    def test_a_bad_file_changes_nothing_and_says_why(self):
        edge = self.start_edge()
        good = edge.config.read_text()
        edge.config.write_text(good + "\n[upstream.broken]\nsevers = []\n")
        with self.assertRaisesRegex(Failed, rf"penstock.toml:{good.count(chr(10)) + 3}:1: error: .*severs"):
            self.reload(edge)
        self.internet.deliver()

    def test_an_edit_of_penstock_env_alone(self):
        self.names.point(MAILBOX, HOME[4])
        self.names.point(OTHER, AWAY[4])
        edge = self.start_edge()
        self.assertEqual(self.server_of_a_flow(edge), f"{HOME[4]}:25")
        env = edge.config.parent / "penstock.env"
        env.write_text(env.read_text().replace(MAILBOX, OTHER))
        self.reload(edge)
        self.assertEqual(self.server_of_a_flow(edge), f"{AWAY[4]}:25")

    def server_of_a_flow(self, edge):
        with self.internet.smtp() as session:
            (flow,) = edge.flows()
            self.internet.send(session)
        edge.wait_active(0)
        return flow["server"]

    def test_the_listening_address_appears_after_the_daemon(self):
        edge = self.start_edge(change=lambda text: text.replace('":25"', f'"{LATE}:25"'))
        self.assertIn("waiting", str(edge.status()["listeners"]))
        self.scene.edge_host.run("ip", "addr", "add", f"{LATE}/24", "dev", "eth0")
        self.addCleanup(self.scene.edge_host.run, "ip", "addr", "del", f"{LATE}/24", "dev", "eth0")
        began_s = time.monotonic()
        wait_for("the edge to listen there", lambda: self.delivers_to(LATE))
        self.figure(f"first delivery {time.monotonic() - began_s:.2f} s after the address")
        edge.wait_active(0)  # while the client can still acknowledge the end

    def delivers_to(self, address):
        try:
            return bool(self.internet.deliver(server=address))
        except OSError:
            return False
