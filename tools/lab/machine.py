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


def slab_bytes(names=None):
    """Of all kernel objects in use (or of those caches): sockets, psocks, map entries …; slabinfo(5). Not the pages kept
    for them."""
    rows = (line.split() for line in pathlib.Path("/proc/slabinfo").read_text().splitlines()[2:])
    return sum(int(in_use) * int(size) for name, in_use, _all, size, *_ in rows if not names or name in names)


def unreclaimable_slab_bytes():
    """Pages of kernel objects that memory pressure would not give back: not files' names and inodes. proc(5)."""
    fields = dict(line.split(":") for line in pathlib.Path("/proc/meminfo").read_text().splitlines())
    return int(fields["SUnreclaim"].split()[0]) << 10


def own_bytes(pid):
    """The process's memory but for files' pages; what is shared counts in parts, so that a sum over processes holds."""
    fields = dict(line.split(":") for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return sum(int(fields[name].split()[0]) << 10 for name in ("Pss_Anon", "Pss_Shmem"))


def bpf_bytes(pid):
    """What the BPF maps and programs that the process has open weigh, each once: memlock in its fdinfo."""
    weights = {}
    for fdinfo in pathlib.Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            fields = dict(line.split(":\t", 1) for line in fdinfo.read_text().splitlines() if ":\t" in line)
        except FileNotFoundError:  # closed meanwhile
            continue
        if "memlock" in fields:
            weights[fields.get("map_id", fields.get("prog_id")), "map_id" in fields] = int(fields["memlock"])
    return sum(weights.values())


def mapped_bpf_bytes(pid):
    """What of the process's RSS is pages of BPF maps; bpf_bytes() has them too."""
    of_map, total = False, 0
    for line in pathlib.Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):  # the head of a mapping, its path last
            of_map = words[-1] == "anon_inode:bpf-map"
        elif of_map and words[0] == "Rss:":
            total += int(words[1]) << 10
    return total


def tcp_counters(netns):
    """What a namespace's TCP has counted, TcpExt in /proc/net/netstat."""
    names, values = (line.split()[1:] for line in netns.run("cat", "/proc/net/netstat").splitlines() if line.startswith("TcpExt:"))
    return dict(zip(names, map(int, values)))


def family(pid):
    """The process and its descendants."""
    children = pathlib.Path(f"/proc/{pid}/task").glob("*/children")
    return [pid, *(one for listed in children for child in listed.read_text().split() for one in family(int(child)))]


def wake_ups(pid):
    """How often its threads have gone to sleep and been woken since they began."""
    count = 0
    for status in pathlib.Path(f"/proc/{pid}/task").glob("*/status"):
        fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
        count += int(fields["voluntary_ctxt_switches"])
    return count


def busy_s():
    """CPU seconds of all CPUs since boot that were neither idle nor taken by the hypervisor: whatever ran, processes,
    kernel threads and softirqs. Taken from the idle time, which the kernel measures at each entry and exit; the busy
    columns of /proc/stat it only samples by the tick (proc(5))."""
    idle, iowait, _irq, _softirq, steal = map(int, pathlib.Path("/proc/stat").read_text().split()[4:9])
    since_boot_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    return since_boot_s * os.cpu_count() - (idle + iowait + steal) / os.sysconf("SC_CLK_TCK")


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
