# SPDX-License-Identifier: Apache-2.0
"""never-read: clients that take nothing while their server sends without end, the daemon without CAP_SYS_RESOURCE. What
waits in the kernel for all of them stays under limits.memory, and another client is served throughout."""
import time

from daemon import Daemon, piped
from machine import Extremes, available_bytes, resident_bytes, tcp_buffer_bytes
from report import counts, mib
from stage import Netns, Stage
from torture import Torture, verdict

SERVER, EDGE = "127.0.0.1:7001", "127.0.0.1:7100"
EVERY_S = 0.1
MEMORY_BYTES = 64 << 20  # limits.memory
WORST_PROBE_MS = 5000  # a proxy that has wedged, not a busy machine
CAP_SYS_RESOURCE = 24


def add_arguments(parser):
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--flows", type=int, default=2000)


def prove(options, report):
    with Stage(options.build) as stage:
        netns = Netns()
        daemon = Daemon(stage, netns, piped(SERVER, EDGE, upstream='proxy_protocol = "v2"',
                                            extra=f'[limits]\nmemory = "{MEMORY_BYTES}B"'),
                        max_flows=2 * options.flows, through=("setpriv", "--bounding-set", "-sys_resource"))
        report.claim(not daemon.has_capability(CAP_SYS_RESOURCE), "privileges", "penstockd without CAP_SYS_RESOURCE")
        before = {"available": available_bytes(), "tcp": tcp_buffer_bytes()}

        def look():
            totals = daemon.totals()
            return {"held": totals["held_bytes"], "pipes": totals["pipe_bytes"],
                    "together": totals["held_bytes"] + totals["pipe_bytes"], "active": totals["active"],
                    "available": available_bytes(), "tcp": tcp_buffer_bytes()}

        report.does(f"{options.flows} clients that never read, for {options.seconds} s, and one every 200 ms that does")
        torture = Torture(stage, netns, "--serve", SERVER, "--to", EDGE, "--mode", "never-read", "--flows", options.flows,
                          "--duration", options.seconds, "--probe-client")
        with Extremes(look, EVERY_S) as seen:
            time.sleep(options.seconds / 2)
            report.figure("halfway", halfway(daemon, torture, before))
            exact, summary = torture.finish(options.seconds + 120)
        tell(report, seen, summary, before)
        report.claim(exact, "torture", "; ".join([verdict(summary), *torture.remarks()[:3]]))
        daemon.wait_active(0, 60)
        status = daemon.status()
        totals = status["totals"]
        report.figure("refused and reset", f"memory_limit {totals['closed']['memory_limit']} of {totals['accepted']} "
                      f"accepted; resets the clients saw {summary['starved_resets']}; pipes_refused "
                      f"{totals['pipes_refused']}; trims {status['sockmap']['trims']}")
        report.claim(totals["accepted"] == totals["active"] + sum(totals["closed"].values()), "accounts",
                     f"accepted {totals['accepted']}; closed: {counts({n: v for n, v in totals['closed'].items() if v})}")
        report.claim(totals["held_bytes"] == 0 and totals["closed"]["account_mismatch"] == 0, "afterwards",
                     f"held_bytes {totals['held_bytes']}, account_mismatch {totals['closed']['account_mismatch']}")
        daemon.stop()


def halfway(daemon, torture, before):
    """When everything is full and at rest: what the kernel holds beside what TCP accounts to sockets."""
    fell = before["available"] - available_bytes()
    buffers, load = tcp_buffer_bytes() - before["tcp"], resident_bytes(torture.process.pid)
    lanes = {}
    for flow in daemon.flows():
        word = f"{flow['phase']} {flow['directions']['down']['lane']}"
        lanes[word] = lanes.get(word, 0) + 1
    totals = daemon.totals()
    return (f"{counts(lanes)}; held {mib(totals['held_bytes'])}, pipes {mib(totals['pipe_bytes'])}; MemAvailable fell by "
            f"{mib(fell)}: sockets' own buffers {mib(buffers)} (both ends and the edge), the load's own memory {mib(load)}, "
            f"all else {mib(fell - buffers - load)}")


def tell(report, seen, summary, before):
    report.claim(seen.most["together"] <= MEMORY_BYTES, "most held",
                 f"{mib(seen.most['together'])} of limits.memory {mib(MEMORY_BYTES)} (in the sockmap at most "
                 f"{mib(seen.most['held'])}, pipes {mib(seen.most['pipes'])}; {seen.samples} samples, at most "
                 f"{seen.most['active']} flows)")
    report.figure("machine", f"MemAvailable fell by {mib(before['available'] - seen.least['available'])}; sockets' own "
                  f"buffers took {mib(seen.most['tcp'] - before['tcp'])} at most")
    served = summary["probes_good"]
    report.claim(served > 0 and summary["probes_bad"] == 0 and summary["probe_worst_ms"] <= WORST_PROBE_MS,
                 "another client", f"{served} times served, {summary['probes_bad']} times not, at worst within "
                 f"{summary['probe_worst_ms']:.0f} ms")
