# SPDX-License-Identifier: Apache-2.0
"""Faults of the path to the clients and to the servers: see faults.py."""
import socket
import threading
import time

from fault import Fault
from report import counts
from stage import wait_for

# Small enough that many lives see the fault.
LIVES = ("--hang-s", 120, "--max-bytes", 1 << 20)
# A RST that is lost is not sent again: who does not ask never hears. So the daemon asks often here, as torture does.
PATIENT = 'keepalive = "30s"\nconnect = "60s"'


def over_wires(happened, **faults):
    """`happened`: which counts of the wires must not be zero."""
    def carry_out(scene):
        scene.on_wires(**faults)
        scene.start(PATIENT)
        scene.live(*LIVES)
        scene.settle()
        did = [wire.stop() for wire in scene.wires]
        scene.took_place(all(one[word] > 0 for one in did for word in happened), "; ".join(map(counts, did)))
    return carry_out


def mtu(size):
    def carry_out(scene):
        scene.on_veth(size)
        scene.start()
        scene.live()
        scene.settle()
        shown = scene.edge.run("ip", "-o", "link", "show", "dev", "outside")
        scene.took_place(f"mtu {size} " in shown, " ".join(shown.split()[1:5]))
    return carry_out


DOWN_S = 5


def link_down(scene):
    """Each leg's cable is pulled out for a while, under load."""
    scene.on_wires()
    scene.start(PATIENT)
    torture = scene.live(*LIVES)
    downs = 0
    for wire in scene.wires:
        time.sleep(1)
        under_load = torture.running()
        with wire.pulled_out():
            time.sleep(DOWN_S)
            downs += under_load and torture.running()
    scene.settle()
    scene.took_place(downs == len(scene.wires), f"each leg without carrier for {DOWN_S} s under load: {downs} of 2")


KEEPALIVE_S = 2
FLOWS = 30
KEPT_BUSY_BYTES = 1 << 20


def vanish(scene):
    """A third of the flows at rest, a third with bytes on their way up, a third with the server's on their way down."""
    scene.on_wires()
    daemon = scene.start(f'keepalive = "{KEEPALIVE_S}s"\nconnect = "2s"')
    ways = ("none", "up", "down")
    flows = [Flow(client, server, ways[n % 3]) for n, (client, server) in enumerate(open_flows(scene, FLOWS))]
    wait_for("bytes to move", lambda: all(sum(f["directions"][way]["bytes"] > KEPT_BUSY_BYTES for f in daemon.flows()) >= FLOWS // 3
                                          for way in ways[1:]))
    began_s = time.monotonic()
    scene.peers.run("ip", "link", "set", "servers", "down")
    daemon.wait_active(0, 60)
    took_s = time.monotonic() - began_s
    ends = [flow.end() for flow in flows]
    closed = daemon.totals()["closed"]
    scene.claim(closed["upstream_timeout"] == FLOWS, "reasons", counts({r: n for r, n in closed.items() if n}))
    scene.claim(took_s <= 3 * KEEPALIVE_S + 2, "noticed", f"the last after {took_s:.1f} s, keepalive {KEEPALIVE_S} s")
    scene.claim(set(ends) == {"RST"}, "the clients saw", counts({end: ends.count(end) for end in sorted(set(ends))}))
    daemon.stop()


def open_flows(scene, number):
    server_address, server_port = scene.server.split(":")
    edge_address, edge_port = scene.listen.split(":")
    pairs = []
    with scene.peers.inside(), socket.create_server((server_address, int(server_port))) as listener:
        for _ in range(number):
            client = socket.create_connection((edge_address, int(edge_port)), 10)
            server = listener.accept()[0]
            client.sendall(b"x")
            while server.recv(1 << 10)[-1:] != b"x":
                pass
            pairs.append((client, server))
    return pairs


class Flow:
    """Bytes that way for as long as it lasts; what its client sees of its end."""

    def __init__(self, client, server, way):
        self.client, self.server = client, server
        self.seen = "nothing"
        bodies = {"none": (self._wait,), "up": (self._pour_up, self._drain_up), "down": (self._wait, self._pour_down)}
        self.threads = [threading.Thread(target=body, daemon=True) for body in bodies[way]]
        for end in (client, server):
            end.settimeout(None)
        for thread in self.threads:
            thread.start()

    def end(self):
        self.threads[0].join(10)
        return self.seen

    def _wait(self):
        self.seen = ended(lambda: self.client.recv(1 << 16))

    def _pour_up(self):
        self.seen = ended(lambda: self.client.send(bytes(1 << 14)))

    def _drain_up(self):
        ended(lambda: self.server.recv(1 << 16))

    def _pour_down(self):
        ended(lambda: self.server.send(bytes(1 << 14)))


def ended(step):
    try:
        while step():
            pass
        return "FIN"
    except (ConnectionResetError, BrokenPipeError):
        return "RST"
    except OSError as error:
        return str(error)


FAULTS = {
    "loss-reorder": Fault("1 % of packets lost, 5 % late by 2 ms: every byte once, FIN after the last, RST a RST",
                          over_wires(("lost", "reordered"), loss=1, reorder=5)),
    "duplicate": Fault("5 % of packets twice: every byte once", over_wires(("duplicated",), duplicate=5)),
    "delay": Fault("20 ms each way: exact", over_wires(("packets",), delay_ms=20)),
    "rate": Fault("10 Mbit/s each way, what does not fit into 100 ms is lost: exact", over_wires(("over_rate",), rate_mbps=10)),
    "overlap": Fault("10 % of segments as two that overlap: every byte once, in any lane",
                     over_wires(("overlapped",), overlap=10)),
    "bad-path": Fault("all of these at once: exact",
                      over_wires(("lost", "reordered", "duplicated", "overlapped"), loss=1, reorder=5, duplicate=2, overlap=5,
                                 delay_ms=5)),
    "mtu-576": Fault("MTU 576: exact", mtu(576)),
    "mtu-9000": Fault("MTU 9000: exact", mtu(9000)),
    "link-down": Fault("a leg's link down for 5 s: open flows wait and go on, new ones are late", link_down),
    "vanish": Fault("a server's host is gone without a FIN: upstream_timeout within 2 keepalives or so, the client gets a RST",
                    vanish),
}
