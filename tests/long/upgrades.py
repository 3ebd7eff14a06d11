# SPDX-License-Identifier: Apache-2.0
"""upgrades: one program in the place of the other, and back, under connections of every kind, each byte checked at both ends;
between them programs that fail: on trial, at their start, by standing still. No open flow ends for any of it."""
import pathlib
import random
import shutil
import subprocess
import time

import endure
from report import counts
from stage import Failed, Stage

FAILING = {  # what the program does, as a script of /bin/sh; the result that penstockd tells
    "is not there": (None, "missing"),
    "is no program": ("no program", "not_executable"),
    "exits with 1": ("#!/bin/sh\nexit 1\n", "trial_failed"),
    "says nothing": ("#!/bin/sh\nexit 0\n", "trial_failed"),
    "is killed": ("#!/bin/sh\nkill -SEGV $$\n", "trial_killed"),
    "stands still": ("#!/bin/sh\nexec sleep 600\n", "trial_timed_out"),
}
PATIENCE_S = 5


def add_arguments(parser):
    endure.add_arguments(parser)
    parser.add_argument("--upgrades", type=int, default=100)
    parser.add_argument("--failing", type=int, default=20, help="upgrades that fail, in between (%(default)s)")
    parser.add_argument("--other", type=pathlib.Path, help="another penstockd (a copy of the same)")


def prove(options, report):
    with Stage(options.build) as stage:
        endured = endure.Endured(stage, options)
        one = pathlib.Path(stage.program("userspace/penstockd"))
        other = options.other or pathlib.Path(shutil.copy(one, stage.directory / "penstockd-2"))
        programs, draw, took, failed = [one, other], random.Random(options.seed), [], {}
        whens = sorted(draw.sample(range(options.upgrades), min(options.failing, options.upgrades)))
        for n in range(options.upgrades):
            if n in whens:
                what = list(FAILING)[whens.index(n) % len(FAILING)]
                failed[what] = failed.get(what, 0) + fails(stage, endured, what)
            took.append(upgrade(endured, programs[(n + 1) % 2]))
            time.sleep(draw.uniform(0, 0.5))
        took.sort()
        worker = endured.worker()
        report.claim(worker["upgrades"] == options.upgrades and worker["crashes"] == 0, "upgrades",
                     f"{worker['upgrades']} done, {worker['crashes']} workers died; command: median {took[len(took) // 2]:.2f} s, at "
                     f"most {took[-1]:.2f} s; taken over: {endured.taken_over()}")
        report.claim(sum(failed.values()) == len(whens), "failing ones", f"{len(whens)}, as they should: {counts(failed)}")
        endured.settle(report)


def upgrade(endured, program):
    begun = time.monotonic()
    done = subprocess.run([endured.daemon.command, "upgrade", program, "--socket", endured.daemon.admin], capture_output=True,
                          text=True, check=False)
    if done.returncode:
        raise Failed(f"penstock upgrade {program}: {done.stderr}{endured.daemon.process.log()[-1000:]}")
    return time.monotonic() - begun


def fails(stage, endured, what):
    """Whether it did as it should, and the old program goes on."""
    text, result = FAILING[what]
    program = stage.directory / "failing"
    program.unlink(missing_ok=True)
    if text is not None:
        program.write_text(text)
        program.chmod(0o755)
    before = endured.worker()
    endured.daemon.ask("upgrade", program=str(program), patience_s=PATIENCE_S)
    deadline = time.monotonic() + 4 * PATIENCE_S
    while (now := endured.worker())["upgrade"]["answered"] == before["upgrade"]["answered"]:
        if time.monotonic() > deadline:
            raise Failed(f"no answer to the upgrade to one that {what}")
        time.sleep(0.02)
    return now["upgrade"]["result"] == result and now["upgrades"] == before["upgrades"]
