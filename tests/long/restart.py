# SPDX-License-Identifier: Apache-2.0
"""A penstockd whose paths stay the same from start to start, its flows, and what it may not leave behind."""
import collections
import json
import os
import pathlib
import re
import signal
import socket

from daemon import Line, worker_of
from stage import PATIENCE_S, Failed, run, wait_for

SERVER_PORT, EDGE_PORT = 3525, 2525
FLOWS_MAX = 3001  # nobody else's: by it maps are known as ours, and so are programs and links


class Paths:
    def __init__(self, stage, netns, *, engine="auto", grace="30s"):
        self.stage, self.netns = stage, netns
        self.directory = stage.directory / "edge"
        self.admin = self.directory / "admin.sock"
        self.pin = pathlib.Path("/sys/fs/bpf") / stage.directory.name
        self.config = self.directory / "penstock.toml"
        self.directory.mkdir(exist_ok=True)
        pathlib.Path("/run/penstock").mkdir(exist_ok=True)  # as systemd makes it: the self-test's verdict is kept there
        self.config.write_text(
            f'[daemon]\nengine = "{engine}"\nshutdown_grace = "{grace}"\n'
            f'[admin]\nsocket = "{self.admin}"\nhttp = ""\n[bpf]\npin = "{self.pin}"\nmax_flows = {FLOWS_MAX}\n'
            f'[upstream.server]\nservers = ["127.0.0.1:{SERVER_PORT}"]\n'
            f'[[listener]]\nname = "edge"\nbind = ["127.0.0.1:{EDGE_PORT}"]\nupstream = "server"\n')

    def start(self):
        """Not yet serving: see wait_ready()."""
        return self.stage.start(self.netns, "edge", self.stage.program("userspace/penstockd"), "--config", self.config)

    def left(self):
        """Files and cgroups of ended daemons."""
        found = [str(path) for path in (self.admin, self.pin) if path.exists()]
        return found + [str(leaf) for leaf in own_cgroup().glob("penstock-*")]

    def ask(self, command):
        with Line(self.admin) as line:
            return line.ask(command)


def wait_ready(process):
    wait_for("penstockd to serve", lambda: "ready: " in process.log() or not process.running())
    if not process.running():
        raise Failed(f"penstockd did not start:\n{process.log()}")


def kill(process):
    """SIGKILL for keeper and worker, at whatever they are: a keeper that has stopped starts no other worker."""
    process.signal(signal.SIGSTOP)
    wait_for("the keeper to stop", lambda: pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2][0] in "TZ")
    worker = worker_of(process.pid)
    if worker:
        os.kill(worker, signal.SIGKILL)
    process.signal(signal.SIGKILL)
    process.wait(10)
    if worker:
        os.waitpid(worker, 0)  # ours by now: we are the first process here


def own_cgroup():
    mount = next(line.split()[1] for line in pathlib.Path("/proc/self/mounts").read_text().splitlines()
                 if line.split()[2] == "cgroup2")
    own = next(line[3:] for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    return pathlib.Path(mount + own)


class Flows:
    """Pairs of ends. REQUIRES: a daemon serves, nobody else connects."""

    def __init__(self, netns, number):
        self.clients, self.servers = [], []
        with netns.inside(), socket.create_server(("127.0.0.1", SERVER_PORT), backlog=1024) as listener:
            listener.settimeout(PATIENCE_S)
            for _ in range(number):
                self.clients.append(socket.create_connection(("127.0.0.1", EDGE_PORT), PATIENCE_S))
                self.servers.append(listener.accept()[0])
                self.servers[-1].settimeout(PATIENCE_S)
        for client, server in zip(self.clients, self.servers):
            for source, target in ((client, server), (server, client)):
                source.sendall(b"x")
                if target.recv(1) != b"x":
                    raise Failed("a new flow does not carry a byte")

    def finish(self, number):
        """FIN both ways, the client first, of so many."""
        for client, server in zip(self.clients[:number], self.servers[:number]):
            client.shutdown(socket.SHUT_WR)
            if server.recv(1) or server.close() or client.recv(1):
                raise Failed("bytes where a FIN was due")

    def ends(self, first):
        """How many ends, from that flow on, saw which end."""
        seen = collections.Counter()
        for end in self.clients[first:] + self.servers[first:]:
            try:
                seen["bytes" if end.recv(1) else "FIN"] += 1
            except ConnectionResetError:
                seen["RST"] += 1
        return seen

    def close(self):
        for end in self.clients + self.servers:
            end.close()


def reasons(log):
    return collections.Counter(re.findall(r"flow .* reason=(\w+)$", log, re.M))


def adds_up(log):
    """The daemon's last word: accepted = active + closed, and nothing active."""
    word = re.search(r"stopped: (\d+) accepted = (\d+) active \+ (\d+) closed", log)
    return bool(word) and word[2] == "0" and word[1] == word[3]


def kernel_objects():
    """Ids of every BPF program, map and link of this machine, and of those that are ours."""
    shown = {kind: json.loads(run("bpftool", "-j", kind, "show")) for kind in ("prog", "map", "link")}
    every = {kind: {entry["id"] for entry in entries} for kind, entries in shown.items()}
    ours = {"map": {m["id"] for m in shown["map"] if m.get("max_entries") in (FLOWS_MAX, 2 * FLOWS_MAX)}}
    ours["prog"] = {p["id"] for p in shown["prog"] if ours["map"] & set(p.get("map_ids", []))}
    ours["link"] = {entry["id"] for entry in shown["link"] if entry.get("prog_id") in ours["prog"]}
    return every, ours


def namespaces():
    """Those somebody is in: by kind and number, of the processes we see."""
    found = set()
    for directory in pathlib.Path("/proc").glob("[0-9]*/ns"):
        try:
            found |= {os.readlink(entry) for entry in directory.iterdir() if not entry.name.endswith("_for_children")}
        except OSError:
            continue  # it has just ended
    return found


def descriptors():
    return len(os.listdir("/proc/self/fd"))
