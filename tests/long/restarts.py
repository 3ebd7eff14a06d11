# SPDX-License-Identifier: Apache-2.0
"""restarts: what becomes of live flows and of new connections while penstock, HAProxy and nginx are reloaded or upgraded, or
their worker or master is killed, and while nothing happens. Figures, side by side; claims for penstock alone, and only what it
promises. Every edge has the same listeners and as many threads, and starts anew for each event; rounds are interleaved, delays
are their medians. Flows stay open for ten seconds after an event; two seconds after it their pace falls to a tenth, and the next
edge's turn begins."""
import collections
import dataclasses
import json
import math
import pathlib
import signal
import statistics
import sys
import time

from edges import EDGES, EVENTS, KILL_WORKER, NOTHING, OWN_SESSION, RELOAD, THREADS, UPGRADE
from machine import busy_share, resident_bytes, tcp_counters
from report import counts, mib
from stage import PATIENCE_S, Failed, Netns, Stage, wait_for

KEEPS_ALL = (NOTHING, RELOAD, UPGRADE, KILL_WORKER)  # events at which penstock loses no flow and no newcomer
QUIET_S, NEAR_S, LATER_S = 1.5, 2, 10  # newcomers before the event, at it; then it is looked what is left
EDGE_PORTS, SERVER_PORTS = (2525, 2526, 2527), (3525, 3526, 3527)  # for flows and newcomers; nobody comes to the third
SERVED_MIN = 50  # else their delays say nothing
STATISTICS = {"p50": 0.5, "p99": 0.99, "max": 1}
NEVER = math.inf


def add_arguments(parser):
    parser.add_argument("--flows", type=int, default=300, help="that are open at the event (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--edges", nargs="+", choices=EDGES, default=list(EDGES))
    parser.add_argument("--events", nargs="+", choices=EVENTS, default=list(EVENTS))


def prove(options, report):
    pathlib.Path("/run/penstock").mkdir(exist_ok=True)  # as systemd makes it: the self-test's verdict is kept there
    report.does(f"{options.flows} flows, a third idle, a third ping-pong, a third bulk; 100 newcomers/s; {options.rounds} "
                f"rounds; {THREADS} threads each; {busy_share(0.5):.0%} of the CPUs busy before")
    with Stage(options.build) as stage:
        instead = {(name, event): EDGES[name].instead(stage, event) for name in options.edges for event in options.events}
        plan = [(number, name, event) for number in range(options.rounds) for event in options.events
                for name in rotated(options.edges, number) if not instead[name, event]]
        seen, versions, later = collections.defaultdict(list), {}, collections.deque()
        for number, name, event in plan:
            while later and later[0].is_due():
                finish(later.popleft(), seen)
            trial = Trial(stage, EDGES[name], event, number, options.flows)
            versions[name] = trial.edge.version
            trial.happen()
            later.append(trial)
        while later:
            finish(later.popleft(), seen)
    report.figure("edges", "; ".join(versions.values()))
    for event in options.events:
        if seen["penstock", event]:
            judge(report, event, seen["penstock", event], options.flows)
    report.table([HEAD, *(row(name, event, instead[name, event], seen[name, event], options.flows)
                          for event in options.events for name in options.edges)])


def rotated(names, number):
    turn = number % len(names)
    return names[turn:] + names[:turn]


def finish(trial, seen):
    seen[trial.edge.name, trial.event].append(trial.finish())


@dataclasses.dataclass
class Seen:
    """At one event."""
    act: str
    lost: collections.Counter  # flows, by how
    newcomers: int
    failed: collections.Counter  # newcomers, by how
    corrupt: int  # of either
    quiet_ms: dict
    event_ms: dict  # empty: hardly anybody was served
    processes: tuple  # (before, ten seconds after)
    old_bytes: list  # RSS of each process of the old generation that is still there
    back_s: float  # since when newcomers are served again; 0: each of them was
    repeated_syns: int  # nobody had answered for a second
    accounts: tuple  # (as they should be, what is to tell); None: nobody has them


