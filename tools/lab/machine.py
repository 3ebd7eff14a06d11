# SPDX-License-Identifier: Apache-2.0
"""The whole machine's memory and CPU, and the extremes of what is sampled meanwhile."""
import os
import pathlib
import threading
import time

from stage import Failed


def available_bytes():
    """MemAvailable, proc(5)."""
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    raise Failed("/proc/meminfo has no MemAvailable")


def tcp_buffer_bytes():
    """What TCP accounts to sockets' buffers, of all namespaces: "mem" in /proc/net/sockstat."""
    for line in pathlib.Path("/proc/net/sockstat").read_text().splitlines():
        if line.startswith("TCP:"):
            return int(line.split("mem ")[1].split()[0]) * os.sysconf("SC_PAGE_SIZE")
    raise Failed("/proc/net/sockstat has no TCP")


def resident_bytes(pid):
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def busy_s():
    """CPU seconds of all CPUs since boot that were not idle, waiting or taken by the hypervisor; proc(5)."""
    user, nice, system, _idle, _iowait, irq, softirq = map(int, pathlib.Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def busy_share(seconds):
    """Of all CPUs, measured for so long."""
    began, began_s = busy_s(), time.monotonic()
    time.sleep(seconds)
    return (busy_s() - began) / (time.monotonic() - began_s) / os.cpu_count()


class Extremes:
    """with Extremes(look, 0.05) as seen: ... look() returns numbers by name; seen.most and seen.least are theirs."""

    def __init__(self, look, every_s):
        self.look, self.every_s = look, every_s
        self.most, self.least = {}, {}
        self.samples = 0
        self.failure = None
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()
        if self.failure:
            raise self.failure

    def _run(self):
        while not self.over.is_set():
            began_s = time.monotonic()
            try:
                for name, value in self.look().items():
                    self.most[name] = max(self.most.get(name, value), value)
                    self.least[name] = min(self.least.get(name, value), value)
            except (Failed, OSError) as failure:
                self.failure = failure
                return
            self.samples += 1
            self.over.wait(max(0, began_s + self.every_s - time.monotonic()))
