# SPDX-License-Identifier: Apache-2.0
"""upgrades: one program in the place of the other, and back, under connections of every kind, each byte checked at both ends;
between them programs that fail: refused unseen, on trial, at their start. No open flow ends for any of it. First each that
fails by itself, over flows at rest: what is told, who serves, what is left. Descriptors are compared with those after a first
upgrade: a program that took over has duplicates of what it found, the programs after it have no more."""
import collections
import contextlib
import os
import pathlib
import random
import shutil
import subprocess
import time

import endure
import idle
from daemon import Daemon, piped
from report import counts
from stage import Failed, Netns, Stage, wait_for

PATIENCE_S, HANGS_S = 60, 5
BESIDE = "penstockd"  # what lab-impostor takes for its trial


def add_arguments(parser):
    endure.add_arguments(parser)
    parser.add_argument("--upgrades", type=int, default=100)
    parser.add_argument("--failing", type=int, default=20, help="upgrades that fail, in between (%(default)s)")
    parser.add_argument("--flows", type=int, default=200, help="at rest, while each program that fails does so by itself (%(default)s)")
    parser.add_argument("--other", type=pathlib.Path, help="another penstockd (a copy of the same)")
    parser.add_argument("--stranger", type=pathlib.Path, help="a penstockd that knows no layout of ours")


def prove(options, report):
    with Stage(options.build) as stage:
        at_rest(stage, options, report)
    with Stage(options.build) as stage:
        one, other = programs(stage, options)
        endured = endure.Endured(stage, options, prepare=lambda daemon: first_upgrade(daemon, one, other))
        failing, draw, took, failed = Failing(stage), random.Random(options.seed), [], []
        whens = sorted(draw.sample(range(options.upgrades), min(options.failing, options.upgrades)))
        for n in range(options.upgrades):
            if n in whens:
                what = list(failing.programs)[whens.index(n) % len(failing.programs)]
                failed.append((what, *failing.upgrade(endured.daemon, what)))
            took.append(upgrade(endured.daemon, (one, other)[n % 2]))
            time.sleep(draw.uniform(0, 0.5))
        took.sort()
        worker = endured.worker()
        report.claim(worker["upgrades"] == options.upgrades + 1 and worker["crashes"] == 0, "upgrades",
                     f"{worker['upgrades']} done, {worker['crashes']} workers died; command: median {took[len(took) // 2]:.2f} s, at "
                     f"most {took[-1]:.2f} s; taken over: {endured.taken_over()}")
        wrong = {what: f"{result} instead of {wanted}" for what, result, wanted in failed if result != wanted}
        report.claim(not wrong, "failing ones", f"{len(failed)}: "
                     + (counts(wrong) if wrong else counts(collections.Counter(result for _, result, _ in failed))))
        endured.settle(report)


def programs(stage, options):
    one = pathlib.Path(stage.program("userspace/penstockd"))
    return one, (options.other.resolve() if options.other else copy_of(stage, one))


def copy_of(stage, one):
    return pathlib.Path(shutil.copy(one, stage.directory / "penstockd-2"))


def at_rest(stage, options, report):
    netns = Netns()
    daemon = Daemon(stage, netns, piped(f"127.0.0.1:{idle.SERVER_PORT}", f"127.0.0.1:{idle.EDGE_PORT}"), engine=options.engine,
                    max_flows=options.flows + 64)
    one = pathlib.Path(stage.program("userspace/penstockd"))
    other = copy_of(stage, one)  # of the same layout: a stranger to the one is a stranger to the other
    pairs = idle.connect(netns, daemon, options.flows)
    at_start = descriptors(daemon)
    first_upgrade(daemon, one, other)
    base = descriptors(daemon)
    report.figure("descriptors", f"{at_start} at the start, {base} after a first upgrade")
    failing = Failing(stage, options.stranger)
    for what, (program, _) in failing.programs.items():
        result, wanted = failing.upgrade(daemon, what)
        with contextlib.suppress(Failed):
            wait_for("descriptors to be as before", lambda: descriptors(daemon) == base)
        idle.ping(pairs)
        now, status, serves = descriptors(daemon), daemon.status(), os.readlink(f"/proc/{daemon.pid}/exe")
        report.claim(result == wanted and now == base and serves == str(other) and status["worker"]["upgrades"] == 1
                     and status["worker"]["crashes"] == 0 and status["totals"]["active"] == options.flows,
                     f"one that {what}", f"{result}; {status['totals']['active']} flows carried a message both ways, {now} descriptors, "
                     f"{pathlib.Path(serves).name} serves")
    daemon.stop()


