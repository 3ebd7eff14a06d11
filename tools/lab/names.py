# SPDX-License-Identifier: Apache-2.0
"""A name server of the proof's own: dnsmasq, whose names move."""
import contextlib
import re
import signal

from stage import wait_for


class Names:
    def __init__(self, stage, netns, address):
        """Not yet started."""
        self.stage, self.netns, self.address = stage, netns, address
        self.hosts = stage.directory / "names.hosts"
        self.process = None

    def start(self, ttl_s):
        """Again, too: it then knows no name."""
        if self.process:
            self.process.stop()
        self.hosts.write_text("")
        self.process = self.stage.start(
            self.netns, "dnsmasq", "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root",
            "--pid-file=", "--no-resolv", "--no-hosts", "--cache-size=0", "--log-facility=-", "--bind-interfaces",
            f"--listen-address={self.address}", "--local=/example/", f"--addn-hosts={self.hosts}",
            f"--local-ttl={ttl_s}")
        wait_for("dnsmasq to start", lambda: self._times_read() == 1)

    def point(self, name, *addresses):
        """From now on the name has these; none: there is no such name. Other names stay."""
        others = [line for line in self.hosts.read_text().splitlines() if not line.endswith(f" {name}")]
        self.hosts.write_text("".join(f"{line}\n" for line in (*others, *(f"{a} {name}" for a in addresses))))
        before = self._times_read()
        self.process.signal(signal.SIGHUP)
        wait_for("dnsmasq to read its names", lambda: self._times_read() > before)

    @contextlib.contextmanager
    def down(self):
        """Silent."""
        self.process.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.signal(signal.SIGCONT)

    def _times_read(self):
        return len(re.findall(rf"read {self.hosts} - ", self.process.log()))
