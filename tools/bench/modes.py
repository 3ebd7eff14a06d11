# SPDX-License-Identifier: Apache-2.0
"""What is compared: each starts in the edge's namespace with the same number of threads and stays for the whole network."""
import proxies
from daemon import Daemon
from machine import family
from proxies import of_path
from stage import Unfit, wait_for

FIRST_PORT = 8000


class Mode:
    """A proxy that runs, or none. `lanes()` and `pids()` are of this moment; between loads, when no flow is open."""
    rival = False  # one of those a user would pick instead
    groups = None  # of loads it takes part in; None: all

    def __init__(self, name, address, ports, version="", configuration="", process=None):
        self.name, self.address, self.ports = name, address, ports
        self.version, self.configuration, self.process = version, configuration, process

    def pids(self):
        return family(self.process.pid) if self.process else []

    def lanes(self):
        return {}


class Penstock(Mode):
    def __init__(self, name, bench, **how):
        ports = bench.ports()
        self.daemon = Daemon(bench.stage, bench.network.edge, proxies.PENSTOCK.format(*ports, **bench.words()), name=name,
                             threads=bench.threads, max_flows=bench.flows_max, **how)
        environment = "".join(f"# environment: {k}={v}\n" for k, v in how.get("environment", {}).items())
        super().__init__(name, bench.network.edge_address, ports,
                         f"penstock {self.daemon.status()['version']}, engine {self.daemon.engine}",
                         environment + self.daemon.configuration, self.daemon.process)

    def lanes(self):
        self.daemon.wait_active(0)  # a flow's bytes are in the totals when it has ended
        totals = self.daemon.totals()
        return totals["bytes"] | {f"change:{name}": count for name, count in totals["lane_changes"].items()}


class Rival(Mode):
    rival = True

    def __init__(self, name, bench, program, version, configuration, ports, *words):
        process = bench.stage.start(bench.network.edge, name, program, *words)
        super().__init__(name, bench.network.edge_address, ports, version, configuration, process)
        listening = f":{ports[-1]} "
        wait_for(f"{name} to listen",
                 lambda: listening in bench.network.edge.run("ss", "-Hltn") or not self.process.running())
        if not self.process.running():
            raise Unfit(f"{name} did not start: {self.process.log()}")


def haproxy(name, bench, program, more=""):
    ports, file = bench.ports(), bench.stage.directory / f"{name}.cfg"
    version, configuration = proxies.haproxy(program, file, ports, bench.words(), more)
    return Rival(name, bench, program, version, configuration, ports, "-db", "-f", file)


def nginx(name, bench, program):
    ports, file = bench.ports(), bench.stage.directory / f"{name}.conf"
    version, configuration = proxies.nginx(program, file, ports, bench.words())
    return Rival(name, bench, program, version, configuration, ports, "-c", file)


class Relay(Mode):
    """One way to move bytes by itself, without what a proxy does beside."""
    groups = ("bulk", "paced", "pingpong", "slow")

    def __init__(self, name, bench, method):
        ports = bench.ports()
        words = (method, "--listen", f"{bench.network.edge_address}:{ports[0]}", "--to",
                 f"{bench.network.server_address}:{bench.server_ports[0]}", "--threads", bench.threads)
        process = bench.stage.start(bench.network.edge, name, bench.stage.program("tools/bench/penstock-bench-relay"),
                                    *words)
        super().__init__(name, bench.network.edge_address, ports, "penstock-bench-relay", f"# {method}", process)
        wait_for(f"{name} to listen", lambda: "ready" in self.process.log())


PIPES = "  tune.pipesize 1048576\n"
MODES = {  # name: how to start it
    "penstock": lambda name, bench: Penstock(name, bench),
    "penstock-relay": lambda name, bench: Penstock(name, bench, engine="io_uring"),
    "penstock-no-pull": lambda name, bench: Penstock(name, bench, environment={"PENSTOCK_PULL": "off"}),
    "haproxy": lambda name, bench: haproxy(name, bench, of_path("haproxy")),
    "haproxy-1MiB": lambda name, bench: haproxy(name, bench, of_path("haproxy"), PIPES),
    "nginx": lambda name, bench: nginx(name, bench, of_path("nginx")),
    "splice": lambda name, bench: Relay(name, bench, "splice"),
    "ring-splice": lambda name, bench: Relay(name, bench, "ring-splice"),
    "copy": lambda name, bench: Relay(name, bench, "copy"),
}
NOT_BY_DEFAULT = ("penstock-no-pull",)


def by_path(haproxies, nginxes):
    """The programs given by path, as further modes."""
    further = {}
    for number, program in enumerate(haproxies, 1):
        further[f"haproxy-{number}"] = lambda name, bench, program=program: haproxy(name, bench, program)
        further[f"haproxy-{number}-1MiB"] = lambda name, bench, program=program: haproxy(name, bench, program, PIPES)
    for number, program in enumerate(nginxes, 1):
        further[f"nginx-{number}"] = lambda name, bench, program=program: nginx(name, bench, program)
    return further
