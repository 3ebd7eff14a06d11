# SPDX-License-Identifier: Apache-2.0
"""soak: an hour of mixed connections, every byte checked, in portions; in each of them the configuration is changed and
changed back by reloads. After each the load pauses, and what penstockd and the kernel keep is written down. What a line
through these figures (least squares, after a warm-up) gains from the first to the last must be next to nothing."""
import pathlib
import time

from daemon import Daemon, piped
from kernel_maps import entries
from machine import bpf_bytes, resident_bytes, slab_bytes, unreclaimable_slab_bytes
from report import KernelLog, counts
from stage import Netns, Stage, wait_for
from torture import OURS, Torture, verdict

SERVER, EDGES = "127.0.0.1:7001", ("127.0.0.1:7100", "[::1]:7100")
MORE_PORT = 7200
MORE = (f'[upstream.more]\nservers = ["127.0.0.1:7002"]\ncheck = {{ type = "tcp", interval = "1s" }}\n'
        f'[[listener]]\nname = "comes-and-goes"\nbind = ["127.0.0.1:{MORE_PORT}"]\nupstream = "more"\n')
SOCKET_SLABS = ("TCP", "TCPv6", "sock_inode_cache", "request_sock_TCP", "request_sock_TCPv6")
GAIN_MAX = {  # allocators and slabs keep some, and of the last the whole machine has a share
    "RSS, KiB": 1024, "BPF, KiB": 16, "slab of sockets, KiB": 2048, "slab in all, KiB": 16384}
GAIN_MAX_OF_OTHERS = 0.5
TELL_EVERY_S = 300


def add_arguments(parser):
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--warm-up", type=float, default=0.1, metavar="SHARE", help="of the minutes (%(default)s)")
    parser.add_argument("--portion-s", type=float, default=10, help="of load before it pauses (%(default)s)")
    parser.add_argument("--engine", choices=("auto", "io_uring"), default="auto")
    parser.add_argument("--concurrency", type=int, default=200)
    parser.add_argument("--seed", type=int, default=2026)


def prove(options, report):
    kernel_log = KernelLog()
    with Stage(options.build) as stage:
        netns = Netns()
        tables = piped(SERVER, EDGES[0], upstream='proxy_protocol = "v2"').replace(
            f'"{EDGES[0]}"', ", ".join(f'"{edge}"' for edge in EDGES))
        daemon = Daemon(stage, netns, tables, engine=options.engine, max_flows=4 * options.concurrency)
        soak = Soak(stage, netns, daemon, options, report)
        report.does(f"{options.minutes:g} minutes of portions of {options.portion_s:g} s, {options.concurrency} connections "
                    f"at a time, two reloads in each; seeds from {options.seed}")
        soak.run()
        tell(report, soak, options)
        daemon.stop()
    complaints = kernel_log.complaints()
    report.claim(not complaints, "kernel log", "; ".join(complaints) or "no complaint")


class Soak:
    def __init__(self, stage, netns, daemon, options, report):
        self.stage, self.netns, self.daemon, self.options, self.report = stage, netns, daemon, options, report
        self.samples = []  # (seconds since the start, {what: how much})
        self.lives = self.bytes = self.reloads = 0
        self.wrong = []

    def run(self):
        began_s = told_s = time.monotonic()
        while time.monotonic() - began_s < 60 * self.options.minutes:
            self.portion()
            self.samples.append((time.monotonic() - began_s, self.at_rest()))
            if time.monotonic() - told_s > TELL_EVERY_S:
                told_s = time.monotonic()
                self.report.figure(f"after {(told_s - began_s) / 60:.0f} min", f"{self.lives} lives, {counts(self.samples[-1][1])}")

    def portion(self):
        seed, third_s = self.options.seed + len(self.samples), self.options.portion_s / 3
        torture = Torture(self.stage, self.netns, "--serve", SERVER, *(w for edge in EDGES for w in ("--to", edge)), "--duration",
                          self.options.portion_s, "--concurrency", self.options.concurrency, "--seed", seed)
        for more in (True, False):
            time.sleep(third_s)
            self.reload(more)
        exact, summary = torture.finish(self.options.portion_s + 300)
        self.lives += summary["lives"]
        self.bytes += summary["bytes_up"] + summary["bytes_down"]
        if not exact:
            self.wrong += [f"seed {seed}: {verdict(summary)}", *torture.remarks()[:3]]
        self.stage.processes.remove(torture.process)
        torture.process.log_file.unlink()

    def reload(self, more):
        """Another listener, upstream, check and timeout; or as it was."""
        changed = '[timeouts]\nidle = "30m"\n' + MORE if more else ""
        self.daemon.config.write_text(self.daemon.configuration + changed)
        self.daemon.penstock("reload")
        self.reloads += 1
        wait_for("the reload", lambda: len(self.daemon.status()["listeners"]) == (2 if more else 1))

    def at_rest(self):
        self.daemon.wait_active(0, 60)
        wait_for("the listener that is not wanted to be closed", lambda: not self.netns.run("ss", "-Hltn", f"sport = :{MORE_PORT}"))
        totals, pid = self.daemon.totals(), self.daemon.worker
        return {"descriptors": len(list(pathlib.Path(f"/proc/{pid}/fd").iterdir())), "slots in use": totals["active"],
                **{f"entries of {name}": number for name, number in sorted(entries(pid).items())},
                "held_bytes": totals["held_bytes"], "pipes": totals["pipes"], "RSS, KiB": resident_bytes(pid) >> 10,
                "BPF, KiB": bpf_bytes(pid) >> 10, "slab of sockets, KiB": slab_bytes(SOCKET_SLABS) >> 10,
                "slab in all, KiB": unreclaimable_slab_bytes() >> 10}


def tell(report, soak, options):
    report.claim(not soak.wrong and soak.lives > 0, "content", f"{soak.lives} lives, {soak.bytes / 1e9:.1f} GB: "
                 f"{'; '.join(soak.wrong[:5]) or 'every byte where it belongs'}")
    status = soak.daemon.status()
    totals = status["totals"]
    closed, ours = sum(totals["closed"].values()), {name: totals["closed"][name] for name in OURS if totals["closed"][name]}
    report.claim(totals["accepted"] == totals["active"] + closed and not ours, "accounts",
                 f"accepted {totals['accepted']} = active {totals['active']} + closed {closed}: "
                 f"{counts({name: number for name, number in totals['closed'].items() if number})}")
    report.figure("carried", f"{counts(totals['bytes'])}; {soak.reloads} reloads")
    warm_s = options.warm_up * 60 * options.minutes
    samples = [sample for sample in soak.samples if sample[0] >= warm_s]
    if len(samples) < 3:
        report.claim(False, "slopes", f"{len(samples)} samples after the warm-up of {warm_s:.0f} s are too few")
        return
    span_h = (samples[-1][0] - samples[0][0]) / 3600
    for what in samples[0][1]:
        values = [sample[what] for _, sample in samples]
        per_hour = slope([at_s / 3600 for at_s, _ in samples], values)
        most = GAIN_MAX.get(what, GAIN_MAX_OF_OTHERS)
        report.claim(per_hour * span_h <= most, what, f"{per_hour:+.2f} an hour, {per_hour * span_h:+.2f} in {60 * span_h:.0f} "
                     f"min and {len(values)} samples, at most {most} may be; {min(values)} to {max(values)}, "
                     f"first {values[0]}, last {values[-1]}")


def slope(xs, ys):
    """Of the line through the points that has the least squares."""
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys)) / sum((x - x_mean) ** 2 for x in xs)
