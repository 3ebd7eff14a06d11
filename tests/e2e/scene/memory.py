# SPDX-License-Identifier: Apache-2.0
"""What the idle edge weighs, and what 1,000 clients in IMAP IDLE add to it. A bare `run` leaves this act out."""
import concurrent.futures
import contextlib
import imaplib
import resource
import time

from internet import IdleImap
from machine import bpf_bytes, mapped_bpf_bytes, resident_bytes, slab_bytes
from mailbox_host import PASSWORD
from scene import EDGE, HOME
from stage import PATIENCE_S, wait_for
from story import Story

CLIENTS, AT_ONCE = 1000, 16
IDLE_MAX = 40 << 20
LARGEST = 49152  # what max_flows is by default on a host with RAM and descriptors for it
PROXY_LOCAL = bytes.fromhex("0d0a0d0a000d0a515549540a 20 00 0000")


class ImapAfter(imaplib.IMAP4):
    """With `preface` before the client's first byte."""

    def __init__(self, server, preface):
        self.preface = preface
        super().__init__(server, 143, PATIENCE_S)

    def _create_socket(self, timeout):
        stream = super()._create_socket(timeout)
        stream.sendall(self.preface)
        return stream


class Memory(Story):
    def setUp(self):
        super().setUp()
        files_max = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, files_max))

    def test_idle_edge_with_room_for_the_most_flows(self):
        self.idle(LARGEST)

    def test_idle_edge_and_1000_clients_in_imap_idle(self):
        with self.directly():
            pass  # what dovecot and the kernel keep of the first time is there from now on
        edge = self.idle(None)
        without, empty = settled_slab(), weights(edge)
        with self.directly():
            direct = settled_slab() - without
        with self.clients(self.scene.internet, EDGE[4], b""):
            edge.wait_active(CLIENTS)
            more = {name: value - empty[name] for name, value in weights(edge).items()}
            more["slab"] = settled_slab() - without - direct
            lanes = [one["lane"] for flow in edge.flows() for one in flow["directions"].values()]
        self.assertEqual(lanes, ["splice"] * 2 * CLIENTS)
        self.figure(f"{CLIENTS} clients in IDLE add {text(more)}: {sum(more.values()) / CLIENTS:.0f} bytes each")

    def directly(self):
        return self.clients(self.scene.edge_host, HOME[4], PROXY_LOCAL)

    def idle(self, flows_max):
        """An edge at rest, checks done."""
        without = settled_slab()
        edge = self.start_edge(max_flows=flows_max)
        wait_for("the mailbox to be up", lambda: self.state_of_mailbox(edge) == "up")
        weight = weights(edge) | {"slab": settled_slab() - without}
        total = sum(weight.values())
        self.figure(f"idle, room for {edge.status()['flows_max']} flows: {text(weight)}; in all {mib(total)}")
        self.assertLessEqual(total, IDLE_MAX)
        return edge

    @staticmethod
    def state_of_mailbox(edge):
        return next(u for u in edge.status()["upstreams"] if u["name"] == "mailbox")["servers"][0]["state"]

    @contextlib.contextmanager
    def clients(self, netns, server, preface):
        def one(_):
            with netns.inside():
                session = ImapAfter(server, preface)
            session.starttls(self.internet.tls)
            session.login("reader", PASSWORD)
            return IdleImap(session)
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as threads:
            clients = list(threads.map(one, range(CLIENTS)))
        yield
        for client in clients:
            client.done()


def weights(edge):
    """The maps that the daemon has mapped are in its RSS as well: counted once. Pages that keeper and worker share count for
    both."""
    resident = sum(resident_bytes(pid) - mapped_bpf_bytes(pid) for pid in (edge.pid, edge.worker))
    return {"RSS without maps": resident, "BPF memlock": bpf_bytes(edge.pid)}


def settled_slab():
    """Once it has stopped shrinking: sockets in TIME_WAIT, RCU, processes that have just ended."""
    least, since_s = slab_bytes(), time.monotonic()
    while time.monotonic() - since_s < 3:
        time.sleep(0.1)
        if (now := slab_bytes()) < least - (64 << 10):
            least, since_s = now, time.monotonic()
    return slab_bytes()


def mib(value):
    return f"{value / (1 << 20):.2f} MiB"


def text(weight):
    return ", ".join(f"{name} {mib(value)}" for name, value in weight.items())
