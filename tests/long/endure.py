# SPDX-License-Identifier: Apache-2.0
"""Connections of every kind without end, each byte checked at both ends, through a daemon whose worker is not to be noticed."""
import collections
import re
import signal
import time

from daemon import Daemon
from lives import ENTRANCES, SERVER6, SERVERS, TABLES, aborts, has
from names import Names
from report import counts, mib
from stage import Failed, Netns
from torture import Torture, verdict
from wire import Wire

HANG_S = 120
NAME, NAMED, NAME_SERVER, EDGE = "server.example", "127.0.0.1:7104", "198.51.100.53", "198.51.100.1"
FAR_MS = 100  # the name server's answers; a name is asked for again every second
BY_NAME = f"""
[dns]
servers = ["{NAME_SERVER}:53"]
ttl_min = "1s"
[upstream.named]
servers = ["{NAME}:7001"]
proxy_protocol = "v2"
[[listener]]
name = "named"
bind = ["{NAMED}"]
upstream = "named"
"""
OURS = ("adoption_failed", "worker_crashed", "account_mismatch", "internal_error", "splice_broken")


def add_arguments(parser):
    parser.add_argument("--engine", choices=("auto", "io_uring"), default="auto")
    parser.add_argument("--concurrency", type=int, default=250)
    parser.add_argument("--seed", type=int, default=2026)


def worker(daemon):
    """Of the status; asked again by one that dies with the question."""
    while True:
        if not daemon.process.running():
            raise Failed(f"penstockd ended:\n{daemon.process.log()[-2000:]}")
        try:
            status = daemon.status()
            if "worker" in status:
                return status["worker"]
        except (OSError, Failed):
            pass
        time.sleep(0.01)


class Endured:
    def __init__(self, stage, options, environment=None, through=(), prepare=lambda daemon: None):
        """`prepare`: what happens to the daemon before it is looked at."""
        self.options, self.netns, self.far = options, Netns(), Netns()
        Wire(stage, self.netns, "edge0", EDGE, self.far, "names0", NAME_SERVER, 1500, delay_ms=FAR_MS)
        self.names = Names(stage, self.far, NAME_SERVER)
        self.names.start(1)
        self.names.point(NAME, *(server.rpartition(":")[0] for server in SERVERS))
        self.daemon = Daemon(stage, self.netns, TABLES + BY_NAME, engine=options.engine, max_flows=4 * options.concurrency,
                             access_log=True, environment=environment, through=through)
        prepare(self.daemon)
        self.before = None if environment else has(self.daemon)
        # Whose worker dies at its first calls each time may never hear what a name means.
        entrances = ENTRANCES if environment else (*ENTRANCES, NAMED)
        self.torture = Torture(
            stage, self.netns, *(word for server in (*SERVERS, SERVER6) for word in ("--serve", server)),
            *(word for entrance in entrances for word in ("--to", entrance)), "--admin", self.daemon.admin,
            "--log", self.daemon.process.log_file, "--lives", 10_000_000, "--concurrency", options.concurrency,
            "--seed", options.seed, "--hang-s", HANG_S, "--redials")
        time.sleep(2)

    def worker(self):
        return worker(self.daemon)

    def settle(self, report):
        self.torture.process.signal(signal.SIGINT)
        exact, summary = self.torture.finish(300)
        report.claim(exact, "content, reasons",
                     "; ".join([f"{verdict(summary)}; seed {self.options.seed}", *self.torture.remarks()[:10]]))
        dialing = self.taken_over_in()["phases"].get("dialing", 0)  # begun again
        report.claim(summary["headerless"] <= summary["upstream_never_dialled"] + dialing, "dials in vain",
                     f"{summary['headerless']}; clients that left first {summary['upstream_never_dialled']}, taken over while dialling {dialing}")
        after, totals = has(self.daemon), self.daemon.totals()
        closed = sum(totals["closed"].values())
        report.claim(totals["accepted"] == totals["active"] + closed, "the law",
                     f"accepted {totals['accepted']} = active {totals['active']} + closed {closed}")
        ours = {reason: n for reason, n in totals["closed"].items() if n and reason in OURS}
        report.claim(not ours, "no flow ended for it", counts(ours) or "none")
        report.figure("closed", counts({reason: n for reason, n in totals["closed"].items() if n}))
        report.figure("carried", counts(totals["bytes"]))
        lines = collections.defaultdict(list)
        for line in self.daemon.process.log().splitlines():
            if " reason=" in line:
                lines[re.search(r"cookie=(\d+)", line)[1]].append(line)
        twice = [of_flow for of_flow in lines.values() if len(of_flow) > 1]
        alike = sum(len(set(of_flow)) == 1 for of_flow in twice)  # put out twice: who died had not noted that it was
        report.claim(len(twice) == alike, "one line a flow", f"{len(lines)}; put out twice {alike}; written twice "
                     f"{len(twice) - alike}{''.join(f'; {line}' for of_flow in twice if len(set(of_flow)) > 1 for line in of_flow)}")
        if self.before:
            resident = after.pop("resident") - self.before.pop("resident")
            report.claim(after == self.before, "afterwards as before", f"{counts(after)}; before: {counts(self.before)}")
            report.figure("memory", f"{mib(resident)} more")
        report.figure("aborted, at all ends", counts(aborts(self.netns)))
        self.daemon.stop()

    def taken_over(self):
        """How many flows, and in how many ms, each time."""
        found = [(int(n), float(ms)) for n, ms in
                 re.findall(r"taken over: (\d+) flows.*; ([\d.]+) ms", self.daemon.process.log())]
        if not found:
            return "none"
        flows, ms = (sorted(values) for values in zip(*found))
        return f"flows: median {flows[len(flows) // 2]}, at most {flows[-1]}; ms: median {ms[len(ms) // 2]}, at most {ms[-1]}"

    def taken_over_in(self):
        """{"phases": {"open": 12345, ...}, "lanes": ..., "pipes": ...}: all flows, directions and filled pipes that were taken over."""
        found = {what: collections.Counter() for what in ("phases", "lanes", "pipes")}
        for phases, lanes, pipes in re.findall(r"taken over: \d+ flows \((.*?)\); directions: (.*?); (\d+) pipes", self.daemon.process.log()):
            for what, words in (("phases", phases), ("lanes", lanes)):
                found[what].update({name: int(n) for n, name in re.findall(r"(\d+) (\w+)", words)})
            found["pipes"]["with bytes in them"] += int(pipes)
        return {what: dict(counter.most_common()) for what, counter in found.items()}