class Trial:
    """One event at one edge. Made: the edge serves flows and newcomers."""

    def __init__(self, stage, edge, event, number, flows):
        self.event, self.number, self.netns = event, flows, Netns()
        self.edge = edge(stage, self.netns, f"{edge.name}-{event}-{number}", EDGE_PORTS, SERVER_PORTS, 2 * flows + 500)
        self.flows = self._start(stage, "live_flows.py", "open", flows, EDGE_PORTS[0], SERVER_PORTS[0], PATIENCE_S)
        self.newcomers = self._start(stage, "newcomers.py", "dialling", EDGE_PORTS[1], SERVER_PORTS[1])

    def _start(self, stage, program, word, *arguments):
        words = (*OWN_SESSION, sys.executable, "-B", pathlib.Path(__file__).with_name(program), *arguments)
        process = stage.start(self.netns, program, *words)
        wait_for(f"{program} to say {word}", lambda: f"{word}\n" in process.log() or not process.running(), 2 * PATIENCE_S)
        if not process.running():
            raise Failed(f"{program} through {self.edge.name}: {process.log()}")
        return process

    def happen(self):
        time.sleep(QUIET_S)
        self.before, self.old = self.edge.processes(), self.edge.replaced(self.event)
        self.at_s = time.monotonic()
        self.edge.act(self.event)
        time.sleep(max(0, self.at_s + NEAR_S - time.monotonic()))
        for load in (self.flows, self.newcomers):
            load.signal(signal.SIGUSR1)

    def is_due(self):
        return time.monotonic() >= self.at_s + LATER_S

    def finish(self):
        time.sleep(max(0, self.at_s + LATER_S - time.monotonic()))
        after = self.edge.processes()
        old_bytes = [resident_bytes(pid) for pid in self.old & after]
        lost, newcomers = collections.Counter(self._end(self.flows)["lost"]), self._end(self.newcomers)
        accounts = self.edge.accounts(self.number + sum(word == "served" for *_, word in newcomers), self.number + len(newcomers))
        self.edge.stop()
        before = [n for n in newcomers if self.at_s - QUIET_S <= n[0] and n[0] + n[1] < self.at_s]
        since = [n for n in newcomers if n[0] + n[1] >= self.at_s]
        near = [n for n in since if n[0] < self.at_s + NEAR_S]
        return Seen(self.edge.acts[self.event], lost, len(near), failures(near), lost["corrupt"] + failures(newcomers)["corrupt"],
                    spread_ms(before), spread_ms(near), (len(self.before), len(after)), old_bytes, back_s(since, self.at_s),
                    tcp_counters(self.netns)["TCPSynRetrans"], accounts)

    def _end(self, load):
        load.signal(signal.SIGTERM)
        if load.wait(2 * PATIENCE_S) != 0:
            raise Failed(f"load of {self.edge.name} at {self.event}: {load.log()}")
        return json.loads(load.log().splitlines()[-1])


def failures(newcomers):
    return collections.Counter(word for _, _, word in newcomers if word != "served")


def spread_ms(newcomers):
    """By nearest rank."""
    took = sorted(1000 * took_s for _, took_s, word in newcomers if word == "served")
    return {name: took[math.ceil(share * len(took)) - 1] for name, share in STATISTICS.items()} if len(took) >= SERVED_MIN else {}


def back_s(newcomers, at_s):
    failed_s = [began_s for began_s, _, word in newcomers if word != "served"]
    return min((began_s - at_s for began_s, *_ in newcomers if began_s > failed_s[-1]), default=NEVER) if failed_s else 0


def judge(report, event, seen, flows):
    """What holds for penstock."""
    accounts = [one.accounts for one in seen if one.accounts]
    if accounts:
        report.claim(all(holds for holds, _ in accounts), f"{event}: accounts", "; ".join(text for _, text in accounts))
    else:
        report.figure(f"{event}: accounts", "nobody is left who has them")
    report.claim(not any(one.corrupt for one in seen), f"{event}: content", f"{sum(one.corrupt for one in seen)} corrupt")
    if event in KEEPS_ALL:
        report.claim(not any(one.lost or one.failed for one in seen), f"{event}: lost", ", newcomers ".join(lost(seen, flows)))


def lost(seen, flows):
    """Of all rounds: flows, newcomers."""
    return [share(sum((getattr(one, what) for one in seen), collections.Counter()), of)
            for what, of in (("lost", flows * len(seen)), ("failed", sum(one.newcomers for one in seen)))]


def share(of, number):
    return f"{of.total()} of {number}" + (f" ({counts(of)})" if of else "")


HEAD = ["event", "edge", "what", "flows lost", f"newcomers lost in {NEAR_S} s", "SYNs refused, repeated",
        *(f"{name}, ms (quiet + added)" for name in STATISTICS), f"processes before, after {LATER_S} s", "old ones, RSS",
        "newcomers served again"]


def row(name, event, instead, seen, flows):
    if instead:
        return [event, name, instead, *[""] * (len(HEAD) - 3)]
    return [event, name, seen[0].act, *lost(seen, flows), syns(seen), *(delay(seen, statistic) for statistic in STATISTICS),
            ", ".join(str(statistics.median_low(one.processes[when] for one in seen)) for when in (0, 1)),
            old(seen), back(seen)]


def delay(seen, statistic):
    served = [one for one in seen if one.quiet_ms and one.event_ms]
    if not served:
        return ""
    quiet_ms = statistics.median(one.quiet_ms[statistic] for one in served)
    added_ms = statistics.median(one.event_ms[statistic] - one.quiet_ms[statistic] for one in served)
    return f"{quiet_ms:.2f} {added_ms:+.2f}"


def syns(seen):
    return f"{sum(one.failed['refused'] for one in seen)}, {sum(one.repeated_syns for one in seen)}"


def old(seen):
    number = statistics.median_low(len(one.old_bytes) for one in seen)
    return f"{number}, {mib(statistics.median(sum(one.old_bytes) for one in seen))}" if number else "0"


def back(seen):
    if not any(one.back_s for one in seen):
        return "each was served"
    never = sum(one.back_s == NEVER for one in seen)
    if never:
        return "no" if never == len(seen) else f"no, in {never} of {len(seen)} rounds"
    return f"after {statistics.median(one.back_s for one in seen):.2f} s"
