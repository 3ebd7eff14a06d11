# SPDX-License-Identifier: Apache-2.0
"""nic: what a gigabyte costs when its segments come as from a NIC: three namespaces joined by veth, the sender's segments
cut to the MTU before the cable, GRO at the edge. Whole-machine CPU seconds, for 2 Gbit/s over 8 flows by iperf3 (or as
fast as it goes), direct and through each proxy in turn; so the machine must be idle otherwise."""
import json
import shutil
import statistics

from daemon import Daemon, piped
from machine import busy_s, busy_share
from report import counts
from stage import Netns, Stage, Unfit, wait_for

CLIENT, EDGE, EDGE_INSIDE, SERVER = "192.0.2.10", "192.0.2.1", "198.51.100.1", "198.51.100.80"
PORT = 5201  # iperf3's
OTHERS_MAX = 0.03  # busy with something else: more, and the figures are of that
DIRECT, SPLICE, NO_PULL, RELAY, HAPROXY = "direct", "penstock", "penstock without pull", "penstock relay", "haproxy"
HAPROXY_CONFIGURATION = """\
global
  nbthread {threads}
defaults
  mode tcp
  option splice-auto
  timeout connect 5s
  timeout client 1m
  timeout server 1m
frontend edge
  bind {edge}:{port}
  default_backend server
backend server
  server server {server}
"""


def add_arguments(parser):
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="medians of so many, interleaved")
    parser.add_argument("--flows", type=int, default=8)
    parser.add_argument("--rate-bps", type=int, default=2_000_000_000, help="of all flows together; 0: as fast as it goes")
    parser.add_argument("--direction", choices=("up", "down"), default="up")
    parser.add_argument("--mtu", type=int, default=1500)


def prove(options, report):
    for program in ("iperf3", "haproxy", "ethtool"):
        if not shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin"):
            raise Unfit(f"needs {program} (apt-get install {program})")
    with Stage(options.build) as stage:
        client, edge, server = Netns(), Netns(), Netns()
        client.join("eth0", CLIENT, edge, "outside", EDGE, options.mtu)
        server.join("eth0", SERVER, edge, "inside", EDGE_INSIDE, options.mtu)
        for end, gateway, device in ((client, EDGE, "outside"), (server, EDGE_INSIDE, "inside")):
            end.run("ip", "route", "add", "default", "via", gateway)
            end.offload("eth0", tso=False, gso=False)
            edge.offload(device, gro=True)
        edge.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
        daemons = start_proxies(stage, edge)
        iperf3 = stage.start(server, "iperf3", "iperf3", "--server", "--bind", SERVER, "--forceflush")
        wait_for("iperf3 to listen", lambda: "Server listening" in iperf3.log())
        report.does(f"{options.flows} flows {options.direction}, {options.rate_bps / 1e9:g} Gbit/s together, MTU "
                    f"{options.mtu}, {options.rounds} rounds of {options.seconds:g} s each")
        measured = {name: [] for name in (DIRECT, *TARGETS)}
        others = 0.0
        for _ in range(options.rounds):
            others = max(others, busy_share(1))
            for name in measured:
                measured[name].append(measure(stage, client, options, name))
        report.claim(others <= OTHERS_MAX, "idle machine", f"{others:.1%} of the CPUs were busy before a round, at most")
        tell(report, measured, daemons)
        for daemon in daemons.values():
            daemon.stop()


TARGETS = {SPLICE: 6001, NO_PULL: 6002, RELAY: 6003, HAPROXY: 6004}  # the edge's ports


def start_proxies(stage, edge):
    def penstock(name, **how):
        label = name.replace(" ", "-")
        return Daemon(stage, edge, piped(f"{SERVER}:{PORT}", f"{EDGE}:{TARGETS[name]}"), name=label, max_flows=256, **how)
    daemons = {SPLICE: penstock(SPLICE), NO_PULL: penstock(NO_PULL, environment={"PENSTOCK_PULL": "off"}),
               RELAY: penstock(RELAY, engine="io_uring")}
    configuration = stage.directory / "haproxy.cfg"
    configuration.write_text(HAPROXY_CONFIGURATION.format(threads=daemons[SPLICE].status()["threads"], edge=EDGE,
                                                          port=TARGETS[HAPROXY], server=f"{SERVER}:{PORT}"))
    haproxy = stage.start(edge, "haproxy", "haproxy", "-db", "-f", configuration)
    wait_for("haproxy to listen", lambda: f":{TARGETS[HAPROXY]} " in edge.run("ss", "-Hltn") or not haproxy.running())
    if not haproxy.running():
        raise Unfit(f"haproxy did not start: {haproxy.log()}")
    return daemons


def measure(stage, client, options, name):
    """(CPU seconds per GB of the whole machine, Gbit/s)"""
    address, port = (SERVER, PORT) if name == DIRECT else (EDGE, TARGETS[name])
    words = ["iperf3", "--client", address, "--port", port, "--parallel", options.flows, "--time", int(options.seconds),
             "--bitrate", options.rate_bps // options.flows, "--json"]
    began = busy_s()
    iperf3 = stage.start(client, "iperf3", *words, *(["--reverse"] if options.direction == "down" else []))
    code = iperf3.wait(options.seconds + 60)
    cpu_s = busy_s() - began
    if code != 0:
        raise Unfit(f"iperf3 ({name}): exit {code}: {iperf3.log()}")
    received = json.loads(iperf3.log())["end"]["sum_received"]
    return cpu_s / (received["bytes"] / 1e9), received["bits_per_second"] / 1e9


def tell(report, measured, daemons):
    cost = {name: statistics.median(per_gb for per_gb, _ in runs) for name, runs in measured.items()}
    for name, runs in measured.items():
        rates = ", ".join(f"{rate:.2f}" for _, rate in runs)
        report.figure(name, f"{cost[name]:.3f} CPU s/GB, {cost[name] - cost[DIRECT]:.3f} added (rounds: "
                      f"{', '.join(f'{per_gb:.3f}' for per_gb, _ in runs)}; Gbit/s {rates})")
    for name, daemon in daemons.items():
        status = daemon.status()
        changes = {change: number for change, number in status["totals"]["lane_changes"].items() if number}
        report.figure(f"{name}: carried", f"{counts(status['totals']['bytes'])}; lane changes {counts(changes)}; "
                      f"sockmap {counts({n: status['sockmap'][n] for n in ('pulls', 'pulls_failed', 'trims')})}")
    added = {name: value - cost[DIRECT] for name, value in cost.items()}
    report.claim(added[SPLICE] < added[NO_PULL], "the pull", f"{added[SPLICE]:.3f} CPU s/GB added with it, "
                 f"{added[NO_PULL]:.3f} without")
    report.claim(added[SPLICE] <= added[HAPROXY], "against HAProxy", f"{added[SPLICE]:.3f} CPU s/GB added, HAProxy "
                 f"{added[HAPROXY]:.3f}, our relay {added[RELAY]:.3f}")
