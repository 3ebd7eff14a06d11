# SPDX-License-Identifier: Apache-2.0
"""penstock-torture around one build of penstockd, until something is wrong."""
import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass, field

from daemon import Daemon
from report import KernelLog
from stage import PATIENCE_S, Failed, Netns, Stage
from torture import Torture

SERVERS = ("127.0.0.1:7001", "127.0.0.2:7001", "[::1]:7001")
PLAIN, PLAIN_V6, TLS, PROXY, PROXY_TLS = "127.0.0.1:7100", "[::1]:7100", "127.0.0.1:7101", "127.0.0.1:7102", "127.0.0.1:7103"
TO = (PLAIN, f"tls:{TLS}", f"proxy:{PROXY}", PLAIN_V6, f"proxy+tls:{PROXY_TLS}")
ROUNDS = (0.01, 0.03, 0.1, 0.3, 1)  # after these parts of all lives the accounts are looked at
HANG_S = 10
VERDICT = pathlib.Path("/run/penstock/probe")  # userspace/daemon/engine.cc; /run is our own here


def tables():
    """Small buffers, so that lanes change and segments are trimmed where lives are small."""
    def listener(name, bind, more=""):
        return f'[[listener]]\nname = "{name}"\nbind = {list(bind)}\nupstream = "server"\n{more}'
    trusting = 'accept_proxy = { from = ["127.0.0.0/8"] }\n'
    named = '[[listener.route]]\nsni = ["*.torture.test"]\nupstream = "server"\n'
    return (f'[flow]\nbuffer = "64KiB"\n[timeouts]\nclient_hello = "1m"\nproxy_header = "1m"\n'
            f'[upstream.server]\nservers = {list(SERVERS)}\nproxy_protocol = "v2"\n'
            + listener("plain", [PLAIN, PLAIN_V6]) + listener("tls", [TLS], named)
            + listener("proxy", [PROXY], trusting) + listener("proxy-tls", [PROXY_TLS], trusting + named))


@dataclass
class Found:
    self_test: str
    seconds: float = 0
    catches: list = field(default_factory=list)  # (lives, word) for each seed; (None, "") where nothing was found

    def lives(self):
        return ", ".join("-" if lives is None else str(lives) for lives, _ in self.catches)

    def words(self):
        return ", ".join(dict.fromkeys(word for _, word in self.catches if word))

    def caught_always(self):
        return all(word for _, word in self.catches)


class Orders:
    """Sends directions of open flows to the relay and back to the splice, as fast as the daemon answers: what goes wrong
    within microseconds of a change needs many changes. Asking wakes threads, so what is forgotten to be woken would hide."""

    def __init__(self, daemon, seed):
        self.daemon, self.random = daemon, random.Random(seed)
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.order)

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()

    def order(self):
        with contextlib.suppress(OSError, Failed), self.daemon.line() as line:  # it has ended, as the hunt will see
            while not self.over.is_set():
                flows = [flow["cookie"] for flow in line.ask("flows")["flows"] if flow["phase"] == "open"]
                for cookie in self.random.sample(flows, min(len(flows), 20)):
                    direction = self.random.choice(("up", "down"))
                    for lane in ("relay", "splice", "relay", "splice"):
                        line.ask("lane", cookie=cookie, direction=direction, to=lane)


class Hunt:
    def __init__(self, build, lives, keep_logs):
        """REQUIRES: the build has no defect yet."""
        self.build, self.lives, self.keep_logs = build, lives, keep_logs
        VERDICT.parent.mkdir(exist_ok=True)
        with Stage(build) as stage:
            if refused := self._self_test(stage):
                raise Failed(f"the self-test refuses a build without a defect: {refused}")
        self.good_verdict = VERDICT.read_text()

    def run(self, name, seeds, orders):
        began_s = time.monotonic()
        with Stage(self.build) as stage:
            found = Found(self._self_test(stage))
            for seed in seeds:
                self._plant_verdict(stage)
                found.catches.append(self._hunt(stage, name, seed, orders))
        found.seconds = time.monotonic() - began_s
        return found

    def _self_test(self, stage):
        """What the daemon itself says of this build, before it lets anything into the sockmap."""
        with Netns().inside():
            done = subprocess.run([stage.program("userspace/penstockd"), "--probe", "--json"], capture_output=True, text=True,
                                  check=False)
        report = json.loads(done.stdout)
        return ", ".join(c["name"] for c in report["capabilities"] if c["promise"] and not c["ok"])

    def _plant_verdict(self, stage):
        """As if the self-test had found no fault: it is torture that is to be tried."""
        lines = self.good_verdict.splitlines(keepends=True)
        status = os.stat(stage.program("userspace/penstockd"))
        version = lines[2].split()[0]
        lines[2] = f"{version} {status.st_size} {status.st_mtime_ns // 10**9}.{status.st_mtime_ns % 10**9}\n"
        VERDICT.write_text("".join(lines))

    def _hunt(self, stage, name, seed, orders):
        kernel_log = KernelLog()
        netns = Netns()
        daemon = Daemon(stage, netns, tables(), name=f"penstockd-{seed}", max_flows=1024, access_log=True)
        lives, word = 0, ""
        with Orders(daemon, seed) if orders else contextlib.nullcontext():
            for part in ROUNDS:
                until = int(self.lives * part)
                begun, word = self._round(stage, netns, daemon, seed, lives, until)
                lives = until if begun is None else begun
                word = word or self._fault(daemon, kernel_log)
                if word:
                    break
        if orders and not word and not daemon.totals()["lane_changes"]["ordered"]:
            raise Failed("no lane was ordered")
        if self.keep_logs and daemon.process.running():
            (stage.directory / f"status-{seed}.log").write_text(json.dumps(daemon.status(), indent=1))
        daemon.process.stop()
        if self.keep_logs:
            shutil.copytree(stage.directory, self.keep_logs / name, dirs_exist_ok=True, ignore=lambda where, names: [
                n for n in names if not n.endswith(".log")])
        return (lives, word) if word else (None, "")

    def _round(self, stage, netns, daemon, seed, first, end):
        """(the number of the life that failed, its word), or (None, "")."""
        words = (*(word for server in SERVERS for word in ("--serve", server)), *(word for edge in TO for word in ("--to", edge)),
                 "--admin", daemon.admin, "--log", daemon.process.log_file, "--lives", end - first,
                 "--seed", seed * 1_000_003 + first, "--concurrency", 200, "--hang-s", HANG_S, "--stall-ms", 1000)
        torture = Torture(stage, netns, *words)
        while torture.process.running():
            if failure := re.search(r"^FAIL (?:no life|life (\d+)) seed \d+: (\w+)", torture.process.log(), re.M):
                torture.process.stop()
                return first + int(failure[1] or 0) + 1, failure[2]
            if not daemon.process.running():
                torture.process.stop()
                return None, "the daemon ended itself"
            time.sleep(0.05)
        exact, summary = torture.finish(PATIENCE_S)
        return (None, "") if exact else (None, ", ".join(summary["failures"]))

    def _fault(self, daemon, kernel_log):
        """What the lives themselves cannot see."""
        if complaints := kernel_log.complaints():
            return f"kernel: {complaints[0]}"
        status = daemon.status()
        if any(one["accepted"] != one["active"] + one["closed"] for one in status["listeners"]):
            return "wrong_account"
        if status["totals"]["held_bytes"] or status["totals"]["pipe_bytes"]:
            return "memory_held"
        return ""
