# SPDX-License-Identifier: Apache-2.0
"""faults: mixed connections, every byte checked, on a host or over a path that misbehaves, one fault after the other. For
each: what is promised, what was seen. A wrong, lost or doubled byte, a clean FIN on an incomplete stream, a hang is never
right. Where a fault may end a connection, it may by the close reasons named with it alone, and the ends may see no more
such endings than the daemon counted."""
import pathlib

import fault_host
import fault_path
from daemon import Daemon, piped
from report import KernelLog, counts
from stage import Failed, Netns, Stage, Unfit
from torture import Torture, verdict
from wire import Wire

CLIENT, EDGE, EDGE_INSIDE, SERVER = "192.0.2.10", "192.0.2.1", "198.51.100.1", "198.51.100.80"
CLIENTS = "192.0.2.64/26"
PLAYED = ("completed", "client_reset", "upstream_reset")  # endings that the lives themselves ask for
UNASKED = ("unasked_rst", "never_arrived")  # what the ends see of an ending that neither asked for
FAULTS = {**fault_host.FAULTS, **fault_path.FAULTS}
EVERY = {**FAULTS, **fault_host.OPEN}


def add_arguments(parser):
    parser.add_argument("--only", metavar="NAME[,NAME]...", help=f"of {', '.join(EVERY)}; without: all but {', '.join(fault_host.OPEN)}")
    parser.add_argument("--lives", type=int, default=100_000, help="of all faults together (%(default)s)")
    parser.add_argument("--concurrency", type=int, default=200)
    parser.add_argument("--seed", type=int, default=2026)


def prove(options, report):
    names = options.only.split(",") if options.only else list(FAULTS)
    unknown = [name for name in names if name not in EVERY]
    if unknown:
        raise Unfit(f"no such fault: {', '.join(unknown)}; there are {', '.join(EVERY)}")
    kernel_log = KernelLog()
    lived = 0
    for number, name in enumerate(names):
        with Stage(options.build) as stage:
            scene = Scene(name, stage, options, report, -(-options.lives // len(names)), options.seed + number)
            try:
                EVERY[name].carry_out(scene)
            except Failed as failed:
                scene.claim(False, "carried out", str(failed))
            lived += scene.lived
    report.figure("lives", f"{lived} under {len(names)} faults")
    complaints = kernel_log.complaints()
    report.claim(not complaints, "kernel log", "; ".join(complaints) or "no complaint")


class Scene:
    """Peers, a daemon and the load between them. First on_…(), then start(), then live(); settle() at the end."""

    def __init__(self, name, stage, options, report, lives, seed):
        self.name, self.stage, self.options, self.report = name, stage, options, report
        self.lives, self.seed = lives, seed
        self.lived = 0
        self.daemon = self.torture = None
        self.wires = []
        report.does(f"{name}: promised: {EVERY[name].promise}")

    def on_loopback(self):
        self.peers = self.edge = Netns()
        self.server, self.listen, self.words = "127.0.0.1:7001", "127.0.0.1:7100", ()

    def on_cables(self, join):
        """Peers in one namespace, the edge in another, a cable for each leg: join(peers, device, address, edge, device,
        address). Clients have 64 addresses, or they would run out of ports."""
        self.peers, self.edge = Netns(), Netns()
        for namespace in (self.peers, self.edge):
            namespace.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=10000 65000", "net.ipv4.tcp_tw_reuse=1")
        join(self.peers, "clients", CLIENT, self.edge, "outside", EDGE)
        join(self.peers, "servers", SERVER, self.edge, "inside", EDGE_INSIDE)
        self.peers.run("ip", "route", "add", "local", CLIENTS, "dev", "lo")
        self.server, self.listen = f"{SERVER}:7001", f"{EDGE}:7100"
        self.words = ("--source", CLIENTS)

    def on_veth(self, mtu):
        self.on_cables(lambda one, *rest: one.join(*rest, mtu))

    def on_wires(self, mtu=1500, **faults):
        self.on_cables(lambda one, *rest: self.wires.append(
            Wire(self.stage, one, *rest, mtu, seed=self.seed + len(self.wires), **faults)))

    def start(self, timeouts="", **daemon):
        tables = piped(self.server, self.listen, 'proxy_protocol = "v2"', f"[timeouts]\n{timeouts}" if timeouts else "")
        self.daemon = Daemon(self.stage, self.edge, tables, max_flows=8 * self.options.concurrency, **daemon)
        return self.daemon

    def live(self, *words):
        self.torture = Torture(self.stage, self.peers, "--serve", self.server, "--to", self.listen, "--lives", self.lives,
                               "--concurrency", self.options.concurrency, "--seed", self.seed, *self.words, *words)
        return self.torture.process

    def settle(self, endings=(), limit_s=900):
        """Waits for the load and judges it. `endings`: close reasons that this fault makes legitimate."""
        exact, summary = self.torture.finish(limit_s)
        self.lived += summary["lives"]
        if not self.daemon.process.running():
            raise Failed(f"penstockd ended with {self.daemon.process.wait(0)}: {self.daemon.process.log()[-500:]}")
        self.daemon.wait_active(0, 120)
        totals = self.daemon.totals()
        closed = totals["closed"]
        unasked = sum(summary["failures"].get(word, 0) for word in UNASKED)
        wrong = {word: n for word, n in summary["failures"].items() if word not in UNASKED or not endings}
        ended = sum(closed[reason] for reason in endings)
        tell = "; ".join([verdict(summary), f"seed {self.seed}, {summary['lives_per_s']:.0f} lives/s",
                          *(self.torture.remarks()[:3] if wrong or unasked > ended else ())])
        self.claim(exact or not wrong, "content", tell)
        if endings:
            self.claim(unasked <= ended, "endings", f"{unasked} that neither end asked for, as {', '.join(endings)} were "
                       f"counted {ended} times")
        strange = {reason: n for reason, n in closed.items() if n and reason not in PLAYED + tuple(endings)}
        total = sum(closed.values())
        self.claim(totals["accepted"] == totals["active"] + total and not strange and totals["held_bytes"] == 0, "accounts",
                   f"accepted {totals['accepted']} = active {totals['active']} + closed {total}: "
                   f"{counts({reason: n for reason, n in closed.items() if n})}; held_bytes {totals['held_bytes']}; bytes: "
                   f"{counts(totals['bytes'])}")
        self.daemon.stop()
        return totals

    def claim(self, holds, what, text):
        self.report.claim(holds, f"{self.name}: {what}", text)

    def took_place(self, holds, text):
        """A fault that did not happen proves nothing."""
        self.claim(holds, "the fault", text)

    def directory(self, name):
        made = pathlib.Path(self.stage.directory) / name
        made.mkdir()
        return made
