# SPDX-License-Identifier: Apache-2.0
"""lives: mixed connections on IPv4 and IPv6, every byte checked at both ends, and what the daemon has afterwards against
what it had after a first hundredth of them: descriptors (sockets, pipes, maps), entries of maps, memory."""
import pathlib

from daemon import Daemon, dump, piped
from machine import resident_bytes
from report import counts, mib
from stage import Netns, Stage
from torture import Torture, verdict

SERVER, EDGES = "127.0.0.1:7001", ("127.0.0.1:7100", "[::1]:7100")
RESIDENT_GROWTH_MAX = 4 << 20  # allocators keep some


def add_arguments(parser):
    parser.add_argument("--lives", type=int, default=100_000)
    parser.add_argument("--engine", choices=("auto", "io_uring"), default="auto")
    parser.add_argument("--concurrency", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=2026)


def prove(options, report):
    with Stage(options.build) as stage:
        netns = Netns()
        tables = piped(SERVER, EDGES[0], upstream='proxy_protocol = "v2"').replace(
            f'"{EDGES[0]}"', ", ".join(f'"{edge}"' for edge in EDGES))
        daemon = Daemon(stage, netns, tables, engine=options.engine, max_flows=2 * options.concurrency)
        live(stage, netns, options.lives // 100 or 1, options, options.seed + 1)
        before = has(daemon)
        totals_before = daemon.totals()
        exact, summary = live(stage, netns, options.lives, options, options.seed)
        daemon.wait_active(0)
        after, totals = has(daemon), daemon.totals()
        closed = sum(totals["closed"].values())
        report.claim(exact, f"{options.engine}: content", f"{verdict(summary)}; seed {options.seed}, "
                     f"{summary['lives_per_s']:.0f} lives/s")
        report.claim(totals["accepted"] == totals["active"] + closed and not totals["closed"]["account_mismatch"],
                     f"{options.engine}: accounts", f"accepted {totals['accepted']} = active {totals['active']} + closed "
                     f"{closed}: {counts({name: number for name, number in totals['closed'].items() if number})}")
        moved = {lane: totals["bytes"][lane] - totals_before["bytes"][lane] for lane in totals["bytes"]}
        report.figure(f"{options.engine}: carried", counts(moved))
        changes = {name: number for name, number in totals["lane_changes"].items() if number}
        report.figure(f"{options.engine}: lane changes", counts(changes))
        resident = after.pop("resident") - before.pop("resident")
        report.claim(after == before, f"{options.engine}: afterwards as before", counts(after))
        report.claim(resident < RESIDENT_GROWTH_MAX, f"{options.engine}: memory of penstockd", f"{mib(resident)} more")
        daemon.stop()


def live(stage, netns, lives, options, seed):
    words = ("--serve", SERVER, *(word for edge in EDGES for word in ("--to", edge)), "--lives", lives,
             "--concurrency", options.concurrency, "--seed", seed)
    return Torture(stage, netns, *words).finish(120 + lives / 50)


def has(daemon):
    """What would grow if something were forgotten."""
    daemon.wait_active(0)
    totals = daemon.totals()
    entries = {name: len(dump(daemon.map_id(name))) for name in ("flows", "direction_of")}
    return {"descriptors": len(list(pathlib.Path(f"/proc/{daemon.pid}/fd").iterdir())) - totals["pipes"] * 2,
            "held_bytes": totals["held_bytes"],
            "pipe_bytes": totals["pipe_bytes"], "resident": resident_bytes(daemon.pid), **entries}
