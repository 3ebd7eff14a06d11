# SPDX-License-Identifier: Apache-2.0
"""A penstockd of the proof's own, and the questions asked of it."""
import contextlib
import ctypes
import json
import os
import pathlib
import signal
import socket
import struct

from stage import PATIENCE_S, Failed, run, wait_for

class Line:
    """One connection to the admin socket: a JSON object a line there, one a line back."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(str(path))
        self.answers = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.answers.close()
        self.socket.close()

    def ask(self, command, **more):
        self.socket.sendall(json.dumps({"command": command, **more}).encode() + b"\n")
        answer = self.answers.readline()
        if not answer.endswith(b"\n"):
            raise Failed(f"no answer to {command} on the admin socket")
        return json.loads(answer)


class Daemon:
    def __init__(self, stage, netns, tables, *, name="penstockd", engine="auto", threads=0, max_flows=1024,
                 environment=None, through=(), access_log=False, http="", files=None, may_relay=False):
        """`tables`: more TOML, upstreams and listeners. `max_flows`: None, the default. `through`: words of a program that
        becomes the daemon. `files`: texts by name, beside the configuration. `may_relay`: engine auto may find that it
        cannot splice."""
        directory = stage.directory / name
        directory.mkdir()
        for file, text in (files or {}).items():
            (directory / file).write_text(text)
        self.admin = directory / "admin.sock"
        self.pin = pathlib.Path("/sys/fs/bpf") / f"{stage.directory.name}-{name}"
        self.config = config = directory / "penstock.toml"
        self.configuration = (
            f'[daemon]\nengine = "{engine}"\nthreads = {threads}\nlog = {{ access = {str(access_log).lower()} }}\n'
            f'[admin]\nsocket = "{self.admin}"\nhttp = "{http}"\n'
            f'[bpf]\npin = "{self.pin}"\n{f"max_flows = {max_flows}" if max_flows else ""}\n{tables}')
        config.write_text(self.configuration)
        self.process = stage.start(netns, name, *through, stage.program("userspace/penstockd"), "--config", config,
                                   environment={"STATE_DIRECTORY": directory / "crashes", **(environment or {})})
        self.pid = self.process.pid  # the keeper's, which has every descriptor
        self.command = stage.program("tools/penstock/penstock")
        wait_for("penstockd to serve", lambda: "ready: engine" in self.process.log() or not self.process.running())
        if not self.process.running():
            raise Failed(f"penstockd did not start:\n{self.process.log()}")
        self.engine = self.status()["engine"]
        if engine == "auto" and self.engine != "sockmap" and not may_relay:
            raise Failed(f"engine auto chose {self.engine}: {self.status()['engine_reason']}")

    @property
    def worker(self):
        """Its pid, also of one that does not answer."""
        return worker_of(self.pid)

    def line(self):
        return Line(self.admin)

    def ask(self, command, **more):
        with self.line() as line:
            return line.ask(command, **more)

    def status(self):
        return self.ask("status")

    def totals(self):
        return self.status()["totals"]

    def flows(self):
        return self.ask("flows")["flows"]

    def penstock(self, *words):
        """What the operator's command says."""
        return json.loads(run(self.command, *words, "--json", "--socket", self.admin))

    def pinned(self, name):
        """A pinned map as bpftool dumps it, with the names BTF gives its fields: (key, value), ..."""
        entries = json.loads(run("bpftool", "map", "dump", "pinned", self.pin / name))
        return [(entry["key"], entry["value"]) for entry in entries]

    def wait_active(self, flows, limit_s=PATIENCE_S):
        wait_for(f"{flows} active flows", lambda: self.totals()["active"] == flows, limit_s)

    @contextlib.contextmanager
    def stopped(self):
        """SIGSTOP for as long as the block lasts; the keeper, too, or it would end a worker that stands still."""
        stopped = (self.pid, self.worker)
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in reversed(stopped):
                os.kill(pid, signal.SIGCONT)

    def has_capability(self, number):
        for line in pathlib.Path(f"/proc/{self.worker}/status").read_text().splitlines():
            if line.startswith("CapPrm:"):
                return bool(int(line.split()[1], 16) >> number & 1)
        raise Failed(f"/proc/{self.worker}/status has no CapPrm")

    def cpu_s(self):
        after_name = pathlib.Path(f"/proc/{self.worker}/stat").read_text().rpartition(") ")[2].split()
        return sum(map(int, after_name[11:13])) / 100  # utime, stime in USER_HZ; proc(5)

    def map_id(self, name):
        """Of this daemon's map, from the outside: also of one that does not answer."""
        for fdinfo in pathlib.Path(f"/proc/{self.pid}/fdinfo").iterdir():
            fields = dict(line.split(":\t", 1) for line in fdinfo.read_text().splitlines() if ":\t" in line)
            if "map_id" in fields and json.loads(run("bpftool", "-j", "map", "show", "id", fields["map_id"])).get(
                    "name") == name:
                return int(fields["map_id"])
        raise Failed(f"penstockd has no map {name}")

    def stop(self):
        code = self.process.stop()
        if code != 0:
            raise Failed(f"penstockd ended with {code}:\n{self.process.log()}")


def worker_of(keeper):
    """Its pid; None while there is none."""
    children = pathlib.Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
    return int(children[-1]) if children else None


class PinnedFlow:
    """The entry of one flow in the pinned map `flows`: looking there wakes no thread of the daemon."""
    LANES = ("none", "splice", "held", "relay", "shut")  # enum penstock_lane, bpf/abi.h

    def __init__(self, daemon, cookie):
        self.libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)
        self.fd = self.libbpf.bpf_obj_get(str(daemon.pin / "flows").encode())
        if self.fd < 0:
            raise Failed(f"{daemon.pin}/flows: {os.strerror(ctypes.get_errno())}")
        self.key = ctypes.c_uint64(int(cookie))
        self.value = ctypes.create_string_buffer(4096)

    def direction(self, name):
        """(lane, number of lane changes) of "up" or "down": the first members of struct penstock_flow."""
        if self.libbpf.bpf_map_lookup_elem(self.fd, ctypes.byref(self.key), self.value) != 0:
            raise Failed("the flow is not in the map `flows` any more")
        lane, changes = struct.unpack_from("=16xII", self.value, {"up": 0, "down": 24}[name])
        return self.LANES[lane], changes

    def close(self):
        os.close(self.fd)


def dump(map_id):
    """The values of an array, with the names BTF gives their fields."""
    entries = json.loads(run("bpftool", "-j", "map", "dump", "id", map_id))
    return [entry["formatted"]["value"] for entry in entries]


def piped(to, listen, upstream="", extra=""):
    """Tables for one listener and its one upstream; `upstream`, `extra`: more keys of that upstream, more tables."""
    return (f'{extra}\n[upstream.server]\nservers = ["{to}"]\n{upstream}\n'
            f'[[listener]]\nname = "prove"\nbind = ["{listen}"]\nupstream = "server"\n')


def since(before, after):
    """Counters: what was added, without what was not. Groups within groups likewise."""
    out = {}
    for name, value in after.items():
        if isinstance(value, dict):
            value = since(before[name], value)
        elif isinstance(value, int):
            value -= before[name]
        if value:
            out[name] = value
    return out
