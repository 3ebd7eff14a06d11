# SPDX-License-Identifier: Apache-2.0
"""penstock, HAProxy and nginx as they are run in earnest, each in a network namespace of its own, and what an operator, or a
crash, does to them."""
import contextlib
import os
import pathlib
import signal

import proxies
from daemon import Daemon
from machine import family
from report import counts
from restart import adds_up
from stage import Failed, wait_for
from torture import OURS

THREADS = 2
OWN_SESSION = ("setsid",)  # as a service has a cgroup: the scheduler is fair between sessions, sched(7) "The autogroup feature"
EVENTS = NOTHING, RELOAD, UPGRADE, KILL_WORKER, KILL_MASTER = ("nothing", "reload", "upgrade", "kill-worker", "kill-master")


class Edge:
    """`acts`: what is done to it at an event, in words."""
    acts = {}

    def __init__(self, netns, program, version):
        self.netns, self.program, self.version = netns, program, version
        self.master = None  # its pid

    def site(self, to, flows):
        return {"threads": THREADS, "edge": "127.0.0.1", "server": "127.0.0.1", "to": to, "domain": "example", "flows": flows,
                "files": 4 * flows}

    def wait_listening(self, port, process):
        wait_for(f"{self.program} to listen", lambda: self.netns.run("ss", "-Hltn", f"sport = :{port}") or process.child.poll())
        if process.child.poll():
            raise Failed(f"{self.program} did not start: {process.log()}")

    def processes(self):
        """Those that run the program in the namespace, whoever their parent; not those that have ended."""
        home, found = os.fstat(self.netns.fd).st_ino, set()
        for directory in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has just ended
                if (directory / "ns/net").stat().st_ino == home and (directory / "exe").samefile(self.program):
                    found.add(int(directory.name))
        return found

    def workers(self):
        return family(self.master)[1:]

    def worker(self):
        """Of several the one with the most flows."""
        return max(self.workers(), key=lambda pid: len(os.listdir(f"/proc/{pid}/fd")))

    @classmethod
    def instead(cls, stage, event):
        """Why there is no such event; None: there is."""
        return None

    def act(self, event):
        getattr(self, event.replace("-", "_"))()

    def nothing(self):
        """The control."""

    def kill_worker(self):
        os.kill(self.worker(), signal.SIGKILL)

    def kill_master(self):
        os.kill(self.master, signal.SIGKILL)

    def replaced(self, event):
        """Processes of this moment that are of the old generation once it has happened."""
        return {NOTHING: set(), RELOAD: set(self.workers()), UPGRADE: self.processes(), KILL_WORKER: set(),
                KILL_MASTER: self.processes()}[event]

    def accounts(self, served, dialled):
        """(as they should be, what is to tell) of an edge that keeps accounts; it is stopped. None of others."""
        return None

    def stop(self):
        def gone():
            left = self.processes()  # a master may have started another worker meanwhile
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not left
        wait_for(f"{self.program} to end", gone)


