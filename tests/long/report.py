# SPDX-License-Identifier: Apache-2.0
"""What a proof prints: what it does, one line per figure, one per claim with whether it holds."""
import os
import time

import markdown


class Report:
    def __init__(self, proof):
        self.proof = proof
        self.claims = 0
        self.broken = 0
        self.began_s = time.monotonic()

    def does(self, text):
        print(f"     {self.proof}: {text}", flush=True)

    def figure(self, name, text):
        print(f"     {self.proof}: {name}: {text}", flush=True)

    def table(self, rows):
        print(f"\n{markdown.table(rows)}\n", flush=True)

    def claim(self, holds, name, text):
        self.claims += 1
        self.broken += not holds
        print(f"{'ok  ' if holds else 'NO  '} {self.proof}: {name}: {text}", flush=True)

    def exit_code(self):
        seconds = time.monotonic() - self.began_s
        print(f"{self.proof}: {self.claims - self.broken} of {self.claims} claims hold, {seconds:.0f} s", flush=True)
        return 0 if self.claims and not self.broken else 1


class KernelLog:
    """What the kernel complains about from now on: a wrong step with a sockmap shows there first."""

    def __init__(self):
        self.fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self.fd, 0, os.SEEK_END)

    def complaints(self):
        found = []
        while True:
            try:
                record = os.read(self.fd, 8192).decode(errors="replace")
            except BrokenPipeError:  # overwritten meanwhile: the next one
                continue
            except BlockingIOError:
                return found
            if any(word in record for word in ("WARNING:", "BUG:", "Oops:", "general protection fault")):
                found.append(record.split(";", 1)[-1].splitlines()[0])


def mib(value):
    return f"{value / (1 << 20):.2f} MiB"


def counts(of):
    return ", ".join(f"{name} {value}" for name, value in of.items()) or "none"
