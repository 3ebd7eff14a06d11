# SPDX-License-Identifier: Apache-2.0
"""What every story has: the mailbox at home under its name, edges of its own whose accounts add up in the end."""
import sys
import time
import unittest

from internet import Internet
from scene import HOME, MAILBOX


class Story(unittest.TestCase):
    scene = None  # of all stories, made by `run`
    ttl_s = 5

    def setUp(self):
        self.mailbox, self.names = self.scene.mailbox, self.scene.names
        self.internet = Internet(self.scene.internet, self.scene.authority)
        self.names.start(self.ttl_s)
        self.names.point(MAILBOX, *HOME.values())

    def start_edge(self, **how):
        edge = self.scene.start_edge(**how)
        self.addCleanup(self._end, edge)
        return edge

    def figure(self, text):
        print(f"     {self.name()}: {text}", flush=True)

    def name(self):
        return self.id().rpartition(".test_")[2]

    def assert_true_client(self, tag, port, address):
        self.assertEqual(self.mailbox.smtp_client(tag, port), address)

    def _end(self, edge):
        edge.wait_active(0)
        totals = edge.totals()
        self.assertEqual(totals["accepted"], sum(totals["closed"].values()), totals)
        self.assertEqual(totals["closed"]["account_mismatch"], 0)
        edge.stop()


class Result(unittest.TextTestResult):
    """A line a story; of one that failed also what the edge, postfix and dovecot logged meanwhile."""

    def startTest(self, test):
        super().startTest(test)
        mailbox = test.scene.mailbox
        self.began_s = time.monotonic()
        self.before = {log: len(log()) for log in (mailbox.smtp_log, mailbox.imap_log)}
        self.edges_before, self.failed_before = len(test.scene.edges), self._failed()

    def stopTest(self, test):
        super().stopTest(test)
        passed = self._failed() == self.failed_before
        print(f"{'ok  ' if passed else 'NO  '} {test.name()}: {time.monotonic() - self.began_s:.1f} s", flush=True)
        if not passed:
            said = [edge.process.log() for edge in test.scene.edges[self.edges_before:]]
            said += [log()[at:] for log, at in self.before.items()]
            print(f"---- logged in {test.name()} ----", *said, sep="\n", file=sys.stderr, flush=True)

    def _failed(self):
        return len(self.failures) + len(self.errors)


def timed(action):
    """(seconds it took, its result)"""
    began_s = time.monotonic()
    result = action()
    return time.monotonic() - began_s, result
