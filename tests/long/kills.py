# SPDX-License-Identifier: Apache-2.0
"""kills: the worker dies again and again under connections of every kind, each byte checked at both ends: nothing is lost, no
open flow ends for it, no SYN is refused. At random moments, or with --calls right before or after a system call of a
thread that moves flows (tools/lab, lab-kill), as likely one of its first as one of its last. What it had in hand is told by
phase, lane and call; what a newcomer waited."""
import collections
import os
import random
import re
import signal
import time

from daemon import Daemon
from lives import ENTRANCES, SERVER6, SERVERS, TABLES, aborts, has
from report import counts, mib
from stage import Failed, Netns, Stage
from torture import Torture, verdict

SIGNALS = {"KILL": signal.SIGKILL, "SEGV": signal.SIGSEGV, "STOP": signal.SIGSTOP}
HANG_S = 60
OURS = ("adoption_failed", "worker_crashed", "account_mismatch", "internal_error", "splice_broken")


def add_arguments(parser):
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--by", choices=SIGNALS, default="KILL", help="what the worker gets (%(default)s)")
    parser.add_argument("--calls", type=int, help="instead: SIGKILL at one of about its first N system calls")
    parser.add_argument("--engine", choices=("auto", "io_uring"), default="auto")
    parser.add_argument("--concurrency", type=int, default=250)
    parser.add_argument("--interval-ms", type=float, default=2000, help="between a worker that serves and its death, at most (%(default)s)")
    parser.add_argument("--seed", type=int, default=2026)


def prove(options, report):
    with Stage(options.build) as stage:
        netns = Netns()
        killed_at = stage.directory / "killed-at"
        killed_at.touch()
        preload = {"LD_PRELOAD": stage.program("tools/lab/lab-kill.so"), "LAB_KILL_CALLS": options.calls,
                   "LAB_KILL_SEED": options.seed, "LAB_KILL_LOG": killed_at} if options.calls else None
        daemon = Daemon(stage, netns, TABLES, engine=options.engine, max_flows=4 * options.concurrency, access_log=True,
                        environment=preload)
        words = (*(word for server in (*SERVERS, SERVER6) for word in ("--serve", server)),
                 *(word for entrance in ENTRANCES for word in ("--to", entrance)),
                 "--admin", daemon.admin, "--log", daemon.process.log_file, "--lives", 10_000_000, "--concurrency",
                 options.concurrency, "--seed", options.seed, "--hang-s", HANG_S)
        before = None if options.calls else has(daemon)
        torture = Torture(stage, netns, *words)
        killed = Killed(daemon, options)
        killed.all()
        torture.process.signal(signal.SIGINT)
        exact, summary = torture.finish(300)
        report.claim(exact, "content, reasons", "; ".join([f"{verdict(summary)}; seed {options.seed}", *torture.remarks()[:10]]))
        after, totals = has(daemon), daemon.totals()
        closed = sum(totals["closed"].values())
        report.claim(totals["accepted"] == totals["active"] + closed, "the law",
                     f"accepted {totals['accepted']} = active {totals['active']} + closed {closed}")
        ours = {reason: n for reason, n in totals["closed"].items() if n and reason in OURS}
        report.claim(not ours, "no flow ended for it", counts(ours) or "none")
        report.figure("closed", counts({reason: n for reason, n in totals["closed"].items() if n}))
        report.figure("workers", f"{killed.done} killed {f'at a call, of about {options.calls}' if options.calls else 'by SIG' + options.by}; "
                      f"flows adopted at each: {killed.adopted()}")
        for what, found in killed.in_hand().items():
            report.figure(f"in hand by {what}", counts(found))
        if options.calls:
            report.figure("killed", counts(dict(collections.Counter(killed_at.read_text().splitlines()).most_common())))
        report.figure("carried", counts(totals["bytes"]))
        lines = collections.Counter(line for line in daemon.process.log().splitlines() if " reason=" in line)
        report.figure("lines put out twice", sum(n - 1 for n in lines.values()))
        if before:
            resident = after.pop("resident") - before.pop("resident")
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
        begun = told = time.monotonic()
        while self.done < self.options.kills:
            worker = self.worker()
            if not self.options.calls:
                time.sleep(self.random.uniform(0, self.options.interval_ms / 1000))
                os.kill(worker["pid"], SIGNALS[self.options.by])
            self.wait_after(worker["starts"])
            if time.monotonic() - told > 30:
                told = time.monotonic()
                print(f"kills: {self.done} after {told - begun:.0f} s", flush=True)

    def wait_after(self, starts):
        deadline = time.monotonic() + 120
        while (now := self.worker())["starts"] <= starts:
            if time.monotonic() > deadline:
                raise Failed(f"no other worker: {now}")
            time.sleep(0.02)
        self.done = now["crashes"]

    def worker(self):
        """Of the status; asked again by one that dies with the question."""
        while True:
            if not self.daemon.process.running():
                raise Failed(f"penstockd ended:\n{self.daemon.process.log()[-2000:]}")
            try:
                status = self.daemon.status()
                if "worker" in status:
                    return status["worker"]
            except (OSError, Failed):
                pass
            time.sleep(0.01)

    def adopted(self):
        numbers = [int(n) for n in re.findall(r"taken over: (\d+) flows", self.daemon.process.log())]
        numbers.sort()
        return f"median {numbers[len(numbers) // 2]}, at most {numbers[-1]}" if numbers else "none"

    def in_hand(self):
        """{"phase": {name: times}, ...}: of the threads that had a flow in hand."""
        found = {what: collections.Counter() for what in ("phase", "errand", "lanes")}
        for phase, errand, up, down in re.findall(r"cookie=\d+ (\w+): (\w+), up (\w+), down (\w+)", self.daemon.process.log()):
            found["phase"][phase] += 1
            found["errand"][errand] += 1
            found["lanes"][f"{up}/{down}"] += 1
        return {what: dict(counter.most_common()) for what, counter in found.items()}
