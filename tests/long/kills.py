# SPDX-License-Identifier: Apache-2.0
"""kills: the worker dies again and again under connections of every kind, each byte checked at both ends: nothing is lost, no
open flow ends for it, no SYN is refused. What is in flight at a death is told by phase and lane; what a newcomer waited."""
import collections
import os
import random
import re
import signal
import time

from daemon import Daemon
from lives import ENTRANCES, SERVER6, SERVERS, TABLES, aborts, has
from report import counts, mib
from stage import Failed, Netns, Stage, wait_for
from torture import Torture, verdict

SIGNALS = {"KILL": signal.SIGKILL, "SEGV": signal.SIGSEGV, "STOP": signal.SIGSTOP}
HANG_S = 60


def add_arguments(parser):
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--by", choices=SIGNALS, default="KILL", help="what the worker gets (%(default)s)")
    parser.add_argument("--engine", choices=("auto", "io_uring"), default="auto")
    parser.add_argument("--concurrency", type=int, default=250)
    parser.add_argument("--interval-ms", type=float, default=2000, help="between a worker that serves and its death, at most (%(default)s)")
    parser.add_argument("--seed", type=int, default=2026)


def prove(options, report):
    with Stage(options.build) as stage:
        netns = Netns()
        daemon = Daemon(stage, netns, TABLES, engine=options.engine, max_flows=4 * options.concurrency, access_log=True)
        words = (*(word for server in (*SERVERS, SERVER6) for word in ("--serve", server)),
                 *(word for entrance in ENTRANCES for word in ("--to", entrance)),
                 "--admin", daemon.admin, "--log", daemon.process.log_file, "--lives", 10_000_000, "--concurrency", options.concurrency,
                 "--seed", options.seed, "--hang-s", HANG_S)
        before = has(daemon)
        torture = Torture(stage, netns, *words)
        killed = Killed(daemon, options)
        killed.all()
        torture.process.signal(signal.SIGINT)
        exact, summary = torture.finish(300)
        after, totals = has(daemon), daemon.totals()
        resident = after.pop("resident") - before.pop("resident")
        report.claim(exact, "content, reasons", "; ".join([f"{verdict(summary)}; seed {options.seed}", *torture.remarks()[:10]]))
        closed = sum(totals["closed"].values())
        report.claim(totals["accepted"] == totals["active"] + closed, "the law",
                     f"accepted {totals['accepted']} = active {totals['active']} + closed {closed}")
        ours = {reason: n for reason, n in totals["closed"].items()
                if n and reason in ("adoption_failed", "worker_crashed", "account_mismatch", "internal_error", "splice_broken")}
        report.claim(not ours, "no flow ended for it", counts(ours) or "none")
        report.figure("closed", counts({reason: n for reason, n in totals["closed"].items() if n}))
        report.figure("workers", f"{killed.done} killed by SIG{options.by}; flows adopted at each: {killed.adopted()}")
        report.figure("carried", counts(totals["bytes"]))
        lines = collections.Counter(line for line in daemon.process.log().splitlines() if " reason=" in line)
        report.figure("lines put out twice", sum(n - 1 for n in lines.values()))
        report.claim(after == before, "afterwards as before", f"{counts(after)}; before: {counts(before)}")
        report.figure("memory", f"{mib(resident)} more")
        report.figure("aborted, at all ends", counts(aborts(netns)))
        daemon.stop()


class Killed:
    def __init__(self, daemon, options):
        self.daemon, self.options = daemon, options
        self.random = random.Random(options.seed)
        self.done = 0

    def all(self):
        time.sleep(2)
        begun = time.monotonic()
        while self.done < self.options.kills:
            worker = self.daemon.status()["worker"]
            time.sleep(self.random.uniform(0, self.options.interval_ms / 1000))
            os.kill(worker["pid"], SIGNALS[self.options.by])
            wait_for("the next worker", lambda: self.next_after(worker["starts"]))
            self.done += 1
            if self.done % 100 == 0:
                print(f"kills: {self.done} after {time.monotonic() - begun:.0f} s", flush=True)

    def next_after(self, starts):
        if not self.daemon.process.running():
            raise Failed(f"penstockd ended:\n{self.daemon.process.log()[-2000:]}")
        try:
            status = self.daemon.status()
        except (OSError, Failed):
            return False
        return "worker" in status and status["worker"]["starts"] > starts

    def adopted(self):
        numbers = [int(n) for n in re.findall(r"taken over: (\d+) flows", self.daemon.process.log())]
        numbers.sort()
        return f"median {numbers[len(numbers) // 2]}, at most {numbers[-1]}" if numbers else "none"
