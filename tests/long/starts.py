# SPDX-License-Identifier: Apache-2.0
"""starts: penstockd started and ended over and over at the same paths, half of the times by SIGKILL of keeper and worker
(with flows open, or at a random moment of its start), else by SIGTERM with flows open. Nothing may be left in the end: no
BPF program, map or link, pin, cgroup, socket, file, namespace or descriptor."""
import os
import random
import signal
import time

import restart
from report import KernelLog
from restart import (Flows, Paths, adds_up, descriptors, kernel_objects, namespaces, reasons, wait_ready)
from stage import Netns, Stage, wait_for

FLOWS = 3
GONE_S = 20  # the kernel frees what belonged to a socket or a map some time after the last reference


def add_arguments(parser):
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--seed", type=int, default=None)


def prove(options, report):
    seed = options.seed if options.seed is not None else random.randrange(1 << 32)
    chance = random.Random(seed)
    kernel_log = KernelLog()
    with Stage(options.build) as stage:
        netns = Netns()
        paths = Paths(stage, netns, engine=options.engine, grace="20ms")
        one_life(paths, netns)  # what only a first start makes: the self-test's verdict
        before = look()
        files_before = listing(stage)
        report.does(f"{options.cycles} starts, seed {seed}")
        began_s, start_s, ended = time.monotonic(), [], {"SIGTERM": 0, "SIGKILL": 0, "SIGKILL while it starts": 0}
        wrong = []
        for cycle in range(options.cycles):
            kind = ("SIGKILL", "SIGTERM", "SIGKILL while it starts", "SIGTERM")[cycle % 4]
            ended[kind] += 1
            if kind == "SIGKILL while it starts":
                process = paths.start()
                time.sleep(chance.random() * (sorted(start_s)[len(start_s) // 2] if start_s else 0.3))
                restart.kill(process)
            else:
                wrong += [f"cycle {cycle}: {what}" for what in one_life(paths, netns, kind == "SIGKILL", start_s)]
            forget(stage)
        wrong += [f"last: {what}" for what in one_life(paths, netns)]
        forget(stage)
        seconds = time.monotonic() - began_s
        report.figure("starts", ", ".join(f"{n} by {kind}" for kind, n in ended.items()) + f", in {seconds:.0f} s; to `ready` "
                      f"{1000 * min(start_s):.0f} to {1000 * max(start_s):.0f} ms, median "
                      f"{1000 * sorted(start_s)[len(start_s) // 2]:.0f} ms")
        report.claim(not wrong, "every SIGTERM", "; ".join(wrong[:5]) or "exit 0, accepted = closed, nothing left at its paths")
        tell(report, before, files_before, stage)
    complaints = kernel_log.complaints()
    report.claim(not complaints, "kernel log", "; ".join(complaints) or "no complaint")


def one_life(paths, netns, kill=False, start_s=None):
    """Starts, opens a few flows, ends with them open. What was wrong with that."""
    began_s = time.monotonic()
    process = paths.start()
    wait_ready(process)
    if start_s is not None:
        start_s.append(time.monotonic() - began_s)
    flows = Flows(netns, FLOWS)
    wrong = []
    if kill:
        restart.kill(process)
    else:
        process.signal(signal.SIGTERM)
        code = process.wait(20)
        log = process.log()
        if code != 0:
            wrong.append(f"exit {code}")
        if not adds_up(log) or reasons(log) != {"shutdown": FLOWS}:
            wrong.append(f"{dict(reasons(log))}, {log.splitlines()[-1]}")
        if flows.ends(0) != {"RST": 2 * FLOWS}:
            wrong.append("not every end saw a RST")
        wrong += [f"{path} is left" for path in paths.left()]
    flows.close()
    return wrong


def forget(stage):
    """A daemon that has ended, and its log."""
    stage.processes.pop().log_file.unlink()


def look():
    every, ours = kernel_objects()
    return {"every": every, "ours": ours, "namespaces": namespaces(), "descriptors": descriptors()}


def listing(stage):
    return {os.path.join(directory, name) for where in ("/run", stage.directory, "/sys/fs/bpf")
            for directory, _, names in os.walk(where) for name in names if not name.endswith(".log") and name != "probe"}  # the self-test's verdict is kept


def tell(report, before, files_before, stage):
    def ours():
        return {kind: len(ids) for kind, ids in kernel_objects()[1].items()}
    try:
        wait_for("BPF objects to go", lambda: not any(ours().values()), GONE_S)
    except Exception:  # pylint: disable=broad-except
        pass  # what is left is the claim below
    after = look()
    total = ", ".join(f"{kind}s {len(before['every'][kind])} before, {len(after['every'][kind])} after"
                      for kind in ("prog", "map", "link"))
    left = {kind: n for kind, n in ours().items() if n}
    report.claim(not left, "BPF", f"of ours left: {left or 'none'} (the whole machine: {total})")
    new = after["namespaces"] - before["namespaces"]
    report.claim(not new, "namespaces", f"{len(before['namespaces'])} before, {len(after['namespaces'])} after, new {sorted(new)}")
    report.claim(after["descriptors"] == before["descriptors"], "descriptors",
                 f"{before['descriptors']} before, {after['descriptors']} after")
    new = listing(stage) - files_before
    report.claim(not new, "files", f"new in /run and /sys/fs/bpf: {sorted(new) or 'none'}")
