# SPDX-License-Identifier: Apache-2.0
"""stall: saturating senders into readers that stop. What waits for one direction stays under flow.buffer, with the
daemon running and with it stopped (SIGSTOP) from the moment all flows are open until shortly before the readers go on;
then all is delivered. While it is stopped only the sockmap's share is known per direction, the pipes' for all together."""
import time

from daemon import Daemon, dump, piped
from machine import Extremes, available_bytes, tcp_buffer_bytes
from report import mib
from stage import PATIENCE_S, Netns, Stage, wait_for
from torture import Torture, verdict

SERVER, EDGE = "127.0.0.1:7001", "127.0.0.1:7100"
EVERY_S = 0.05
BUFFER_BYTES = 4 << 20  # flow.buffer, its default
WAKE_BEFORE_S = 1  # the daemon goes on so long before the readers do


def add_arguments(parser):
    parser.add_argument("--seconds", type=float, default=60, help="how long the readers stop")
    parser.add_argument("--flows", type=int, default=8)
    parser.add_argument("--direction", choices=("both", "up", "down"), default="both")


def prove(options, report):
    for stopped in (False, True):
        with Stage(options.build) as stage:
            stall(stage, options, report, stopped)


def stall(stage, options, report, stopped):
    label = "daemon stopped" if stopped else "daemon running"
    netns = Netns()
    daemon = Daemon(stage, netns, piped(SERVER, EDGE, upstream='proxy_protocol = "v2"'), max_flows=4 * options.flows)
    directions, totals = daemon.map_id("directions"), daemon.map_id("totals")
    before = {"available": available_bytes(), "tcp": tcp_buffer_bytes()}

    def look():
        seen = {"charged": max(d["charged"] for d in dump(directions)), "pipes": dump(totals)[0]["pipe_bytes"],
                "available": available_bytes(), "tcp": tcp_buffer_bytes()}
        if not stopped:  # with the bytes in the pipe, which the map does not know
            seen["held"] = max((d["held_bytes"] for f in daemon.flows() for d in f["directions"].values()), default=0)
        return seen

    report.does(f"{label}: {options.flows} flows, direction {options.direction}, readers stop for {options.seconds} s")
    torture = Torture(stage, netns, "--serve", SERVER, "--to", EDGE, "--mode", "stall", "--flows", options.flows,
                      "--stall-s", options.seconds, "--direction", options.direction)
    began_s = time.monotonic()
    with Extremes(look, EVERY_S) as seen:
        if stopped:
            wait_for("the flows to open", lambda: [f["phase"] for f in daemon.flows()] == ["open"] * options.flows)
            with daemon.stopped():
                at_stop = max(d["charged"] for d in dump(directions))
                stopped_after_s = time.monotonic() - began_s
                time.sleep(max(0, began_s + options.seconds - WAKE_BEFORE_S - time.monotonic()))
            report.figure(f"{label}: SIGSTOP", f"{stopped_after_s:.2f} s after the start, with at most {mib(at_stop)} held "
                          f"per direction by then; SIGCONT {WAKE_BEFORE_S} s before the readers go on")
        exact, summary = torture.finish(options.seconds + 6 * PATIENCE_S)
    held = max(seen.most["charged"], seen.most.get("held", 0))
    report.claim(held <= BUFFER_BYTES, f"{label}: most held per direction",
                 f"{mib(held)} of flow.buffer {mib(BUFFER_BYTES)} ({seen.samples} samples; pipes of all together at most "
                 f"{mib(seen.most['pipes'])})")
    report.claim(exact, f"{label}: delivered", "; ".join([verdict(summary), *torture.remarks()[:3]]))
    dropped, buffers = before["available"] - seen.least["available"], seen.most["tcp"] - before["tcp"]
    report.figure(f"{label}: memory", f"MemAvailable fell by {mib(dropped)} at most, TCP's own buffers grew by "
                  f"{mib(buffers)} at most")
    daemon.wait_active(0)
    totals = daemon.totals()
    report.figure(f"{label}: lanes", f"{totals['bytes']['splice']} bytes by splice, {totals['bytes']['relay']} by relay; "
                  f"{daemon.status()['sockmap']['trims']} trims")
    report.claim(totals["closed"]["account_mismatch"] == 0, f"{label}: accounts",
                 f"account_mismatch {totals['closed']['account_mismatch']}")
    daemon.stop()
