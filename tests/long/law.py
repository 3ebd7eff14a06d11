# SPDX-License-Identifier: Apache-2.0
"""law: accepted = active + the sum of closed by reason. Under load it must hold exactly within every snapshot a reader takes:
of the pinned map `totals` (bpftool; one that saw an update half done says so, and is taken again), of /metrics and of
`penstock status --json` (the daemon looks until it has seen every update whole). The log has one line per closed flow: not
more than were accepted, and as many as were closed once it is written. After the load all four are equal, by reason."""
import collections
import re
import time

from daemon import Daemon, piped
from report import counts
from stage import Netns, Stage, wait_for
from torture import Torture, verdict

SERVER, EDGE, HTTP = "127.0.0.1:7001", "127.0.0.1:7100", "127.0.0.1:9464"
LOG_LATE_S = 5


def add_arguments(parser):
    parser.add_argument("--seconds", type=float, default=30)


class Accounts:
    """What one reader says at one moment."""

    def __init__(self, accepted, active, closed):
        self.accepted, self.active, self.closed = accepted, active, {name: n for name, n in closed.items() if n}

    def closed_in_all(self):
        return sum(self.closed.values())

    def holds(self):
        return self.accepted == self.active + self.closed_in_all()


class Log:
    """The access lines so far, counted as they come."""

    def __init__(self, path):
        self.file = open(path, encoding="utf-8", errors="replace")
        self.rest = ""
        self.reasons = collections.Counter()

    def lines(self):
        text = self.rest + self.file.read()
        whole, _, self.rest = text.rpartition("\n")
        self.reasons.update(re.findall(r" flow cookie=.* reason=(\w+)$", whole, re.M))
        return self.reasons.total()


def from_map(daemon):
    """(accounts, how often it was torn)."""
    torn = 0
    while True:
        totals = daemon.pinned("totals")[0][1]
        if totals["updates_done"] == totals["updates_begun"]:
            return Accounts(totals["accepted"], totals["active"], totals["closed"]), torn
        torn += 1


def from_metrics(netns):
    samples = dict(line.rsplit(" ", 1) for line in netns.run("curl", "-sS", "--fail", f"http://{HTTP}/metrics").splitlines()
                   if not line.startswith("#"))
    prefix = 'penstock_flows_closed_total{reason="'
    closed = {name[len(prefix):-2]: int(n) for name, n in samples.items() if name.startswith(prefix)}
    return Accounts(int(samples["penstock_flows_accepted_total"]), int(samples["penstock_flows_active"]), closed)


def from_command(daemon):
    totals = daemon.penstock("status")["totals"]
    return Accounts(totals["accepted"], totals["active"], totals["closed"])


def prove(options, report):
    with Stage(options.build) as stage:
        netns = Netns()
        daemon = Daemon(stage, netns, piped(SERVER, EDGE, upstream='proxy_protocol = "v2"'), access_log=True, http=HTTP)
        log = Log(daemon.process.log_file)
        report.does(f"penstock-torture --mix short for {options.seconds} s, every reader in turn meanwhile")
        torture = Torture(stage, netns, "--serve", SERVER, "--to", EDGE, "--mix", "short", "--concurrency", 100,
                          "--duration", options.seconds)
        under_load(report, daemon, netns, log, torture)
        exact, summary = torture.finish(options.seconds + 120)
        report.claim(exact, "torture", verdict(summary))
        daemon.wait_active(0)
        afterwards(report, daemon, netns, log)
        daemon.stop()


def under_load(report, daemon, netns, log, torture):
    began_s = time.monotonic()
    snapshots, broken, torn, backwards, log_wrong = collections.Counter(), collections.Counter(), 0, 0, 0
    moved = last = 0
    while torture.process.running():
        of_map, torn_now = from_map(daemon)
        of_metrics, of_command = from_metrics(netns), from_command(daemon)
        torn += torn_now
        for name, seen in (("bpftool", of_map), ("metrics", of_metrics), ("command", of_command)):
            snapshots[name] += 1
            broken[name] += not seen.holds()
            backwards += seen.accepted < last
            moved += seen.accepted > last
            last = seen.accepted
        lines = log.lines()
        after = from_command(daemon)
        snapshots["command"] += 1
        broken["command"] += not after.holds()
        wait_for("the log to be written", lambda seen=of_map: log.lines() >= seen.closed_in_all(), LOG_LATE_S)
        log_wrong += lines > after.accepted
        last = after.accepted
    seconds = time.monotonic() - began_s
    report.figure("load", f"{last} flows accepted in {seconds:.0f} s; between two snapshots some were in {moved} of "
                  f"{3 * snapshots['bpftool']} cases; {torn} dumps of bpftool were torn and taken again")
    for name, number in snapshots.items():
        report.claim(number > 0 and broken[name] == 0, f"within {name}", f"exact in {number - broken[name]} of {number}")
    report.claim(backwards == 0, "between them", f"accepted went backwards {backwards} times")
    report.claim(log_wrong == 0, "log", f"{snapshots['bpftool']} times closed <= lines (within {LOG_LATE_S} s) and lines <= "
                 f"accepted, {log_wrong} times not")


def afterwards(report, daemon, netns, log):
    of_map = from_map(daemon)[0]
    with_all = {"bpftool": of_map, "metrics": from_metrics(netns), "command": from_command(daemon)}
    dropped = daemon.totals()["log_lines_dropped"]
    wait_for("the log to be written", lambda: log.lines() + dropped >= of_map.accepted, LOG_LATE_S)
    report.claim(all(seen.holds() and seen.active == 0 for seen in with_all.values()), "afterwards",
                 "; ".join(f"{name}: {seen.accepted} = {seen.active} + {seen.closed_in_all()}" for name, seen in
                           with_all.items()))
    report.claim(all(seen.closed == of_map.closed for seen in with_all.values()) and dropped == 0
                 and dict(log.reasons) == of_map.closed, "afterwards, by reason",
                 f"the same in all, and in {log.lines()} log lines ({dropped} dropped): {counts(of_map.closed)}")
