# SPDX-License-Identifier: Apache-2.0
"""Faults of the host the daemon runs on: see faults.py."""
import os
import pathlib
import random
import re
import shutil
import struct
import sys
import tempfile
import time

import sock_ops
from fault import Fault
from limits import Limits
from report import counts, mib
from restart import own_cgroup
from stage import mount, run

REFUSE_IO_URING = (sys.executable, "-B", pathlib.Path(__file__).with_name("refuse_io_uring.py"))
PATIENCE = ("--hang-s", 120)


FDS_AT_REST = 60


def fds(scene):
    """Two sockets and up to two pipes a flow: there are descriptors for a quarter of the flows, from the start, as io_uring
    looks at the limit when accept(2) is begun."""
    scene.on_loopback()
    limit = FDS_AT_REST + scene.options.concurrency // 2
    daemon = scene.start(through=("setpriv", "--bounding-set", "-sys_resource", "prlimit", f"--nofile={limit}:{limit}"))
    scene.live(*PATIENCE)
    most = 0
    while scene.torture.process.running():
        most = max(most, len(os.listdir(f"/proc/{daemon.pid}/fd")))
        time.sleep(0.05)
    totals = scene.settle(endings=("fd_limit",))
    seen = {"accept_failed": totals["accept_failed"], "fd_limit": totals["closed"]["fd_limit"],
            "pipes_refused": totals["pipes_refused"]}
    scene.took_place(seen["accept_failed"] and seen["fd_limit"], f"limit {limit}, most open {most}; {counts(seen)}")


READS = 'exec nice -n 19 sh -c "while :; do head -c 64M /dev/zero > $0; cat $0 > /dev/null; sleep 0.1; done"'


def memory(scene):
    """Room for what the daemon has at rest and a little for what the load takes, which a neighbour in the same cgroup
    fills with a file's pages over and over: the kernel reclaims all the time, the daemon's own code too."""
    scene.on_loopback()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as disk, Limits("memory") as limits:
        try:
            scene.start(through=limits.through())
            at_rest = limits.memory()[0]
            limit = at_rest + (8 << 20)
            limits.set_memory(limit)
            neighbour = scene.stage.start(scene.peers, "neighbour", *limits.through(), "sh", "-c", READS, f"{disk}/file")
            scene.live(*PATIENCE)
            scene.torture.process.wait(900)
            neighbour.stop()
            _, met, killed = limits.memory()
            scene.settle(endings=("fd_limit", "memory_limit"))
        finally:
            scene.stage.end()
        scene.took_place(met > 0 and not killed, f"cgroup version {limits.version}: {mib(at_rest)} at rest, limit {mib(limit)}, "
                         f"met {met} times, {killed} killed")


def cpu(scene):
    scene.on_loopback()
    with Limits("cpu") as limits:
        try:
            daemon = scene.start(through=limits.through())
            limits.set_cpu(0.1)
            before_s, began_s = daemon.cpu_s(), time.monotonic()
            scene.live(*PATIENCE)
            scene.torture.process.wait(900)
            share = (daemon.cpu_s() - before_s) / (time.monotonic() - began_s)
            limits.set_cpu(1)
            throttled = limits.times_throttled()
            scene.settle()
        finally:
            scene.stage.end()
        scene.took_place(throttled > 0, f"throttled {throttled} times, {100 * share:.1f} % of a CPU used")


def stopped(scene):
    scene.on_loopback()
    daemon = scene.start()
    chance = random.Random(scene.seed)
    torture = scene.live(*PATIENCE)
    times, longest_s = 0, 0
    while torture.running():
        for_s = 10 ** chance.uniform(-3, 0)
        with daemon.stopped():
            time.sleep(for_s)
        times, longest_s = times + 1, max(longest_s, for_s)
        time.sleep(10 ** chance.uniform(-3, -0.5))
    scene.settle()
    scene.took_place(times > 0, f"stopped {times} times, {longest_s:.2f} s at most")


def clock(scene):
    """Time namespaces have no CLOCK_REALTIME, and the machine's own is not ours: the daemon's alone steps (lab-clock)."""
    scene.on_loopback()
    off = scene.stage.directory / "clock"
    off.write_bytes(struct.pack("=q", 0))
    daemon = scene.start(access_log=True, environment={"LD_PRELOAD": scene.stage.program("tools/lab/lab-clock.so"), "LAB_CLOCK": off})
    chance = random.Random(scene.seed)
    torture = scene.live()
    steps = 0
    with open(off, "r+b", buffering=0) as file:
        while torture.running():
            file.seek(0)
            file.write(struct.pack("=q", chance.randint(-10 ** 6, 10 ** 6)))
            steps += 1
            time.sleep(chance.uniform(0.05, 0.3))
    log = daemon.process.log
    scene.settle()
    days = sorted(set(re.findall(r"^(\d{4}-\d\d-\d\d)T", log(), re.M)))
    scene.took_place(len(days) > 10, f"{steps} steps of up to 11 days; the log's lines are from {len(days)} days, {days[0]} to {days[-1]}")


