# SPDX-License-Identifier: Apache-2.0
"""small-mtu: many flows at full rate at MTU 1280 without GRO, so that a segment carries little and costs much: nothing may
be trimmed, with the daemon running, and with it late: stopped (SIGSTOP) for 20 ms in every 100. Content is checked.

Both peers live in one namespace, as penstock-torture is one process; each talks to the edge over a cable of its own."""
import shutil
import time

from daemon import Daemon, piped
from report import counts
from stage import Netns, Stage, Unfit
from torture import Torture, verdict

CLIENT, EDGE, EDGE_INSIDE, SERVER = "192.0.2.10", "192.0.2.1", "198.51.100.1", "198.51.100.80"
LATE_S, EVERY_S = 0.02, 0.1


def add_arguments(parser):
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--flows", type=int, default=64)
    parser.add_argument("--direction", choices=("both", "up", "down"), default="both")
    parser.add_argument("--mtu", type=int, default=1280)


def prove(options, report):
    if not shutil.which("ethtool", path="/usr/sbin:/usr/bin:/sbin:/bin"):
        raise Unfit("needs ethtool (apt-get install ethtool)")
    for late in (False, True):
        with Stage(options.build) as stage:
            full_rate(stage, options, report, late)


def full_rate(stage, options, report, late):
    label = f"daemon late by {LATE_S * 1000:.0f} ms" if late else "daemon running"
    peers, edge = Netns(), Netns()
    for device, address, edge_device, edge_address in (("clients", CLIENT, "outside", EDGE),
                                                       ("servers", SERVER, "inside", EDGE_INSIDE)):
        peers.join(device, address, edge, edge_device, edge_address, options.mtu)
        peers.offload(device, tso=False, gso=False)
        edge.offload(edge_device, gro=False)
    daemon = Daemon(stage, edge, piped(f"{SERVER}:7001", f"{EDGE}:7100", upstream='proxy_protocol = "v2"'), max_flows=256)
    report.does(f"{label}: {options.flows} flows at full rate, direction {options.direction}, MTU {options.mtu}, GRO off, "
                f"{options.seconds:g} s")
    torture = Torture(stage, peers, "--serve", f"{SERVER}:7001", "--to", f"{EDGE}:7100", "--mode", "paced", "--flows",
                      options.flows, "--duration", options.seconds, "--direction", options.direction, "--source", "any",
                      "--hang-s", 60)
    stops = 0
    while late and torture.process.running():
        with daemon.stopped():
            time.sleep(LATE_S)
        stops += 1
        time.sleep(EVERY_S - LATE_S)
    exact, summary = torture.finish(options.seconds + 120)
    daemon.wait_active(0, 60)
    status = daemon.status()
    kernel, totals = status["sockmap"], status["totals"]
    report.claim(kernel["trims"] == 0, f"{label}: trims",
                 f"{kernel['trims']}; valves closed by the kernel {kernel['closes']}, refused {kernel['closes_refused']}"
                 f"{f'; stopped {stops} times' if late else ''}")
    report.claim(exact, f"{label}: content", "; ".join([verdict(summary), *torture.remarks()[:3]]))
    changes = {name: number for name, number in totals["lane_changes"].items() if number}
    report.figure(f"{label}: lanes", f"bytes: {counts(totals['bytes'])}; changes: {counts(changes)}; "
                  f"{summary['megabytes_per_s'] * 8 / 1000:.2f} Gbit/s")
    report.claim(totals["closed"]["account_mismatch"] == 0, f"{label}: accounts",
                 f"account_mismatch {totals['closed']['account_mismatch']}")
    daemon.stop()
