# SPDX-License-Identifier: Apache-2.0
"""A cgroup that limits memory or CPU, of version 2 where the controller is there, else of version 1; cgroups(7)."""
import contextlib
import pathlib
import tempfile

from stage import Unfit, wait_for


class Limits:
    """with Limits("memory") as limits: start a program through(), then set()."""
    FILES = {("memory", 1): "memory.limit_in_bytes", ("memory", 2): "memory.max",
             ("used", 1): "memory.usage_in_bytes", ("used", 2): "memory.current",
             ("cpu", 1): "cpu.cfs_quota_us", ("cpu", 2): "cpu.max"}

    def __init__(self, controller):
        self.controller = controller
        self.version, parent = self._place()
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix=f"penstock-lab-{controller}-", dir=parent))

    def _place(self):
        own = {line.split(":")[1]: line.rstrip().split(":", 2)[2]
               for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines()}
        for line in pathlib.Path("/proc/self/mounts").read_text().splitlines():
            where, kind, flags = line.split()[1:4]
            mount = pathlib.Path(where)
            if kind == "cgroup" and self.controller in flags.split(","):
                for word, path in own.items():
                    if self.controller in word.split(",") and (mount / path.lstrip("/")).exists():
                        return 1, mount / path.lstrip("/")
                return 1, mount
            if kind == "cgroup2" and self.controller in (mount / "cgroup.subtree_control").read_text().split():
                return 2, mount
        raise Unfit(f"needs the cgroup controller {self.controller}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        def gone():
            with contextlib.suppress(OSError):
                self.directory.rmdir()
            return not self.directory.exists()
        wait_for("the cgroup to be empty", gone)

    def through(self):
        """Words of a program that goes in and becomes another."""
        return ("sh", "-c", f'echo 0 > {self.directory}/cgroup.procs && exec "$@"', "sh")

    def set_memory(self, limit_bytes):
        (self.directory / self.FILES["memory", self.version]).write_text(str(limit_bytes))

    def memory(self):
        """(bytes in use, how often the limit was met, processes killed)"""
        if self.version == 1:
            killed = self._fields("memory.oom_control").get("oom_kill", 0)
            return self._used(), self._number("memory.failcnt"), killed
        events = self._fields("memory.events")
        return self._used(), events["max"], events["oom_kill"]

    def kill_by_memory(self):
        """Leaves no room beyond what is used, whatever of it can be reclaimed, until the kernel has killed a process; then there is
        no limit."""
        def is_killed():
            with contextlib.suppress(OSError):  # version 1: EBUSY, more is used by now
                self.set_memory(self._used())
            return self.memory()[2] > killed
        killed = self.memory()[2]
        try:
            wait_for("the kernel to kill for memory", is_killed)
        finally:
            self.set_memory("-1" if self.version == 1 else "max")

    def _used(self):
        return self._number(self.FILES["used", self.version])

    def set_cpu(self, share):
        """Of one CPU."""
        period_us = 100_000
        quota = str(int(period_us * share))
        (self.directory / self.FILES["cpu", self.version]).write_text(
            quota if self.version == 1 else f"{quota} {period_us}")

    def times_throttled(self):
        return self._fields("cpu.stat")["nr_throttled"]

    def _number(self, file):
        return int((self.directory / file).read_text())

    def _fields(self, file):
        return {name: int(value) for name, value in
                (line.split() for line in (self.directory / file).read_text().splitlines())}
