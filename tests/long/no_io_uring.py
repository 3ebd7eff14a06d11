# SPDX-License-Identifier: Apache-2.0
"""no-io-uring: 10,000 mixed connections through a daemon to which a seccomp profile refuses io_uring, with each engine:
every byte exact, every flow accounted for, the reason shown; CPU beside the same with io_uring."""
import pathlib
import sys

from daemon import Daemon, piped, since
from report import KernelLog, counts
from stage import Netns, Stage
from torture import OURS, Torture, verdict

LISTEN, SERVER = "127.0.0.1:7100", "127.0.0.1:7001"
REFUSE = (sys.executable, "-B", pathlib.Path(__file__).with_name("refuse_io_uring.py"))


def add_arguments(parser):
    parser.add_argument("--lives", type=int, default=10_000, help="connections of each run (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)


def prove(options, report):
    kernel_log = KernelLog()
    for engine in ("auto", "io_uring"):
        cpu_s = {}
        for refused in (False, True):
            cpu_s[refused] = run(options, report, engine, refused)
        report.figure(f"engine = {engine}", f"CPU {cpu_s[True]:.2f} s with epoll, {cpu_s[False]:.2f} s with io_uring: "
                                            f"{cpu_s[True] / cpu_s[False]:.2f} times")
    complaints = kernel_log.complaints()
    report.claim(not complaints, "kernel log", "; ".join(complaints) or "quiet")


def run(options, report, engine, refused):
    """The daemon's CPU seconds."""
    name = f"engine = {engine}, io_uring {'refused' if refused else 'allowed'}"
    with Stage(options.build) as stage:
        netns = Netns()
        daemon = Daemon(stage, netns, piped(SERVER, LISTEN, 'proxy_protocol = "v2"'), engine=engine,
                        through=REFUSE if refused else ())
        status = daemon.status()
        report.claim(status["io"].startswith("epoll (io_uring_setup: Operation not permitted") == refused, name,
                     f"engine {status['engine']} ({status['engine_reason']}), io {status['io']}")
        before, before_cpu_s = status["totals"], daemon.cpu_s()
        load = Torture(stage, netns, "--serve", SERVER, "--to", LISTEN, "--lives", options.lives, "--seed", options.seed)
        exact, summary = load.finish(120 + options.lives / 20)
        daemon.wait_active(0)
        cpu_s = daemon.cpu_s() - before_cpu_s
        totals = daemon.totals()
        report.claim(exact, f"{name}: every byte", verdict(summary))
        for remark in load.remarks()[:10]:
            report.does(remark)
        accepted, closed = totals["accepted"], sum(totals["closed"].values())
        ours = {reason: totals["closed"][reason] for reason in OURS if totals["closed"][reason]}
        report.claim(accepted == totals["active"] + closed and not ours, f"{name}: accounts",
                     f"{accepted} accepted = {totals['active']} active + {closed} closed; by penstock's doing: {counts(ours)}")
        added = since(before, totals)
        report.figure(f"{name}: closed by", counts(added.get("closed", {})))
        report.figure(f"{name}: bytes", counts(added.get("bytes", {})))
        report.figure(f"{name}: lane changes", counts(added.get("lane_changes", {})))
        daemon.stop()
        return cpu_s
