# SPDX-License-Identifier: Apache-2.0
"""A kernel booted in QEMU, around the programs of this machine. The guest writes to its memory and to one directory."""
import ctypes
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
EARLY = ("virtio_pci", "9pnet_virtio", "9p", "overlay")  # what init loads, unless it is built in
# no_timer_check: on a busy machine an emulated timer may tick too late for the kernel to believe in it.
COMMAND_LINE = "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check"
PR_SET_PDEATHSIG = 1  # linux/prctl.h
KVM_BOOTS_S = 20  # a second or two where it works


class Guest:
    """`limit_s`: a guest that has not powered off by then is ended. Its console: results/console."""

    def __init__(self, kernel, accelerator, results, limit_s, inside):
        self.kernel, self.accelerator, self.results = kernel, accelerator, results
        with tempfile.TemporaryDirectory(dir=results.parent) as directory:
            initramfs = make_initramfs(kernel, pathlib.Path(directory), inside)
            self.run(initramfs, limit_s)

    def run(self, initramfs, limit_s):
        share = "local,security_model=none,multidevs=remap"
        words = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
                 "-smp", "2", "-m", "3G", *({"kvm": ("-accel", "kvm", "-cpu", "host"), "tcg": ("-accel", "tcg,thread=multi", "-cpu", "max")}
                   [self.accelerator]), "-serial", f"file:{self.results}/console",
                 "-virtfs", f"{share},path=/,mount_tag=host,readonly=on",
                 "-virtfs", f"{share},path={self.results},mount_tag=results",
                 "-kernel", str(self.kernel.image), "-initrd", str(initramfs), "-append", COMMAND_LINE]
        with open(self.results / "qemu", "wb") as log:
            machine = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=end_with_us)
        try:
            machine.wait(limit_s)
        except subprocess.TimeoutExpired:
            pass  # its results say how far it came
        finally:
            if machine.poll() is None:
                machine.send_signal(signal.SIGKILL)
                machine.wait()


def end_with_us():
    """The guest is killed when this program ends, however it ends; an interrupt of the terminal is for us alone."""
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def make_initramfs(kernel, directory, inside):
    root = directory / "root"
    for part in ("proc", "sys", "dev", "host", "written", "root"):
        (root / part).mkdir(parents=True)
    (root / "bin").mkdir()
    shutil.copy(shutil.which("busybox"), root / "bin/busybox")
    shutil.copy(HERE / "init", root / "init")
    (root / "inside").write_text(str(inside))
    modules = root / "lib/modules" / kernel.release
    modules.mkdir(parents=True)
    for path in sorted(early_modules(kernel)):
        unpacked = modules / path.with_suffix("") if path.suffix != ".ko" else modules / path
        unpacked.parent.mkdir(parents=True, exist_ok=True)
        read = {".ko": "cat", ".xz": "xzcat", ".zst": "zstdcat"}[path.suffix]
        with open(unpacked, "wb") as out:
            subprocess.run([read, kernel.modules / path], stdout=out, check=True)
    subprocess.run(["depmod", "-b", root, kernel.release], stderr=subprocess.DEVNULL, check=True)
    archive = directory / "initramfs"
    names = "\0".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    with open(archive, "wb") as out:
        subprocess.run(["cpio", "--null", "-o", "-H", "newc", "--quiet"], cwd=root, input=names.encode(), stdout=out,
                       check=True)
    return archive


def early_modules(kernel):
    """Their paths below kernel.modules, with those they need."""
    needed = set()
    for line in (kernel.modules / "modules.dep").read_text().splitlines():
        module, _, others = line.partition(":")
        if pathlib.Path(module).name.partition(".")[0] in EARLY:
            needed.update(map(pathlib.Path, [module, *others.split()]))
    return needed


def accelerator(kernel, scratch):
    """kvm where a kernel really boots with it: /dev/kvm may open and still run none but its own kind."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    results = scratch / "kvm"
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    Guest(kernel, "kvm", results, KVM_BOOTS_S, HERE / "hello")
    return "kvm" if (results / "hello").exists() else "tcg"
