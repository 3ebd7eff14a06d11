# SPDX-License-Identifier: Apache-2.0
"""What the guest left in its directory of results, as a row of the table."""
import re

STEPS = {"self-test": "self-test", "netns": "netns", "bound": "bound", "stall": "stall", "netem": "netem", "ipv6": "IPv6",
         "torture": "torture", "kernel-log": "kernel's log"}
OF_THE_SOCKMAP = ("bound", "stall")
COLUMNS = ["kernel", "release", *STEPS.values(), "seconds"]
NOT_ASKED = "-"
TIMED_OUT = 124  # timeout(1)


class Outcome:
    """`asked`: the steps wanted, empty for all."""

    def __init__(self, name, release, results, asked, seconds):
        self.name, self.release, self.results, self.asked = name, release, results, asked or STEPS
        self.seconds = seconds
        self.exits = {step: int(code) for step, code, _ in (line.split() for line in self.log("steps").splitlines())}

    def log(self, step):
        path = self.results / step
        return path.read_text(errors="replace") if path.exists() else ""

    def refused(self):
        """Why nothing enters the sockmap on this kernel. Then everything is relayed, and the steps ask that."""
        reason = re.search(r"^engine: .*\(self-test failed: (.*)\)$", self.log("self-test"), re.M)
        return reason and reason.group(1)

    def cell(self, step):
        if step not in self.asked or (self.refused() and step in OF_THE_SOCKMAP):
            return NOT_ASKED
        if step not in self.exits:
            return "NO: not reached"
        if step == "self-test" and self.refused():
            return f"refused: {self.refused()}"
        counted = ""
        if step in ("netns", "bound"):
            passed, failed = (len(set(re.findall(rf"^\[ +{word} +\] ([\w/]+\.[\w/]+)", self.log(step), re.M)))
                              for word in ("OK", "FAILED"))
            counted = f"{passed} of {passed + failed}"
        if step == "torture":
            counted = ", ".join(re.findall(r"([1-9]\d*) lives,", self.log(step)))
        verdict = {0: "ok", TIMED_OUT: "NO: out of time"}.get(self.exits[step], f"NO: exit {self.exits[step]}")
        return " ".join(filter(None, [verdict, counted]))

    def row(self):
        return [self.name, self.release, *(self.cell(step) for step in STEPS), f"{self.seconds:.0f}"]

    def good(self):
        return not any(self.cell(step).startswith("NO") for step in STEPS)

    def told(self):
        return ", ".join(f"{what} {self.cell(step)}" for step, what in STEPS.items()) + f"; {self.results}"
