# SPDX-License-Identifier: Apache-2.0
"""Bad cables between two network namespaces: lab-wire (wire.cc) with addresses."""
import contextlib
import json
import os
import signal

from stage import Failed, wait_for


class Wire:
    """Wire(stage, one, "eth0", "192.0.2.10", other, "eth0", "192.0.2.1", 1500, loss=1, reorder=5)"""

    def __init__(self, stage, one, device, address, other, other_device, other_address, mtu, **faults):
        words = [str(word) for name, value in faults.items() for word in (f"--{name.replace('_', '-')}", value)]
        here = os.getpid()
        self.process = stage.start(one, "wire", stage.program("tools/lab/lab-wire"), *words, f"/proc/{here}/fd/{one.fd}",
                                   device, f"/proc/{here}/fd/{other.fd}", other_device)
        wait_for("lab-wire", lambda: "open" in self.process.log() or not self.process.running())
        if not self.process.running():
            raise Failed(f"lab-wire did not start: {self.process.log()}")
        for namespace, own_device, own_address in ((one, device, address), (other, other_device, other_address)):
            namespace.run("ip", "addr", "add", f"{own_address}/24", "dev", own_device)
            namespace.run("ip", "link", "set", own_device, "mtu", mtu, "txqueuelen", 10_000, "up")

    @contextlib.contextmanager
    def pulled_out(self):
        """No carrier at either end for as long as the block lasts."""
        self.process.signal(signal.SIGUSR1)
        try:
            yield
        finally:
            self.process.signal(signal.SIGUSR2)

    def stop(self):
        """What it did: counts by name."""
        if self.process.stop() != 0:
            raise Failed(f"lab-wire: {self.process.log()}")
        return json.loads(self.process.log().splitlines()[-1])
