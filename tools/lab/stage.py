# SPDX-License-Identifier: Apache-2.0
"""Where a proof or a measurement runs: mount, process and network namespaces of its own. The kernel ends and removes everything in them
with the process that made them, however that ends; Stage ends what it started politely first, by its number."""
import contextlib
import ctypes
import errno
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET = 0x00020000, 0x20000000, 0x40000000  # linux/sched.h
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000  # linux/mount.h
PR_SET_PDEATHSIG = 1
PATIENCE_S = float(os.environ.get("PENSTOCK_PATIENCE_S", 20))  # what should happen at once, on a busy machine

_libc = ctypes.CDLL(None, use_errno=True)


class Failed(Exception):
    """It could not be carried out: what was needed did not work."""


class Unfit(Exception):
    """Something this machine must have is missing."""


def call(name, *arguments):
    if getattr(_libc, name)(*arguments) != 0:
        raise Failed(f"{name}: {os.strerror(ctypes.get_errno())}")


def enter():
    """Goes on in a child that is the first process of its namespaces; the caller's own process becomes its shadow."""
    if os.geteuid() != 0:
        raise Unfit("needs root: namespaces, BPF")
    cgroup = make_cgroup()
    call("unshare", CLONE_NEWNS | CLONE_NEWPID)
    child = os.fork()
    if child:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the child as well
        signal.signal(signal.SIGTERM, lambda number, _: os.kill(child, number))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        remove_cgroup(cgroup)
        sys.exit(code % 256)
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if cgroup:
        (cgroup / "cgroup.procs").write_text("0")
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("none", "/proc", "proc")
    mount("none", "/run", "tmpfs")
    mount("none", "/sys/fs/bpf", "bpf")
    if not cgroup:
        mount("none", "/sys/fs/cgroup", "cgroup2")


def make_cgroup():
    """A daemon names its leaf by its pid, which in a process namespace is not its alone: so a cgroup for ours. None
    where no cgroup v2 is mounted."""
    for line in pathlib.Path("/proc/self/mounts").read_text().splitlines():
        where, kind = line.split()[1:3]
        if kind == "cgroup2":
            for other in pathlib.Path(where).glob("lab-penstock-*"):
                if not pathlib.Path("/proc", other.name.rpartition("-")[2]).exists():  # it was killed
                    with contextlib.suppress(OSError):
                        remove_cgroup(other, 0)
            cgroup = pathlib.Path(where) / f"lab-penstock-{os.getpid()}"
            cgroup.mkdir()
            return cgroup
    return None


def remove_cgroup(cgroup, limit_s=5):
    """With what a killed daemon left in it. Its processes are gone, but the kernel may take a moment to notice."""
    deadline = time.monotonic() + limit_s
    for directory in (*(d for d in cgroup.iterdir() if d.is_dir()), cgroup) if cgroup else ():
        while True:
            try:
                directory.rmdir()
                break
            except OSError as busy:
                if busy.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)


def mount(what, where, kind, flags=0):
    call("mount", *(None if word is None else word.encode() for word in (what, where, kind)), flags, None)


def wait_for(what, predicate, limit_s=PATIENCE_S):
    """For what announces itself by no event."""
    deadline = time.monotonic() + limit_s
    while not predicate():
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {limit_s} s")
        time.sleep(0.002)


def run(*words):
    done = subprocess.run([str(w) for w in words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          check=False)
    if done.returncode != 0:
        raise Failed(f"{' '.join(map(str, words))}: exit {done.returncode}: {done.stdout.strip()}")
    return done.stdout


class Netns:
    """Threads and programs started within inside() belong to it; sockets made there stay in it."""

    def __init__(self):
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        call("unshare", CLONE_NEWNET)
        self.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        call("setns", home, CLONE_NEWNET)
        os.close(home)
        self.run("ip", "link", "set", "lo", "up")

    @contextlib.contextmanager
    def inside(self):
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        call("setns", self.fd, CLONE_NEWNET)
        try:
            yield
        finally:
            call("setns", home, CLONE_NEWNET)
            os.close(home)

    def run(self, *words):
        with self.inside():
            return run(*words)

    def join(self, device, address, other, other_device, other_address, mtu):
        """A cable between two namespaces. Its segments are cut to the MTU before it, as a NIC would see them."""
        self.run("ip", "link", "add", device, "type", "veth", "peer", "name", other_device,
                 "netns", f"/proc/{os.getpid()}/fd/{other.fd}")
        for namespace, own_device, own_address in ((self, device, address), (other, other_device, other_address)):
            namespace.run("ip", "addr", "add", f"{own_address}/24", "dev", own_device)
            namespace.run("ip", "link", "set", own_device, "mtu", mtu, "up")

    def offload(self, device, **features):
        """offload("eth0", tso=False, gro=True)"""
        words = [word for name, on in features.items() for word in (name, "on" if on else "off")]
        self.run("ethtool", "-K", device, *words)


class Process:
    def __init__(self, words, log):
        self.log_file = log
        with open(log, "wb") as out:
            self.child = subprocess.Popen([str(w) for w in words], stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        self.pid = self.child.pid

    def log(self):
        return self.log_file.read_text(errors="replace")

    def running(self):
        return self.child.poll() is None

    def wait(self, limit_s):
        try:
            return self.child.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.child.args[0]}: still running after {limit_s:.0f} s") from None

    def signal(self, number):
        self.child.send_signal(number)

    def stop(self):
        """The exit code."""
        self.signal(signal.SIGCONT)
        for number, limit_s in ((signal.SIGTERM, 1), (signal.SIGTERM, PATIENCE_S), (signal.SIGKILL, None)):
            self.signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.child.wait(limit_s)


class Stage:
    """with Stage(build) as stage: ... Network namespaces, programs and files, all gone afterwards."""

    def __init__(self, build):
        self.build = pathlib.Path(build).resolve()
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="lab-", dir="/run"))
        self.processes = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def end(self):
        """All that was started."""
        for process in reversed(self.processes):
            process.stop()

    def program(self, path):
        found = self.build / path
        if not found.exists():
            raise Unfit(f"{found} is not built (--build DIR)")
        return found

    def start(self, netns, name, *words, environment=None):
        log = self.directory / f"{len(self.processes)}-{name}.log"
        if environment:
            words = ("env", *(f"{key}={value}" for key, value in environment.items()), *words)
        with netns.inside():
            process = Process(words, log)
        self.processes.append(process)
        return process
