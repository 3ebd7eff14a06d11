# SPDX-License-Identifier: Apache-2.0
"""lives: connections of every kind (IPv4 and IPv6, plain, by server name, behind a proxy; tools/torture), every byte checked
at both ends, every close reason and byte count of the log against both, and what the daemon has afterwards against what it
had after a first hundredth of them: descriptors (sockets, pipes, maps), entries of maps, memory."""
import pathlib

from daemon import Daemon, dump
from machine import resident_bytes, tcp_counters
from report import counts, mib
from stage import PATIENCE_S, Netns, Stage
from torture import Torture, verdict

SERVERS = tuple(f"127.0.0.{host}:7001" for host in range(1, 5))  # each has ports of its own for connections to it
SERVER6 = "[::1]:7001"
PLAIN, PLAIN6, TLS, PROXY, PROXY_TLS = "127.0.0.1:7100", "[::1]:7100", "127.0.0.1:7101", "127.0.0.1:7102", "127.0.0.1:7103"
ENTRANCES = (PLAIN, f"tls:{TLS}", f"proxy:{PROXY}", PLAIN6, f"proxy+tls:{PROXY_TLS}", PLAIN, f"tls:{TLS}", f"proxy:{PROXY}")
UNREACHED = f'"{30 * PATIENCE_S:.0f}s"'  # no life waits for a timeout; a slow machine takes its time between two of 2,000 pieces
TABLES = f"""
[timeouts]
client_hello = {UNREACHED}
proxy_header = {UNREACHED}
connect = {UNREACHED}
idle = {UNREACHED}
half_closed = {UNREACHED}
[upstream.server]
servers = [{", ".join(f'"{server}"' for server in SERVERS)}]
proxy_protocol = "v2"
[upstream.server6]
servers = ["{SERVER6}"]
proxy_protocol = "v2"
[upstream.nobody]
servers = ["127.0.0.1:1"]
""" + "".join(f"""
[[listener]]
name = "{name}"
bind = ["{bind}"]
{'accept_proxy = { from = ["127.16.0.0/12"] }' if "proxy" in name else ""}
{by}""" for name, bind, by in (
    ("plain", PLAIN, 'upstream = "server"'), ("plain6", PLAIN6, 'upstream = "server6"'), ("proxy", PROXY, 'upstream = "server"'),
    *((name, bind, 'upstream = "nobody"\n  [[listener.route]]\n  sni = ["*.torture.test"]\n  upstream = "server"')
      for name, bind in (("tls", TLS), ("proxy-tls", PROXY_TLS)))))
LIVES_PER_S_MIN = 1000 / PATIENCE_S  # else it is stopped


def add_arguments(parser):
    parser.add_argument("--lives", type=int, default=100_000)
    parser.add_argument("--engine", choices=("auto", "io_uring"), default="auto")
    parser.add_argument("--concurrency", type=int, default=500)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--family", choices=("v4", "v6"), help="of the clients; otherwise both")
    parser.add_argument("--netem", metavar="WORDS", help="of tc-netem(8): what becomes of each packet on its way")
    parser.add_argument("--growth-mib", type=int, default=4, help="of the daemon, at most; allocators keep some (%(default)s)")


def prove(options, report):
    with Stage(options.build) as stage:
        netns = Netns()
        if options.netem:
            netns.run("tc", "qdisc", "add", "dev", "lo", "root", "netem", *options.netem.split())
        daemon = Daemon(stage, netns, TABLES, engine=options.engine, max_flows=2 * options.concurrency, access_log=True)
        live(stage, netns, daemon, options.lives // 100 or 1, options, options.seed + 1)
        before = has(daemon)
        exact, summary, remarks = live(stage, netns, daemon, options.lives, options, options.seed)
        after, totals = has(daemon), daemon.totals()
        closed = sum(totals["closed"].values())
        report.claim(exact, f"{options.engine}: content, reasons, accounts", "; ".join([f"{verdict(summary)}; seed {options.seed}, "
                     f"{summary['lives_per_s']:.0f} lives/s", *remarks[:10]]))
        report.claim(totals["accepted"] == totals["active"] + closed and not totals["closed"]["account_mismatch"],
                     f"{options.engine}: the law", f"accepted {totals['accepted']} = active {totals['active']} + closed {closed}")
        report.figure(f"{options.engine}: closed", counts(summary["closed"]))
        report.figure(f"{options.engine}: carried", counts(summary["bytes"]))
        report.figure(f"{options.engine}: lane changes", counts(summary["lane_changes"]))
        report.figure(f"{options.engine}: aborted, at all ends", counts(aborts(netns)))
        resident = after.pop("resident") - before.pop("resident")
        report.claim(after == before, f"{options.engine}: afterwards as before", counts(after))
        report.claim(resident < options.growth_mib << 20, f"{options.engine}: memory of penstockd", f"{mib(resident)} more")
        daemon.stop()


def live(stage, netns, daemon, lives, options, seed):
    entrances = [e for e in ENTRANCES if not options.family or (e == PLAIN6) == (options.family == "v6")]
    words = (*(word for server in (*SERVERS, SERVER6) for word in ("--serve", server)),
             *(word for entrance in entrances for word in ("--to", entrance)),
             "--admin", daemon.admin, "--log", daemon.process.log_file,
             "--lives", lives, "--concurrency", options.concurrency, "--seed", seed, "--hang-s", 1.5 * PATIENCE_S)
    torture = Torture(stage, netns, *words)
    return *torture.finish(15 * PATIENCE_S + lives / LIVES_PER_S_MIN), torture.remarks()


def aborts(netns):
    """Connections reset or given up, by why: close(2) with linger 0 (OnData) or with something unread (OnClose), and those
    for which nobody asked (OnTimeout, OnMemory, ...)."""
    return {name: n for name, n in tcp_counters(netns).items() if "Abort" in name and n}


def has(daemon):
    """What would grow if something were forgotten."""
    daemon.wait_active(0)
    totals = daemon.totals()
    entries = {name: len(dump(daemon.map_id(name))) for name in ("flows", "direction_of")}
    return {"descriptors": len(list(pathlib.Path(f"/proc/{daemon.pid}/fd").iterdir())) - totals["pipes"] * 2,
            "held_bytes": totals["held_bytes"],
            "pipe_bytes": totals["pipe_bytes"], "resident": resident_bytes(daemon.worker), **entries}