class Penstock(Edge):
    name = "penstock"
    acts = {NOTHING: "", RELOAD: "SIGHUP", UPGRADE: "penstock upgrade", KILL_WORKER: "SIGKILL",
            KILL_MASTER: "SIGKILL to the keeper; flows then have shutdown_grace"}

    def __init__(self, stage, netns, label, ports, to, flows):
        program = stage.program("userspace/penstockd")
        self.daemon = Daemon(stage, netns, proxies.PENSTOCK.format(*ports, **self.site(to, flows)), name=label,
                             threads=THREADS, max_flows=flows, through=OWN_SESSION)
        super().__init__(netns, program, f"penstock {self.daemon.status()['version']}, engine {self.daemon.engine}")
        self.master = self.daemon.pid

    def reload(self):
        os.kill(self.master, signal.SIGHUP)

    def upgrade(self):
        self.daemon.penstock("upgrade")

    def replaced(self, event):
        if event == UPGRADE:  # the daemon's own process goes on, as another program
            return set(self.workers())
        return set() if event == RELOAD else super().replaced(event)

    def accounts(self, served, dialled):
        if not self.daemon.process.running():  # the worker ends with the last flow
            wait_for("the worker to end", lambda: not self.processes())
            return adds_up(self.daemon.process.log()), f"of a worker without a keeper: {self.daemon.process.log().splitlines()[-1]}"
        self.daemon.wait_active(0)
        totals = self.daemon.totals()
        code = self.daemon.process.stop()
        accepted, closed = totals["accepted"], sum(totals["closed"].values())
        ours = {name: totals["closed"][name] for name in OURS if totals["closed"][name]}
        return (served <= accepted <= dialled and accepted == totals["active"] + closed and not ours and code == 0
                and adds_up(self.daemon.process.log()),
                f"dialled {dialled}, served {served}, accepted {accepted} = active {totals['active']} + closed {closed}, "
                f"exit {code}" + (f", {counts(ours)}" if ours else ""))


class HAProxy(Edge):
    """Master and worker; the worker's listening sockets go to the next one (expose-fd listeners)."""
    name = "haproxy"
    acts = {NOTHING: "", RELOAD: "SIGUSR2", KILL_WORKER: "SIGKILL", KILL_MASTER: "SIGKILL"}

    def __init__(self, stage, netns, label, ports, to, flows):
        program, file = proxies.of_path("haproxy"), stage.directory / f"{label}.cfg"
        socket = f"  stats socket {stage.directory}/{label}.sock mode 600 level admin expose-fd listeners\n"
        version, _ = proxies.haproxy(program, file, ports, self.site(to, flows), socket)
        super().__init__(netns, program, f"{version} -W, expose-fd listeners")
        process = stage.start(netns, label, *OWN_SESSION, program, "-W", "-f", file)
        self.master = process.pid
        self.wait_listening(ports[-1], process)
        wait_for("HAProxy's worker", self.workers)

    @classmethod
    def instead(cls, stage, event):
        return "as reload: SIGUSR2 executes the binary anew" if event == UPGRADE else None

    def reload(self):
        os.kill(self.master, signal.SIGUSR2)


class Nginx(Edge):
    """As a daemon, with a session of its own: one that stays in the foreground does not listen to SIGWINCH."""
    name = "nginx"
    acts = {NOTHING: "", RELOAD: "SIGHUP", UPGRADE: "SIGUSR2, SIGWINCH, SIGQUIT", KILL_WORKER: f"SIGKILL to the busiest of {THREADS}",
            KILL_MASTER: "SIGKILL"}

    def __init__(self, stage, netns, label, ports, to, flows):
        program, directory = proxies.of_path("nginx"), stage.directory / label
        directory.mkdir()
        file = directory / "nginx.conf"
        version, _ = proxies.nginx(program, file, ports, self.site(to, flows), daemon="on")
        super().__init__(netns, program, version.replace("nginx version: ", ""))
        self.pid_file = directory / "nginx.pid"
        self.wait_listening(ports[-1], stage.start(netns, label, program, "-c", file))
        wait_for("nginx's workers", lambda: self.written_pid() and len(family(self.written_pid())) > THREADS)
        self.master = self.written_pid()

    def written_pid(self):
        return int(self.pid_file.read_text() or 0) if self.pid_file.exists() else 0

    def reload(self):
        os.kill(self.master, signal.SIGHUP)

    def upgrade(self):
        """nginx.org/en/docs/control.html, "Upgrading Executable on the Fly"."""
        os.kill(self.master, signal.SIGUSR2)
        wait_for("the new nginx", lambda: self.written_pid() not in (0, self.master) and len(family(self.written_pid())) > THREADS)
        os.kill(self.master, signal.SIGWINCH)
        os.kill(self.master, signal.SIGQUIT)


EDGES = {edge.name: edge for edge in (Penstock, HAProxy, Nginx)}
