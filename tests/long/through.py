# SPDX-License-Identifier: Apache-2.0
"""through: what a death of the worker costs traffic under way: 2 Gbit/s over 8 flows, and 64 bytes there and back on 8 flows,
each in the splice and in the relay. Beside each SIGKILL stand two controls in the same run: a moment at which nothing happens,
and the same SIGKILL to the worker of another daemon, with as many flows at rest: what a restart costs the machine. Splice:
kills cannot be told from those, by the rank sum of each one's longest wait. Relay: they can, and nobody waits longer than the
restart takes. The ends have real-time priority, so that who else uses the machine is not what is measured."""
import array
import bisect
import dataclasses
import datetime
import json
import os
import re
import signal
import statistics
import time

from daemon import Daemon, piped
from edges import OWN_SESSION
from report import counts
from stage import PATIENCE_S, Failed, Netns, Stage, Unfit, wait_for

SERVER_PORT, EDGE_PORT, OTHER_SERVER_PORT, OTHER_EDGE_PORT, FLOWS = 7001, 7100, 7002, 7101, 8
ENGINES = {"splice": "auto", "relay": "io_uring"}
CARRIED = {"splice": "spliced", "relay": "relayed"}
LOADS = ("stream", "ping")
MOMENTS = UNDISTURBED, BESIDE, KILL = ("undisturbed", "a kill beside it", "a kill")
PINGS_PER_S = 8_000
S, MS = 1_000_000_000, 1_000_000
BEFORE, NEAR, AFTER, BIN = 1 * S, 50 * MS, 2 * S, 10 * MS  # of a moment; NEAR: who waits within it, waits for its sake
SHOWN = range(-5, 25)  # bins
KILLS_MIN = 8  # fewer could not be told from controls, whatever they did
SURE = 0.001
IN_LANE_MIN = 0.99


def add_arguments(parser):
    parser.add_argument("--kills", type=int, default=20, help="of each load in each lane (%(default)s)")
    parser.add_argument("--mbit-per-s", type=int, default=2000, help="of the stream (%(default)s)")
    parser.add_argument("--lanes", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS))


def prove(options, report):
    if options.kills < KILLS_MIN:
        raise Unfit(f"--kills: {KILLS_MIN} at least")
    report.does(f"stream: {options.mbit_per_s} Mbit/s over {FLOWS} flows; ping: {PINGS_PER_S} pings/s over {FLOWS}; {options.kills} kills "
                f"of each load in each lane, as many controls of each kind")
    pace = {"stream": options.mbit_per_s * 125_000, "ping": PINGS_PER_S}
    for load in options.loads:
        runs = {}
        for lane in options.lanes:
            with Stage(options.build) as stage:
                runs[lane] = Run(stage, lane, load, pace[load], options.kills)
            (judge_stream if load == "stream" else judge_ping)(report, f"{load}, {lane}", runs[lane])
        rows = (row for lane, run in runs.items() for row in (stream_rows if load == "stream" else ping_rows)(lane, run))
        report.table([STREAM_HEAD if load == "stream" else PING_HEAD, *rows])


