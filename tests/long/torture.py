# SPDX-License-Identifier: Apache-2.0
"""penstock-torture as the load: it checks every byte at both ends (tools/torture/README.md)."""
import json

from stage import Failed

OURS = ("account_mismatch", "internal_error", "splice_broken")  # close reasons that would be penstock's own doing


class Torture:
    def __init__(self, stage, netns, *words):
        self.words = [str(w) for w in words]
        self.process = stage.start(netns, "torture", stage.program("tools/torture/penstock-torture"), "--json", *words)

    def finish(self, limit_s):
        """(everything exact, its summary). Failed lives are in the summary, their stories in remarks()."""
        code = self.process.wait(limit_s)
        log = self.process.log()
        start = log.find("\n{\n") + 1 if not log.startswith("{\n") else 0
        if code not in (0, 1) or not log[start:].startswith("{"):
            raise Failed(f"penstock-torture {' '.join(self.words)}: exit {code}:\n{log}")
        return code == 0, json.JSONDecoder().raw_decode(log[start:])[0]

    def remarks(self):
        return [line for line in self.process.log().splitlines() if line.startswith("FAIL")]


def verdict(summary):
    failures = ", ".join(f"{name} {number}" for name, number in summary["failures"].items())
    return (f"{summary['lives']} lives, {summary['bytes_up']} bytes up, {summary['bytes_down']} down, "
            f"{summary['failed']} failed{f' ({failures})' if failures else ''}")
