# SPDX-License-Identifier: Apache-2.0
"""What is compared: each starts in the edge's namespace with the same number of threads and stays for the whole network."""
import re
import shutil
import subprocess

from daemon import Daemon
from loads import SNI
from machine import family
from stage import Unfit, run, wait_for

FIRST_PORT = 8000
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
HAPROXY = """\
global
  nbthread {threads}
  maxconn {flows}
  maxpipes 256
{more}defaults
  mode tcp
  option splice-auto
  timeout connect 5s
  timeout client 1h
  timeout server 1h
frontend streams
  bind {edge}:{0}
  default_backend streams-servers
frontend shorts
  bind {edge}:{1}
  default_backend shorts-servers
frontend sni
  bind {edge}:{2}
  tcp-request inspect-delay 5s
  tcp-request content accept if {{ req.ssl_hello_type 1 }}
  use_backend proxied-servers if {{ req.ssl_sni -m end .{domain} }}
backend streams-servers
  server server {server}:{to[0]}
backend shorts-servers
  server server {server}:{to[1]}
backend proxied-servers
  server server {server}:{to[2]} send-proxy-v2
"""
NGINX = """\
{module}worker_processes {threads};
worker_rlimit_nofile {files};
daemon off;
pid {directory}/nginx.pid;
error_log stderr;
events {{ worker_connections {files}; }}
stream {{
  proxy_timeout 1h;
  map $ssl_preread_server_name $routed {{ hostnames; *.{domain} {server}:{to[2]}; }}
  server {{ listen {edge}:{0}; proxy_pass {server}:{to[0]}; }}
  server {{ listen {edge}:{1}; proxy_pass {server}:{to[1]}; }}
  server {{ listen {edge}:{2}; ssl_preread on; proxy_pass $routed; proxy_protocol on; }}
}}
"""
PENSTOCK = """\
[upstream.streams]
servers = ["{server}:{to[0]}"]
[upstream.shorts]
servers = ["{server}:{to[1]}"]
[upstream.proxied]
servers = ["{server}:{to[2]}"]
proxy_protocol = "v2"
[[listener]]
name = "streams"
bind = ["{edge}:{0}"]
upstream = "streams"
[[listener]]
name = "shorts"
bind = ["{edge}:{1}"]
upstream = "shorts"
[[listener]]
name = "sni"
bind = ["{edge}:{2}"]
upstream = "shorts"
  [[listener.route]]
  sni = ["*.{domain}"]
  upstream = "proxied"
"""


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
        self.daemon = Daemon(bench.stage, bench.network.edge, PENSTOCK.format(*ports, **bench.words()), name=name,
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
    ports = bench.ports()
    configuration = HAPROXY.format(*ports, more=more, flows=bench.flows_max, **bench.words())
    file = bench.stage.directory / f"{name}.cfg"
    file.write_text(configuration)
    version = run(program, "-v").split(" - ")[0].splitlines()[0]
    return Rival(name, bench, program, version, configuration, ports, "-db", "-f", file)


def nginx(name, bench, program):
    ports = bench.ports()
    module = "/usr/lib/nginx/modules/ngx_stream_module.so"
    built = subprocess.run([program, "-V"], stderr=subprocess.PIPE, text=True, check=True).stderr
    loads_module = re.search(r"--with-stream(?![=_a-z])(?!=dynamic)", built) is None
    configuration = NGINX.format(*ports, module=f"load_module {module};\n" if loads_module else "",
                                 files=bench.files_max, directory=bench.stage.directory, **bench.words())
    file = bench.stage.directory / f"{name}.conf"
    file.write_text(configuration)
    return Rival(name, bench, program, built.splitlines()[0], configuration, ports, "-c", file)


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


def of_path(program):
    found = shutil.which(program, path=PATH)
    if not found:
        raise Unfit(f"needs {program} (tools/install-deps test)")
    return found


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
