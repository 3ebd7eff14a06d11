# SPDX-License-Identifier: Apache-2.0
"""lanes-share: what the kernel carried alone, in bytes and flows per lane, for traffic that the target keeps up with, on
loopback. Each mix has a daemon of its own and must be in the splice lane for at least 99 % of its bytes."""
from daemon import Daemon, piped
from report import counts
from stage import Netns, Stage
from torture import Torture, verdict

SERVER, EDGE = "127.0.0.1:7001", "127.0.0.1:7100"
SHARE_MIN = 0.99


def add_arguments(parser):
    parser.add_argument("--lives", type=int, default=1000, help="of pingpong and of mail")
    parser.add_argument("--seconds", type=float, default=30, help="of each paced mix")
    parser.add_argument("--direction", choices=("both", "up", "down"), default="both", help="of the paced mixes")


def prove(options, report):
    paced = ("--mix", "paced", "--duration", options.seconds, "--direction", options.direction)
    mixes = {
        "pingpong": ("--mix", "pingpong", "--lives", options.lives),
        "mail": ("--mix", "mail", "--lives", options.lives),
        "500 Mbit/s over 64 flows": (*paced, "--flows", 64, "--rate-bps", 500_000_000),
        "2 Gbit/s over 8 flows": (*paced, "--flows", 8, "--rate-bps", 2_000_000_000),
    }
    for mix, words in mixes.items():
        with Stage(options.build) as stage:
            share(stage, report, mix, words, options.seconds)


def share(stage, report, mix, words, seconds):
    netns = Netns()
    daemon = Daemon(stage, netns, piped(SERVER, EDGE, upstream='proxy_protocol = "v2"'))
    report.does(f"{mix}: penstock-torture {' '.join(map(str, words))}")
    exact, summary = Torture(stage, netns, "--serve", SERVER, "--to", EDGE, *words).finish(seconds + 300)
    daemon.wait_active(0)
    totals = daemon.totals()
    carried, flows = totals["bytes"], sum(totals["closed"].values())
    every = carried["splice"] + carried["relay"]
    spliced = carried["splice"] / every if every else 0
    changes = {name: number for name, number in totals["lane_changes"].items() if number}
    report.claim(spliced >= SHARE_MIN, f"{mix}: bytes", f"{spliced:.3%} of {every} in splice ({carried['relay']} relayed); "
                 f"lane changes: {counts(changes)}")
    report.figure(f"{mix}: flows", f"{totals['spliced_flows']} of {flows} spliced to the last byte")
    report.claim(exact, f"{mix}: content", f"{verdict(summary)}; {summary['megabytes_per_s'] * 8:.0f} Mbit/s")
    daemon.stop()
