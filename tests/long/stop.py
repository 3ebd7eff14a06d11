# SPDX-License-Identifier: Apache-2.0
"""stop: SIGTERM while many flows are open. Those that finish do so; the daemon ends with the last of them, or when the
grace is over: then who is left is reset and counted. A second SIGTERM does not wait. SIGKILL of keeper and worker,
then a start: clean."""
import resource
import signal
import time

from report import KernelLog, counts
from restart import EDGE_PORT, FLOWS_MAX, Flows, Paths, adds_up, kill, reasons, wait_ready
from stage import Netns, Stage, run, wait_for

GRACE_S = 3
AT_ONCE_S = 2  # to let go of a thousand flows, on a busy machine


def add_arguments(parser):
    parser.add_argument("--flows", type=int, default=1000)


def prove(options, report):
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # both ends of every flow are ours
    kernel_log = KernelLog()
    for engine in ("auto", "io_uring"):
        with Stage(options.build) as stage:
            netns = Netns()
            paths = Paths(stage, netns, engine=engine, grace=f"{GRACE_S}s")
            for act in (all_finish, some_stay, second_sigterm):
                act(paths, netns, options.flows, Claim(report, f"{engine}: {act.__doc__}"))
            sigkill(paths, netns, options.flows, Claim(report, f"{engine}: SIGKILL, then a start"))
    complaints = kernel_log.complaints()
    report.claim(not complaints, "kernel log", "; ".join(complaints) or "no complaint")


class Claim:
    def __init__(self, report, name):
        self.report, self.name = report, name

    def __call__(self, holds, text):
        self.report.claim(bool(holds), self.name, text)


def started(paths, netns, number):
    process = paths.start()
    wait_ready(process)
    flows = Flows(netns, number)
    wait_for("every flow to be open", lambda: all(f["phase"] == "open" for f in paths.ask("flows")["flows"]))
    return process, flows


def drain(process, netns):
    """SIGTERM, until nobody listens any more. When it was sent."""
    sent_s = time.monotonic()
    process.signal(signal.SIGTERM)
    wait_for("it to stop listening", lambda: not netns.run("ss", "-Hltn", f"sport = :{EDGE_PORT}"))
    return sent_s


def ended(process, sent_s, paths, flows, expected):
    """(as it should be, what is to tell)."""
    code = process.wait(GRACE_S + 20)
    took_s = time.monotonic() - sent_s
    log = process.log()
    left = paths.left()
    flows.close()
    return (code == 0 and adds_up(log) and reasons(log) == expected and not left,
            f"exit {code} after {took_s:.2f} s; reasons: {counts(reasons(log))}; left: {left or 'nothing'}", took_s)


def all_finish(paths, netns, number, claim):
    """SIGTERM, every flow finishes"""
    process, flows = started(paths, netns, number)
    sent_s = drain(process, netns)
    flows.finish(number)
    last_s = time.monotonic() - sent_s
    good, text, took_s = ended(process, sent_s, paths, flows, {"completed": number})
    claim(good and took_s - last_s < AT_ONCE_S, f"{text}, {1000 * (took_s - last_s):.0f} ms after the last flow")


def some_stay(paths, netns, number, claim):
    """SIGTERM, a third finishes, the others never would"""
    process, flows = started(paths, netns, number)
    sent_s = drain(process, netns)
    flows.finish(number // 3)
    seen = flows.ends(number // 3)
    stay = number - number // 3
    good, text, took_s = ended(process, sent_s, paths, flows, {"completed": number // 3, "shutdown": stay})
    claim(good and seen == {"RST": 2 * stay} and GRACE_S <= took_s < GRACE_S + AT_ONCE_S,
          f"{text} (grace {GRACE_S} s); those that stayed saw: {counts(seen)}")


def second_sigterm(paths, netns, number, claim):
    """SIGTERM twice"""
    process, flows = started(paths, netns, number)
    drain(process, netns)
    sent_s = time.monotonic()
    process.signal(signal.SIGTERM)
    seen = flows.ends(0)
    good, text, took_s = ended(process, sent_s, paths, flows, {"shutdown": number})
    claim(good and seen == {"RST": 2 * number} and took_s < AT_ONCE_S, f"{text}, from the second on; peers saw: {counts(seen)}")


def sigkill(paths, netns, number, claim):
    process, flows = started(paths, netns, number)
    kill(process)
    began_s = time.monotonic()
    again = paths.start()
    wait_ready(again)
    ready_ms = 1000 * (time.monotonic() - began_s)
    flows.close()
    totals = paths.ask("status")["totals"]
    pinned = run("bpftool", "map", "show", "pinned", paths.pin / "flows")
    shown = run("bpftool", "-j", "map", "dump", "pinned", paths.pin / "flows").strip()
    again.signal(signal.SIGTERM)
    code = again.wait(GRACE_S + 20)
    left = paths.left()
    claim(code == 0 and totals["accepted"] == totals["active"] == 0 and shown == "[]" and f"max_entries {FLOWS_MAX}" in pinned
          and adds_up(again.log()) and not left,
          f"ready again in {ready_ms:.0f} ms, {totals['accepted']} accepted, the pinned map shows {shown}; then exit {code}, "
          f"left: {left or 'nothing'}")
