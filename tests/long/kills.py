# SPDX-License-Identifier: Apache-2.0
"""kills: the worker dies again and again under connections of every kind, each byte checked at both ends: nothing is lost, no
open flow ends for it, no SYN is refused. At random moments, or with --calls right before or after a system call of a
thread that moves flows (tools/lab, lab-kill), as likely one of its first as one of its last. --by OOM: the daemon's cgroup gets
no room beyond what it uses until the kernel has chosen a victim. What it had in hand is told by phase, lane and call."""
import collections
import contextlib
import os
import random
import re
import signal
import time

import endure
from limits import Limits
from report import counts
from stage import Failed, Stage

SIGNALS = {"KILL": signal.SIGKILL, "SEGV": signal.SIGSEGV, "STOP": signal.SIGSTOP}


def add_arguments(parser):
    endure.add_arguments(parser)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--by", choices=(*SIGNALS, "OOM"), default="KILL", help="what the worker gets (%(default)s)")
    parser.add_argument("--calls", type=int, help="instead: SIGKILL at one of about its first N system calls")
    parser.add_argument("--at", metavar="CALL,...", help="with --calls: only these count, splice or bpf_map_update_elem")
    parser.add_argument("--interval-ms", type=float, default=2000, help="between a worker that serves and its death, at most (%(default)s)")


def prove(options, report):
    with Limits("memory") if options.by == "OOM" else contextlib.nullcontext() as limits, Stage(options.build) as stage:
        killed_at = stage.directory / "killed-at"
        killed_at.touch()
        preload = {"LD_PRELOAD": stage.program("tools/lab/lab-kill.so"), "LAB_KILL_CALLS": options.calls,
                   "LAB_KILL_AT": options.at or "", "LAB_KILL_SEED": options.seed,
                   "LAB_KILL_LOG": killed_at} if options.calls else None
        endured = endure.Endured(stage, options, preload, limits.through() if limits else ())
        done = kill(endured, options, limits)
        report.figure("workers", f"{done} killed {f'at a call, of about {options.calls}' if options.calls else 'by ' + options.by}; "
                      f"taken over: {endured.taken_over()}")
        for what, found in endured.taken_over_in().items():
            report.figure(f"taken over, {what}", counts(found))
        if limits:
            killed = limits.memory()[2]
            report.claim(killed == done and endured.daemon.process.running(), "OOM killer",
                         f"cgroup version {limits.version}: oom_kill {killed}, workers that died {done}; the keeper lives")
        for what, found in in_hand(endured.daemon.process.log()).items():
            report.figure(f"in hand by {what}", counts(found))
        if options.calls:
            report.figure("killed", counts(dict(collections.Counter(killed_at.read_text().splitlines()).most_common())))
        endured.settle(report)


def kill(endured, options, limits):
    """How many died."""
    draw = random.Random(options.seed)
    begun = told = time.monotonic()
    worker = endured.worker()
    while worker["crashes"] < options.kills:
        if not options.calls:
            time.sleep(draw.uniform(0, options.interval_ms / 1000))
            limits.kill_by_memory() if limits else os.kill(worker["pid"], SIGNALS[options.by])
        deadline = time.monotonic() + 120
        while (now := endured.worker())["starts"] <= worker["starts"]:
            if time.monotonic() > deadline:
                raise Failed(f"no other worker: {now}")
            time.sleep(0.02)
        worker = now
        if time.monotonic() - told > 30:
            told = time.monotonic()
            print(f"kills: {worker['crashes']} after {told - begun:.0f} s", flush=True)
    return worker["crashes"]


def in_hand(log):
    """{"phase": {name: times}, ...}: of the threads that had a flow in hand."""
    found = {what: collections.Counter() for what in ("phase", "errand", "lanes")}
    for phase, errand, up, down in re.findall(r"cookie=\d+ (\w+): (\w+), up (\w+), down (\w+)", log):
        found["phase"][phase] += 1
        found["errand"][errand] += 1
        found["lanes"][f"{up}/{down}"] += 1
    return {what: dict(counter.most_common()) for what, counter in found.items()}