@dataclasses.dataclass
class Moment:
    at: int  # ns, CLOCK_MONOTONIC
    ready: int = 0  # the next worker; 0: none died
    bins: list = dataclasses.field(default_factory=lambda: [0] * ((BEFORE + AFTER) // BIN))  # stream: bytes
    waits: dict = dataclasses.field(default_factory=dict)  # the longest of each flow, ns: for a byte, or an answer
    pings: list = dataclasses.field(default_factory=list)  # (sent, ns)

    @property
    def wait_ms(self):
        return max(self.waits.values(), default=0) / MS

    @property
    def restart_ms(self):
        return (self.ready - self.at) / MS

    def waited(self, flow, since, until):
        if until > self.at and since < self.at + NEAR:
            self.waits[flow] = max(self.waits.get(flow, 0), until - since)


class Run:
    def __init__(self, stage, lane, load, pace, kills):
        self.stage, self.lane, self.netns, self.bin_bytes = stage, lane, Netns(), pace * BIN // S
        records = stage.directory / "records"
        self.daemon, ends = self.start(load, EDGE_PORT, SERVER_PORT, pace, records)
        other, others_ends = self.start("ping", OTHER_EDGE_PORT, OTHER_SERVER_PORT, FLOWS, "/dev/null")
        self.carried = dict.fromkeys(CARRIED, 0)  # bytes, about the moments
        killed = {UNDISTURBED: None, BESIDE: other, KILL: self.daemon}
        moments = [self.moment(killed[what]) for _ in range(kills) for what in MOMENTS]
        self.ends = finish(ends)
        finish(others_ends)
        self.died, self.closed = self.daemon.status()["worker"]["crashes"], self.daemon.totals()["closed"]
        for daemon in (self.daemon, other):
            daemon.stop()
        see(moments, load, records)
        self.moments = {what: moments[n::len(MOMENTS)] for n, what in enumerate(MOMENTS)}

    def start(self, load, port, to, pace, records):
        """A daemon, and both ends of the flows through it."""
        daemon = Daemon(self.stage, self.netns, piped(f"127.0.0.1:{to}", f"127.0.0.1:{port}"), name=f"edge-{port}",
                        engine=ENGINES[self.lane], max_flows=8 * FLOWS, through=OWN_SESSION)
        ends = self.stage.start(self.netns, load, *OWN_SESSION, "chrt", "--fifo", 1, self.stage.program("tools/lab/lab-series"), load,
                                "--listen", to, "--to", port, "--flows", FLOWS, "--rate", pace, "--records", records)
        wait_for("the flows to open", lambda: "open\n" in ends.log() or not ends.running())
        if not ends.running():
            raise Failed(ends.log())
        return daemon, ends

    def moment(self, killed):
        """`killed`: whose worker."""
        wait_for(f"all flows to be in {self.lane}", self.in_lane, 3 * PATIENCE_S)
        before = self.carried_up()
        if killed:
            worker, said = killed.worker, killed.process.log_file.stat().st_size
        time.sleep(BEFORE / S)
        moment = Moment(time.monotonic_ns())
        if killed:
            os.kill(worker, signal.SIGKILL)
        time.sleep(AFTER / S)
        if killed:
            moment.ready = ready_at(killed.process, said)
        for lane, carried in self.carried_up().items():
            self.carried[lane] += carried - before[lane]
        return moment

    def in_lane(self):
        """By order: one that was too much for the splice for a moment would take seconds to return."""
        astray = [flow["cookie"] for flow in self.daemon.flows() if flow["directions"]["up"]["lane"] != self.lane]
        for cookie in astray:
            self.daemon.ask("lane", cookie=cookie, direction="up", to=self.lane)
        return not astray

    def up(self):
        return [flow["directions"]["up"] for flow in self.daemon.flows()]

    def carried_up(self):
        ways = self.up()
        return {lane: sum(way[key] for way in ways) for lane, key in CARRIED.items()}


def finish(ends):
    ends.signal(signal.SIGTERM)
    if ends.wait(2 * PATIENCE_S):
        raise Failed(ends.log())
    return json.loads(ends.log().splitlines()[-1])


def ready_at(process, said):
    """When its log says so, after the first so many bytes."""
    ready = re.search(r"^(\S+)Z info  ready: ", process.log_file.read_bytes()[said:].decode(), re.M)
    if not ready:
        raise Failed(f"no other worker:\n{process.log()[-1000:]}")
    realtime_s = datetime.datetime.fromisoformat(ready[1] + "+00:00").timestamp()
    return int((realtime_s - time.time() + time.monotonic()) * S) + MS  # it is cut to the ms


def see(moments, load, file):
    """What arrived about which moment."""
    records = array.array("Q")
    records.frombytes(file.read_bytes())
    begins, last = [moment.at - BEFORE for moment in moments], {}
    for when, flow, value in zip(records[0::3], records[1::3], records[2::3]):
        moment = moments[max(0, bisect.bisect(begins, when) - 1)]
        if load == "ping":
            moment.waited(flow, when, when + value)
            if when + value > moment.at and when < moment.at + AFTER:
                moment.pings.append((when, value))
        else:
            moment.waited(flow, last.get(flow, when), when)
            last[flow] = when
            if -BEFORE <= when - moment.at < AFTER:
                moment.bins[(when - moment.at + BEFORE) // BIN] += value


def judge(report, name, run, awaited):
    ends, closed = run.ends, {reason: number for reason, number in run.closed.items() if number}
    report.claim(ends["whole"] == FLOWS and closed == {"completed": FLOWS} and run.died == len(run.moments[KILL]), f"{name}: content",
                 f"{run.died} workers died; {ends['whole']} of {ends['flows']} flows whole, {ends['received']} of {ends['sent']} bytes, "
                 f"{ends['wrong']} wrong; closed: {counts(closed)}")
    share = run.carried[run.lane] / sum(run.carried.values())
    report.claim(share >= IN_LANE_MIN, f"{name}: lane", f"{share:.3%} of the bytes")
    waits = {what: [moment.wait_ms for moment in moments] for what, moments in run.moments.items()}
    chance = {what: by_chance(waits[KILL], waits[what]) for what in (UNDISTURBED, BESIDE)}
    text = (f"{awaited}, ms: {spread(waits[KILL])}; " +
            "; ".join(f"{what}: {spread(waits[what])}, by chance p = {p:.2g}" for what, p in chance.items()))
    if run.lane == "splice":
        report.claim(chance[BESIDE] >= SURE, f"{name}: nothing is noticed", text)
        return
    report.claim(chance[BESIDE] < SURE, f"{name}: it is noticed", text)
    restarts = [moment.restart_ms for moment in run.moments[KILL]]
    longer = max(wait - restart for wait, restart in zip(waits[KILL], restarts))
    report.claim(longer <= max(waits[BESIDE]), f"{name}: no longer than the restart",
                 f"restarts, ms: {spread(restarts)}; a wait was {longer:+.1f} ms longer, at most")


def by_chance(kills, controls):
    """How likely it is that kills rank so high among the controls if they are alike: Mann and Whitney's U, one-sided."""
    n, m = len(kills), len(controls)
    u = sum((kill > control) + (kill == control) / 2 for kill in kills for control in controls)
    return statistics.NormalDist(n * m / 2, (n * m * (n + m + 1) / 12) ** 0.5).cdf(n * m - u)


def spread(values):
    return f"median {statistics.median(values):.1f}, at most {max(values):.1f}"


def judge_stream(report, name, run):
    judge(report, name, run, "a flow's longest wait for a byte")
    for what, moments in run.moments.items():
        for which, pick in (("median", statistics.median), ("least", min)):
            series = [100 * pick(bins) / run.bin_bytes for bins in zip(*(moment.bins for moment in moments))]
            first, last = (BEFORE // BIN + n for n in (SHOWN[0], SHOWN[-1] + 1))
            shown = [f"{value:.0f}" for value in series[first:last]]
            shown.insert(-SHOWN[0], "|")
            rest = series[:first] + series[last:]
            report.figure(f"{name}: % of the pace in 10 ms, {which}",
                          f"{what}: {' '.join(shown)}; before and after: {min(rest):.0f} to {max(rest):.0f}")


STREAM_HEAD = ["stream", "", "a flow's longest wait, ms: median, max", "worst 10 ms of 2 s, of the pace: median, min",
               "back at 90 % of the pace, ms: median, max"]
PING_HEAD = ["ping", "exchanges that overlap", "number", "p50, us", "p99, us", "max, us"]


def stream_rows(lane, run):
    for what, moments in run.moments.items():
        waits = [moment.wait_ms for moment in moments]
        after = [moment.bins[BEFORE // BIN:] for moment in moments]
        worst = [min(bins) / run.bin_bytes for bins in after]
        back = [back_ms(bins, 0.9 * run.bin_bytes) for bins in after]
        yield [lane, what, f"{statistics.median(waits):.1f}, {max(waits):.1f}", f"{statistics.median(worst):.0%}, {min(worst):.0%}",
               f"{statistics.median(back):.0f}, {max(back):.0f}"]


def back_ms(bins, enough):
    """Until 10 ms have so many bytes again, if some of NEAR had less."""
    low = next((n for n in range(NEAR // BIN) if bins[n] < enough), None)
    return 0 if low is None else next((n * BIN / MS for n in range(low, len(bins)) if bins[n] >= enough), float("inf"))


def judge_ping(report, name, run):
    judge(report, name, run, "the longest wait for an answer")


def ping_rows(lane, run):
    restart = int(statistics.median(moment.ready - moment.at for moment in run.moments[KILL]))
    for what, until in ((UNDISTURBED, lambda moment: moment.at + AFTER), (UNDISTURBED, lambda moment: moment.at + restart),
                        (BESIDE, lambda moment: moment.ready), (KILL, lambda moment: moment.ready)):
        pings = sorted(ns for moment in run.moments[what] for sent, ns in moment.pings if sent < until(moment))
        long_ms = statistics.median(until(moment) - moment.at for moment in run.moments[what]) / MS
        ranks = (min(len(pings) - 1, int(share * len(pings))) for share in (0.5, 0.99, 1))
        yield [lane, f"{long_ms:.0f} ms, {what}", str(len(pings)), *(f"{pings[rank] / 1000:.0f}" for rank in ranks)]