def no_io_uring(scene):
    scene.on_loopback()
    daemon = scene.start(through=REFUSE_IO_URING)
    scene.took_place(daemon.status()["io"].startswith("epoll"), daemon.status()["io"])
    scene.live()
    scene.settle()


def no_bpf(scene):
    scene.on_loopback()
    daemon = scene.start(engine="auto", may_relay=True, through=("setpriv", "--bounding-set", "-bpf,-sys_admin"))
    status = daemon.status()
    scene.took_place(status["engine"] == "io_uring", f"engine {status['engine']}: {status['engine_reason']}")
    scene.live()
    scene.settle()


def pins(scene):
    scene.on_loopback()
    daemon = scene.start()
    torture = scene.live()
    time.sleep(1)
    were = len(list(daemon.pin.iterdir()))
    under_load = torture.running()
    shutil.rmtree(daemon.pin)
    totals = scene.settle()
    scene.took_place(under_load and were > 0, f"{were} pins removed under load; {totals['bytes']['splice']} bytes spliced in all")


def sock_ops_beside(scene):
    scene.on_loopback()
    with sock_ops.attached(own_cgroup()):
        scene.start()
        leaf = next(own_cgroup().glob("penstock-*"))
        with sock_ops.attached(leaf):
            there = run("bpftool", "cgroup", "tree", own_cgroup()).count("sock_ops")
            scene.live()
            scene.settle()
    scene.took_place(there == 3, f"{there} programs: ours, one after it in {leaf.name}, one in its parent")


def sock_ops_rude(scene):
    """Callbacks are a socket's, not a program's: one that sets its own takes ours away."""
    scene.on_loopback()
    with sock_ops.attached(own_cgroup(), flags=0):
        status = scene.start(may_relay=True).status()
        scene.live()
        scene.settle()
    scene.took_place(status["engine"] == "io_uring", f"engine {status['engine']}: {status['engine_reason']}")


def sock_ops_late(scene):
    """The same, when the self-test is long over."""
    scene.on_loopback()
    scene.start()
    with sock_ops.attached(own_cgroup(), flags=0):
        scene.live()
        totals = scene.settle()
    scene.took_place(totals["bytes"]["splice"] > 0, f"{totals['bytes']['splice']} bytes spliced")


LOG_BYTES = 64 << 10


def log_full(scene):
    """stderr is a file on a file system of 64 KiB."""
    scene.on_loopback()
    small = scene.directory("small")
    mount("none", str(small), "tmpfs")
    run("mount", "-o", f"remount,size={LOG_BYTES}", small)
    log = scene.stage.directory / f"{len(scene.stage.processes)}-penstockd.log"
    log.symlink_to(small / "log")
    daemon = scene.start(access_log=True)
    scene.live()
    scene.torture.process.wait(900)
    full = os.statvfs(small).f_bfree == 0
    running = daemon.process.running()
    totals = scene.settle()
    scene.took_place(full and running, f"{(small / 'log').stat().st_size} bytes of log for {totals['accepted']} flows, disk full; "
                     f"log_lines_dropped {totals['log_lines_dropped']}")


def log_blocked(scene):
    """stderr is a pipe that nobody reads any more once the daemon serves."""
    scene.on_loopback()
    scene.start(access_log=True, through=("bash", "-c", 'exec "$@" 2> >(sed -u "/ready: engine/q"; exec sleep 3600)', "bash"))
    scene.live()
    totals = scene.settle()
    told = scene.daemon.process.log().count("reason=")
    scene.took_place(not told, f"{told} of {totals['accepted']} lines of flows were read; log_lines_dropped "
                     f"{totals['log_lines_dropped']} (8192 lines wait)")


FAULTS = {
    "memory": Fault("memory.max leaves little: slower, a flow may be refused or reset as memory_limit or fd_limit, none is wrong",
                    memory),
    "fds": Fault("no descriptor: accept(2) waits and counts accept_failed; a dial or pipe that gets none waits, or ends as "
                 "fd_limit", fds),
    "cpu": Fault("10 % of a CPU: slow, nothing else", cpu),
    "stopped": Fault("SIGSTOP for 1 ms to 1 s at random: late, nothing else", stopped),
    "clock": Fault("CLOCK_REALTIME steps by days: only the log's times show it", clock),
    "no-io-uring": Fault("io_uring refused: epoll, the same", no_io_uring),
    "no-bpf": Fault("BPF refused: everything relayed, said why", no_bpf),
    "pins": Fault("pinned maps deleted under the daemon: flows go on, new ones too", pins),
    "sock-ops": Fault("other sock_ops programs in the daemon's cgroup and its parent: the same", sock_ops_beside),
    "sock-ops-rude": Fault("another sock_ops program that takes our callbacks away: the self-test finds out, everything is "
                           "relayed", sock_ops_rude),
    "log-full": Fault("no room for the log: lines are lost, the daemon neither waits nor dies", log_full),
    "log-blocked": Fault("nobody reads the log: lines are lost and counted, the daemon neither waits nor dies", log_blocked),
}
OPEN = {  # not held today: run by name alone
    "sock-ops-late": Fault("such a program that comes after the start: exact, bounded, no stall", sock_ops_late),
}
