# SPDX-License-Identifier: Apache-2.0
"""cycles: lanes changed by command, over and over, while bytes flow both ways; then the same while a raw socket injects
overlapping and reordered segments. The count is the daemon's own (totals.lane_changes), the content the peers' own.

Lanes are looked up in the pinned map: asking the daemon for its flows would wake a worker that had overslept."""
import socket
import time

from daemon import Daemon, PinnedFlow, piped, since
from report import KernelLog, counts
from stage import Failed, Netns, Stage, wait_for
from traffic import RawSegments, Stream

SERVER_PORT, EDGE_PORT = 3525, 2525
DIRECTIONS = ("up", "down")
STUCK_S = 30


def add_arguments(parser):
    parser.add_argument("--cycles", type=int, default=10000, help="of each kind, in each direction")
    parser.add_argument("--window", type=int, default=64 << 10,
                        help="most bytes on their way in one direction; from 128 KiB on average on the daemon relays by itself")


def prove(options, report):
    kernel_log = KernelLog()
    for injecting in (False, True):
        with Stage(options.build) as stage:
            cycle_one_flow(stage, options, report, injecting)
    complaints = kernel_log.complaints()
    report.claim(not complaints, "kernel log", "; ".join(complaints) or "no complaint")


def cycle_one_flow(stage, options, report, injecting):
    netns = Netns()
    daemon = Daemon(stage, netns, piped(f"127.0.0.1:{SERVER_PORT}", f"127.0.0.1:{EDGE_PORT}"), max_flows=64)
    with netns.inside(), socket.create_server(("127.0.0.1", SERVER_PORT)) as listener:
        client = socket.create_connection(("127.0.0.1", EDGE_PORT))
        listener.settimeout(STUCK_S)
        server = listener.accept()[0]
        raw = RawSegments() if injecting else None
    with client, server:
        for peer in (client, server):
            peer.settimeout(None)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wait_for("the flow to open", lambda: [f["phase"] for f in daemon.flows()] == ["open"])
        cookie = daemon.flows()[0]["cookie"]
        shape = {"chunk_bytes_max": 4000 if injecting else 16 << 10, "window_bytes": options.window,
                 "disturb": raw.disturb if injecting else None}
        streams = {"up": Stream(client, server, 1, **shape), "down": Stream(server, client, 2, **shape)}
        label = "with injected segments" if injecting else "calm"
        driver = Driver(daemon, cookie, streams)
        for kind, act, changes in (("splice-held-splice", driver.hold_and_return, 2),
                                   ("splice-held-relay-splice", driver.relay_and_return, 3)):
            report.does(f"{label}: {options.cycles} times {kind} in each direction")
            driver.repeat(act, changes, options.cycles, f"{label}, {kind}", report)
        end(daemon, streams, label, report)
        if injecting:
            cut = daemon.status()["sockmap"]
            report.claim(cut["overlaps"] > 0, f"{label}: overlaps",
                         f"{raw.injected} segments injected, {cut['overlaps']} cut in the splice ({cut['overlap_bytes']} "
                         "bytes)")
    daemon.stop()


class Driver:
    """Orders one flow's lanes, both directions side by side."""

    def __init__(self, daemon, cookie, streams):
        self.daemon, self.cookie, self.streams = daemon, cookie, streams
        self.flow = PinnedFlow(daemon, cookie)
        self.refused = 0

    def changes(self):
        return {direction: self.flow.direction(direction)[1] for direction in DIRECTIONS}

    def order(self, direction, lane):
        """Refused where it may not go there from where it is; a direction that the daemon relays by its own judgement
        has to be spliced first. So asked until it obeys."""
        def ask(to):
            return self.line.ask("lane", cookie=self.cookie, direction=direction, to=to).get("error")
        deadline = time.monotonic() + STUCK_S
        while error := ask(lane):
            self.refused += 1
            ask("splice")
            if time.monotonic() > deadline:
                raise Failed(f"{direction} to {lane}: refused for {STUCK_S} s: {error}")

    def wait_in(self, lane, since_changes):
        """Each direction in `lane`; or it has been: back from there by itself is so many changes later."""
        for direction in DIRECTIONS:
            wait_for(f"{direction} in {lane}", lambda: self.flow.direction(direction)[0] == lane or
                     self.flow.direction(direction)[1] >= since_changes[direction] + 3, STUCK_S)

    def wait_moving(self, lane):
        """Bytes in each lane, or only the command would have been tried."""
        for direction, stream in self.streams.items():
            if not stream.wait_progress(STUCK_S):
                raise Failed(f"{direction}: no byte in {STUCK_S} s in {lane}")

    def hold_and_return(self):
        """A held direction goes back by itself as soon as the target has caught up."""
        before = self.changes()
        for direction in DIRECTIONS:
            self.order(direction, "held")
        for direction in DIRECTIONS:
            wait_for(f"{direction} to be held and return",
                     lambda: self.flow.direction(direction)[1] >= before[direction] + 2, STUCK_S)
        self.wait_in("splice", before)
        self.wait_moving("splice")

    def relay_and_return(self):
        before = self.changes()
        for direction in DIRECTIONS:
            self.order(direction, "relay")
        self.wait_in("relay", before)
        self.wait_moving("relay")
        before = self.changes()
        for direction in DIRECTIONS:
            self.order(direction, "splice")
        self.wait_in("splice", before)
        self.wait_moving("splice")

    def repeat(self, act, changes_per_cycle, cycles, label, report):
        before, totals_before = self.changes(), self.daemon.totals()["lane_changes"]
        bytes_before = {d: s.received for d, s in self.streams.items()}
        began_s, done, stuck = time.monotonic(), 0, ""
        with self.daemon.line() as self.line:
            try:
                while done < cycles:
                    act()
                    done += 1
            except Failed as failed:
                stuck = f"; stuck: {failed}; flows: {self.daemon.flows()}"
        counted = since(before, self.changes())
        delta = since(totals_before, self.daemon.totals()["lane_changes"])
        seconds = time.monotonic() - began_s
        moved = ", ".join(f"{d} {(s.received - bytes_before[d]) / 1e6:.0f} MB" for d, s in self.streams.items())
        enough = all(counted.get(d, 0) >= changes_per_cycle * cycles for d in DIRECTIONS)
        report.claim(enough and not stuck, label,
                     f"{done} cycles of {changes_per_cycle} changes each way in {seconds:.0f} s; lane changes counted: "
                     f"{counts(counted)} ({counts(delta)}); orders refused and repeated {self.refused}; moved {moved}"
                     f"{stuck}")


def end(daemon, streams, label, report):
    for stream in streams.values():
        stream.stop()
    for direction, stream in streams.items():
        ended = stream.join(STUCK_S)
        exact = ended and stream.wrong_at is None and stream.received == stream.sent and stream.end == "FIN"
        report.claim(exact, f"{label}: content {direction}",
                     f"{stream.sent} bytes sent, {stream.received} received, first wrong at {stream.wrong_at}, "
                     f"end: {stream.end}{'' if ended else ', still running'}")
    try:
        daemon.wait_active(0)
    except Failed as left:
        report.claim(False, f"{label}: flow", f"did not end: {left}; {daemon.flows()}")
    totals = daemon.totals()
    report.claim(totals["closed"]["account_mismatch"] == 0 and totals["closed"]["completed"] == 1, f"{label}: accounts",
                 f"account_mismatch {totals['closed']['account_mismatch']}, closed: "
                 f"{counts({n: v for n, v in totals['closed'].items() if v})}")
    report.figure(f"{label}: lanes", f"{totals['bytes']['splice']} bytes by splice, {totals['bytes']['relay']} by relay")