def descriptors(daemon):
    with daemon.line() as line:
        line.ask("status")  # connections that were closed before this one are gone with the answer
        return len(os.listdir(f"/proc/{daemon.pid}/fd"))


class Failing:
    """Programs, in a directory of their own: {what it does: (path, result)}."""

    def __init__(self, stage, stranger=None):
        self.directory = stage.directory / "failing"
        self.directory.mkdir()
        one = stage.program("userspace/penstockd")
        shutil.copy(one, self.directory / BESIDE)
        self.programs = {
            "is not there": (self.directory / "nowhere", "missing"),
            "is no program": (self.text("text", "no program\n"), "not_executable"),
            "is a script": (self.text("script", "#!/bin/sh\nexit 0\n"), "not_executable"),
            "may not be executed": (self.copy(one, "not-executable", 0o644), "not_executable"),
            "anybody may write to": (self.copy(one, "writable", 0o777), "not_trusted"),
            "is somebody else's": (self.copy(one, "others", 0o755, 65534), "not_trusted"),
        }
        for when, how, result in (("trial", "exits", "trial_failed"), ("trial", "is-silent", "trial_failed"),
                                  ("trial", "crashes", "trial_killed"), ("trial", "hangs", "trial_timed_out"),
                                  ("start", "exits", "start_failed"), ("start", "crashes", "start_failed"),
                                  ("start", "hangs", "start_timed_out")):
            program = self.copy(stage.program("tools/lab/lab-impostor"), f"{when}-{how}", 0o755)
            self.programs[f"{how.replace('-', ' ')} {'on trial' if when == 'trial' else 'at its start'}"] = (program, result)
        if stranger:
            self.programs["knows no layout of ours"] = (self.copy(stranger, "stranger", 0o755), "trial_failed")

    def text(self, name, text):
        path = self.directory / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def copy(self, program, name, mode, owner=0):
        path = pathlib.Path(shutil.copy(program, self.directory / name))
        path.chmod(mode)
        os.chown(path, owner, owner)
        return path

    def upgrade(self, daemon, what):
        """(What is told, what should be)."""
        program, wanted = self.programs[what]
        patience_s = HANGS_S if wanted.endswith("timed_out") else PATIENCE_S
        before = endure.worker(daemon)["upgrade"]["answered"]
        daemon.ask("upgrade", program=str(program), patience_s=patience_s)
        deadline = time.monotonic() + 4 * patience_s
        while (told := endure.worker(daemon)["upgrade"])["answered"] == before:
            if time.monotonic() > deadline:
                raise Failed(f"no answer to the upgrade to one that {what}")
            time.sleep(0.02)
        return told["result"], wanted


def upgrade(daemon, program):
    """Seconds."""
    begun = time.monotonic()
    done = subprocess.run([daemon.command, "upgrade", program, "--socket", daemon.admin], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"penstock upgrade {program}: {done.stderr}{daemon.process.log()[-1000:]}")
    return time.monotonic() - begun


def first_upgrade(daemon, one, other):
    """Until `one` is closed, too."""
    def is_open():
        table = f"/proc/{daemon.pid}/fd"
        return any(os.readlink(f"{table}/{fd}") == str(one) for fd in os.listdir(table) if os.path.lexists(f"{table}/{fd}"))
    upgrade(daemon, other)
    wait_for("the old program to be closed", lambda: not is_open())
