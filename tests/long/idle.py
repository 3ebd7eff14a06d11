# SPDX-License-Identifier: Apache-2.0
"""idle: ten thousand idle flows, and the worker killed: how long until another serves them, what that costs in memory; then a
thousand deaths more: what of descriptors, pipes, maps and memory is left. Every flow carries bytes both ways at the end."""
import os
import resource
import signal
import socket
import time

from daemon import Daemon, dump, piped
from machine import resident_bytes
from report import counts, mib
from stage import Failed, Netns, Stage, Unfit, wait_for

SERVER_PORT, EDGE_PORT = 7001, 7100


def add_arguments(parser):
    parser.add_argument("--flows", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=1000, help="after the first one, with a tenth of the flows (%(default)s)")
    parser.add_argument("--engine", choices=("auto", "io_uring"), default="auto")


def prove(options, report):
    allow_descriptors(2 * options.flows + 256)  # both ends of every flow are ours; the daemon has as many
    with Stage(options.build) as stage:
        netns = Netns()
        netns.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65535")
        daemon = Daemon(stage, netns, piped(f"127.0.0.1:{SERVER_PORT}", f"127.0.0.1:{EDGE_PORT}"), engine=options.engine,
                        max_flows=options.flows + 64)
        pairs = connect(netns, daemon, options.flows)
        before = has(daemon)
        died = kill(daemon)
        log = daemon.process.log()
        taken = log[log.rindex("taken over:"):].splitlines()[0]
        report.claim(f"taken over: {options.flows} flows" in taken, "adopted", f"{taken}; {died:.0f} ms from SIGKILL to an answer of the "
                     "admin socket")
        after = has(daemon)
        report.figure("memory", f"worker before {mib(before['resident'])}, after {mib(after['resident'])}")
        ping(pairs)
        report.claim(True, "served", f"{options.flows} flows carried a message both ways")
        for pair in pairs[options.flows // 10:]:
            for end in pair:
                end.close()
        pairs = pairs[:options.flows // 10]
        daemon.wait_active(len(pairs), 60)
        before = has(daemon)
        took = sorted(kill(daemon, pause_s=1.05) for _ in range(options.kills))
        after = has(daemon)
        grown = after.pop("resident") - before.pop("resident")
        report.claim(after == before, f"after {options.kills} deaths as before", f"{counts(after)}; before: {counts(before)}")
        report.figure("memory", f"{mib(grown)} more")
        if took:
            report.figure("until another answers", f"{len(pairs)} flows: median {took[len(took) // 2]:.0f} ms, 99 % {took[len(took) * 99 // 100]:.0f} "
                          f"ms, at most {took[-1]:.0f} ms")
        ping(pairs)
        report.claim(True, "served", f"{len(pairs)} flows carried a message both ways")
        daemon.stop()


def allow_descriptors(number):
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 20, 1 << 20))
    except ValueError:  # without CAP_SYS_RESOURCE
        if most < number:
            raise Unfit(f"{number} descriptors are needed, {most} may be had (--flows)") from None
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def connect(netns, daemon, flows):
    pairs = []
    with netns.inside(), socket.create_server(("127.0.0.1", SERVER_PORT), backlog=1024) as listener:
        for _ in range(flows):
            client = socket.create_connection(("127.0.0.1", EDGE_PORT))
            pairs.append((client, listener.accept()[0]))
    wait_for("all flows to be open", lambda: all(flow["phase"] == "open" for flow in daemon.flows()), 60)
    return pairs


def ping(pairs):
    for client, server in pairs:
        for one, other in ((client, server), (server, client)):
            one.settimeout(30)
            one.sendall(b"ping")
            other.settimeout(30)
            if other.recv(4, socket.MSG_WAITALL) != b"ping":
                raise Failed("a flow is gone")


def kill(daemon, pause_s=0.0):
    """ms until another worker answers."""
    time.sleep(pause_s)  # one that lived a second is followed at once
    before, begun = daemon.worker, time.monotonic()
    os.kill(before, signal.SIGKILL)
    while True:
        try:
            worker = daemon.status().get("worker")
            if worker and worker["pid"] != before:
                return 1000 * (time.monotonic() - begun)
        except (OSError, Failed):
            pass
        if time.monotonic() - begun > 60:
            raise Failed(f"no other worker:\n{daemon.process.log()[-1000:]}")
        time.sleep(0.001)


def has(daemon):
    table = f"/proc/{daemon.pid}/fd"
    with daemon.line() as line:
        totals = line.ask("status")["totals"]  # connections that were closed before this one are gone with the answer
        kinds = [os.readlink(f"{table}/{fd}").partition(":")[0] for fd in os.listdir(table) if os.path.lexists(f"{table}/{fd}")]
    entries = {name: len(dump(daemon.map_id(name))) for name in ("flows", "direction_of")}
    return {"sockets": kinds.count("socket"), "pipes": kinds.count("pipe"), "descriptors": len(kinds),
            "held_bytes": totals["held_bytes"], "pipe_bytes": totals["pipe_bytes"],
            "resident": resident_bytes(daemon.worker), **entries}
